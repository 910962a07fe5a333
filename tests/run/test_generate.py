"""``python -m mflight.generate``: killed, continued, in other batches, on other devices."""

import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console

from mflight.generate import GenerationError, generate
from mflight.minilvis.dataset import MiniLVISSize, build_minilvis
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.shards import whole_samples
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.worker import fill_device
from tests.unit.synthesis.squares import PLANNER, SYNTHESIZER

ROOT = Path(__file__).parents[2]
WANTED = [f"7-{index:08d}" for index in range(32) if index % 4 != 3]  # the stand-in drops each fourth canvas
LIMIT_S = 300


def squares(folder, **synthesizer):
    """Overrides that replace the diffusion model by the quick stand-in; all around it is the real command."""
    (folder / "classes.json").write_text("{}")
    return [
        f"paths.pool_dir={folder / 'pool'}",
        "data.prepare=null",
        f"data.train_annotations={folder / 'classes.json'}",
        "seed=7",
        "synthesis.devices=[cpu]",
        "synthesis.num_threads=1",
        "synthesis.service.backoff_s=0",
        "~synthesis.planner",
        f"+synthesis.planner={to_override(PLANNER)}",
        "~diffusion.synthesizer",
        f"+diffusion.synthesizer={to_override({**SYNTHESIZER, **synthesizer})}",
    ]


def to_override(node):
    if isinstance(node, dict):
        return "{" + ",".join(f"{key}:{to_override(value)}" for key, value in node.items()) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(to_override, node)) + "]"
    return f"'{node}'" if isinstance(node, str) else str(node)


def command(*overrides, output=subprocess.PIPE):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    return subprocess.Popen(
        [sys.executable, "-m", "mflight.generate", *overrides],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )


def without_colours(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def finish_at_a_terminal(*overrides):
    """Return the exit code and all that a terminal of 100 columns was sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = command(*overrides, output=theirs)
    os.close(theirs)
    text = b""
    with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # EIO at its end
        while part := terminal.read(4096):
            text += part
    return process.wait(timeout=LIMIT_S), text.decode()


def here(overrides, console=None, **changes):
    """Run the command's function in this process."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("generate", overrides=overrides)
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value)
    return generate(cfg, console or Console(quiet=True))


def contents(folder):
    """Return the stored bytes of every sample by id, of all writers; a duplicate fails."""
    reader, found = PoolReader(folder), {}
    for ref in reader.poll():
        assert ref.sample_id not in found
        sample = reader.read(ref)
        found[ref.sample_id] = (sample.image.tobytes(), sample.annotations, sample.provenance)
    return found, sorted(reader.ids("dropped"))


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_pool_of_an_undisturbed_one(tmp_path):
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
    plain = Console(file=io.StringIO(), force_terminal=False)
    here([*squares(tmp_path / "calm"), "num_samples=24", "diffusion.batch_size=1"], plain)
    told = plain.file.getvalue().splitlines()
    assert told[0] == "0 of 24, 0 dropped, loading" and told[-1].startswith("24 of 24, ")
    overrides = [*squares(tmp_path / "killed", seconds=0.05), "num_samples=24", "diffusion.batch_size=3"]
    process, pool = command(*overrides), tmp_path / "killed/pool"
    deadline = time.monotonic() + LIMIT_S
    while len(PoolReader(pool).poll()) < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(0.5)  # the kernel takes the generator with it
    num_before = len(PoolReader(pool).poll())
    assert 4 <= num_before < 24
    returncode, output = finish_at_a_terminal(
        *overrides, "diffusion.batch_size=5", "synthesis.devices=[cpu,cpu]"
    )
    assert returncode == 0 and "mosaics kept" in output, output
    bar = [(int(done), int(goal)) for done, goal in re.findall(r"(\d+)/(\d+)", without_colours(output))]
    assert bar[0] == (num_before, 24) and bar[-1] == (24, 24) and bar == sorted(bar)
    calm, killed = contents(tmp_path / "calm/pool"), contents(pool)
    assert sorted(killed[0]) == sorted(calm[0]) == WANTED
    assert killed == calm
    stored = sum(len(list(whole_samples(path, 0))) for path in pool.glob("*.tar"))
    assert stored == len(WANTED)  # nothing twice, not even unseen
    assert here(overrides) == {"kept": 24, "dropped": len(killed[1])}  # nothing left to do


@pytest.mark.slow
def test_mosaics_are_the_same_in_a_batch_as_one_by_one(tmp_path):
    """With the mini checkpoint; the batch is drawn by a generator process, the single ones here."""
    size = MiniLVISSize(
        train_images={"rare": (1, 1), "common": (11, 11), "frequent": (12, 12)}, val_instances=1
    )
    build_minilvis(tmp_path / "minilvis", size=size)
    overrides = [
        f"paths.data_dir={tmp_path}",
        "data.prepare=null",
        f"paths.pool_dir={tmp_path / 'pool'}",
        "num_samples=null",
        "num_requests=3",
        "diffusion.batch_size=3",
        "diffusion.synthesizer.num_inference_steps=2",
        "diffusion.synthesizer.pipeline.dtype=float32",  # in bfloat16 the kernel of a batch shows
        "diffusion.synthesizer.region_filter.rescue=true",
        "synthesis.service.image_format=png",
    ]
    figures = here(overrides)
    assert figures["kept"] + figures["dropped"] == 3
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = OmegaConf.to_container(compose("generate", overrides=overrides).synthesis.service, resolve=True)
    planner = instantiate(cfg["planner"], _convert_="all")
    synthesizer = instantiate(fill_device(cfg["synthesizer"], "cpu"), _convert_="all")
    reader = PoolReader(tmp_path / "pool")
    refs = {ref.index: ref for ref in reader.poll()}
    assert refs
    for index in range(3):
        (alone,) = synthesizer.synthesize([planner.request(index)])
        assert (index in refs) == alone.is_kept
        if index in refs:
            sample = reader.read(refs[index])
            assert np.abs(sample.image.astype(int) - alone.image).max() <= 1
            assert sample.regions == alone.regions
            assert sample.provenance["request"]["noise_seed"] == alone.request.noise_seed
            for ours, theirs in zip(sample.annotations, alone.annotations, strict=True):
                assert ours["area"] == pytest.approx(theirs["area"], rel=0.02)


@pytest.mark.slow
def test_an_error_of_a_generator_ends_the_command_with_its_sentence(tmp_path):
    overrides = [*squares(tmp_path, error_at=2), "num_samples=6", "diffusion.batch_size=1"]
    with pytest.raises(GenerationError, match="generator w0 failed: ValueError: request 2 is cursed"):
        here(overrides)
    assert len(contents(tmp_path / "pool")[0]) == 2
    (tmp_path / "pool/generate.json").unlink()  # the cure is in the settings
    assert here([*squares(tmp_path), "num_samples=6"]) == {"kept": 6, "dropped": 1}


@pytest.mark.parametrize("at_most", [6, None])
def test_where_nothing_is_accepted_the_command_tells_the_rules_and_ends_at_its_bound(tmp_path, at_most):
    told = io.StringIO()
    console = Console(file=told, width=200)
    overrides = [*squares(tmp_path, drop_every=1), "num_samples=2", "diffusion.batch_size=1"]
    if at_most is None:
        bounded = [*overrides, "max_dropped_in_a_row=null", "num_requests=8"]
        assert here(bounded, console) == {"kept": 0, "dropped": 8}
        return
    with pytest.raises(GenerationError) as caught:
        here([*overrides, f"max_dropped_in_a_row={at_most}"], console)
    sentence = str(caught.value)
    dropped = int(re.search(r"the last (\d+) mosaics were all dropped", sentence)[1])
    assert dropped >= at_most and f"max_dropped_in_a_row is {at_most}" in sentence
    assert re.search(r"of (\d+) regions rejected: area \1: loosen", sentence)


def test_a_kept_mosaic_begins_the_row_of_dropped_ones_anew(tmp_path):
    overrides = [*squares(tmp_path, drop_every=2), "num_samples=5", "max_dropped_in_a_row=2"]
    assert here(overrides) == {"kept": 5, "dropped": 4}


@pytest.mark.slow
def test_a_killed_generator_comes_back(tmp_path):
    crash = {"crash_at": 2, "crash_file": str(tmp_path / "crashed")}
    assert here([*squares(tmp_path, **crash), "num_samples=4"]) == {"kept": 4, "dropped": 1}


def test_other_settings_under_the_same_seed_are_refused(tmp_path):
    overrides = [*squares(tmp_path), "num_samples=null", "num_requests=1"]
    PoolWriter(tmp_path / "pool", "w0").close()
    assert here(overrides) == {"kept": 1, "dropped": 0}
    with pytest.raises(
        ValueError, match=r"drawn with planner\.region_hw=\[32, 32\] under seed 7, now it is \[64"
    ):
        here(overrides, **{"synthesis.planner.region_hw": [64, 64]})
    with pytest.raises(ValueError, match=r"drawn with synthesizer\.drop_every=4 under seed 7, now it is 2"):
        here([*squares(tmp_path, drop_every=2), "num_requests=1"])


def test_settings_may_change_until_the_seed_has_given_something(tmp_path):
    with pytest.raises(GenerationError, match="request 0 is cursed"):
        here([*squares(tmp_path, error_at=0), "num_samples=1"])
    assert here([*squares(tmp_path), "num_samples=1"]) == {"kept": 1, "dropped": 0}


def test_a_gap_is_filled_although_later_requests_are_answered(tmp_path):
    overrides = [*squares(tmp_path), "num_samples=null", "num_requests=3"]
    planner, synthesizer = instantiate(PLANNER, _convert_="all"), instantiate(SYNTHESIZER | {"device": "cpu"})
    with PoolWriter(tmp_path / "pool", "w1") as writer:  # of a second device, which was faster
        for index in (1, 2, 4):
            (result,) = synthesizer.synthesize([planner.request(index)])
            writer.append(result.sample(), index=index)
    assert here(overrides) == {"kept": 3, "dropped": 0}
    assert sorted(contents(tmp_path / "pool")[0]) == [*WANTED[:3], "7-00000004"]
    for path in (tmp_path / "pool").glob("shard-w0-*"):  # as if it had been killed before its first one
        path.unlink()
    assert set(contents(tmp_path / "pool")[0]) == {*WANTED[1:3], "7-00000004"}
    with pytest.raises(ValueError, match=r"drawn with synthesizer\.drop_every=4 under seed 7, now it is 2"):
        here([*squares(tmp_path, drop_every=2), "num_samples=null", "num_requests=3"])


def test_what_is_missing_is_named_before_anything_is_drawn(tmp_path):
    overrides = squares(tmp_path)
    with pytest.raises(ValueError, match="num_samples or num_requests must be set, both are null"):
        here([*overrides, "num_samples=null"])
    with pytest.raises(FileNotFoundError, match=r"data\.train_annotations=none\.json does not exist"):
        here([*overrides, "data.train_annotations=none.json"])
    with (
        PoolWriter(tmp_path / "pool", "w0"),
        pytest.raises(ValueError, match=rf"in use by pid {os.getpid()}"),
    ):
        here(overrides)
    (tmp_path / "pool/pool.json").write_text('{"format": "mflight-pool", "version": 1}')
    with pytest.raises(ValueError, match="was written by an older version of mflight"):
        here(overrides)
