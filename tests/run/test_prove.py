"""A proof on a dataset of one's own, for real: killed in the middle, gone on with, looked at in a browser."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mflight.functional.masks import rle_encode
from mflight.proof.difference import paired_differences
from mflight.synthesis.pool.packing import PoolSample
from mflight.synthesis.pool.writer import PoolWriter
from tests.run.conftest import LIMIT_S
from tests.run.test_gallery import CHROMIUM, QUIET, needs_chromium, sync_api

pytestmark = pytest.mark.slow

NAMES = ["bolt", "ring", "plate", "washer", "nut", "pallet jack"]
COLOURS = [(220, 60, 60), (60, 200, 60), (70, 90, 230), (230, 200, 40), (200, 60, 210), (40, 200, 210)]
SIZE_PX = 64
ROOT = Path(__file__).resolve().parents[2]


def draw_image(draws, label):
    """Return an image with one rectangle of a class's colour, and its box as left, top, width, height."""
    image = draws.integers(0, 60, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    width, height = (int(side) for side in draws.integers(20, 36, 2))
    left, top = (int(draws.integers(2, SIZE_PX - side - 2)) for side in (width, height))
    image[top : top + height, left : left + width] = COLOURS[label]
    return image, [left, top, width, height]


def write_split(folder, name, count, seed):
    """Write images and a file in COCO's format; a box is its own outline."""
    draws, images, annotations = np.random.default_rng(seed), [], []
    for index in range(count):
        image, (x, y, w, h) = draw_image(draws, index % len(NAMES))
        file = f"{name}_{index}.png"
        Image.fromarray(image).save(folder / file)
        images.append({"id": index, "file_name": file, "height": SIZE_PX, "width": SIZE_PX})
        outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        own = {"id": index, "image_id": index, "category_id": index % len(NAMES) + 1, "iscrowd": 0}
        annotations.append({**own, "bbox": [x, y, w, h], "area": w * h, "segmentation": outline})
    categories = [{"id": label + 1, "name": label_name} for label, label_name in enumerate(NAMES)]
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def fill_pool(folder):
    draws = np.random.default_rng(5)
    with PoolWriter(folder, "w0") as writer:
        for index in range(12):
            label = index % len(NAMES)
            image, box = draw_image(draws, label)
            x, y, w, h = box
            mask = np.zeros((SIZE_PX, SIZE_PX), bool)
            mask[y : y + h, x : x + w] = True
            said = {"category_id": label + 1, "region": 0, "bbox": box, "area": float(w * h)}
            region = {"category_id": label + 1, "box": [0, 0, SIZE_PX, SIZE_PX], "rejected": None}
            provenance = {"request": {"names": [NAMES[label]], "noise_seed": index}}
            writer.append(
                PoolSample(
                    f"5-{index:08d}",
                    image,
                    [{**said, "segmentation": rle_encode(mask)}],
                    [region],
                    provenance,
                ),
                index=index,
            )


class Command:
    """`python -m mflight.prove` on a dataset of one's own."""

    def __init__(self, folder):
        images = folder / "images"
        images.mkdir()
        files = {"train": write_split(images, "train", 12, 1), "val": write_split(images, "val", 6, 2)}
        fill_pool(folder / "pool")
        self.folder, self.output = folder, folder / "out"
        self.overrides = [
            "data=lvis_format",
            *(f"data.{name}_annotations={file}" for name, file in files.items()),
            *(f"data.{name}_images={images}" for name in files),
            *(
                "data/transform=mini",
                "data.batch_size=2",
                "data.num_workers=0",
                "data.epoch_steps=4",
            ),
            *("synthesis=replay", f"paths.pool_dir={folder / 'pool'}", "trainer.max_steps=8", "seeds=[0,1]"),
            *("callbacks.last.every_n_train_steps=1", "callbacks.panels=null", "logger.wandb=null"),
            f"output={self.output}",
        ]
        self.environment = {**os.environ, "MFLIGHT_DATA_DIR": str(folder / "data"), "PYTHONPATH": str(ROOT)}

    def start(self, *overrides):
        command = [sys.executable, "-m", "mflight.prove", *self.overrides, *overrides]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def finish(self, *overrides):
        process = self.start(*overrides)
        told, _ = process.communicate(timeout=3 * LIMIT_S)
        return process.returncode, told

    def trainings(self):
        """Return the processes that train for this proof."""
        lines = subprocess.run(
            ["ps", "-eo", "pid=,args="], capture_output=True, text=True
        ).stdout.splitlines()
        return [line for line in lines if "train.py" in line and str(self.output) in line]


def modified(folder):
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("results.json")}


def wait_until(happened):
    deadline = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def proven(tmp_path_factory):
    """A proof killed once while a training runs, and finished by the same command."""
    command = Command(tmp_path_factory.mktemp("prove"))
    process = command.start()
    wait_until(lambda: modified(command.output) or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
    begun = lambda: [  # noqa: E731
        file for file in command.output.rglob("last.ckpt") if not (file.parents[1] / "results.json").exists()
    ]
    wait_until(begun)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not command.trainings())
    command.finished_before = modified(command.output)
    command.begun_before = [file.parents[1] for file in begun()]
    command.status, command.told = command.finish()
    return command


def test_a_killed_proof_goes_on_and_repeats_nothing(proven):
    assert proven.status == 0, proven.told
    after = modified(proven.output)
    assert len(after) == 8 and proven.finished_before.items() <= after.items()
    for folder in proven.begun_before:
        assert f"goes on, {folder}" in proven.told
        assert json.loads((folder / "results.json").read_text())["steps"] in (8, *equal_time_steps(proven))
    status, told = proven.finish()
    assert status == 0 and "started" not in told and modified(proven.output) == after
    assert "finished already: synthesis, seed 0; synthesis, seed 1; real_only, seed 0" in told


def equal_time_steps(proven):
    return json.loads((proven.output / "proof.json").read_text())["steps"]["equal_time"]


def test_the_record_has_the_form_that_readers_rely_on(proven):
    record = json.loads((proven.output / "proof.json").read_text())
    assert set(record) >= {"accounts", "seeds", "commit", "hardware", "commands", "answer"}
    assert list(record["accounts"]) == ["equal_real", "equal_images", "equal_time"] and record["seeds"] == [
        0,
        1,
    ]
    for account in record["accounts"].values():
        assert account["difference"] == paired_differences(account["real_only"], account["synthesis"])
        assert all(len(values) == 2 for arm in ("real_only", "synthesis") for values in account[arm].values())
        assert {"segm/AP", "bbox/AP", "segm/APr"} <= set(account["difference"])
        assert "segm/APf" not in account["difference"], "no class of so few images is frequent"
    seconds = {
        arm: [
            json.loads((proven.output / arm / f"seed_{seed}" / "results.json").read_text())["train_s"]
            for seed in (0, 1)
        ]
        for arm in ("synthesis", "real_only")
    }
    expected = [
        round(8 * ours / real) for ours, real in zip(seconds["synthesis"], seconds["real_only"], strict=True)
    ]
    assert record["steps"]["equal_time"] == expected and record["steps"]["real_only"] == [8, 8]
    assert {row["name"] for row in record["classes"]} <= set(NAMES)
    assert all((row["num_drawn"], row["num_accepted"]) == (2, 2) for row in record["classes"])
    assert record["answer"] in proven.told and len(record["commands"]) == 9


def test_another_proof_in_the_same_folder_is_refused_before_anything_runs(proven):
    before = modified(proven.output)
    status, told = proven.finish("trainer.max_steps=9")
    assert status == 2 and "trainer.max_steps=8, this proof asks for 9" in told
    assert modified(proven.output) == before and "Traceback" not in told


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_shows_in_a_browser_without_network_or_script(proven, width, scheme):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: asked.append(message.text))
        page.goto((proven.output / "proof.html").as_uri())
        record = json.loads((proven.output / "proof.json").read_text())
        assert page.inner_text("#answer") == record["answer"].replace(" -", " \N{MINUS SIGN}")
        assert page.locator("article.card").count() == 3
        assert page.locator("#curves svg[role=img]").count() == 2, "AP and APr"
        assert page.locator("#classes tr[data-class]").count() == len(record["classes"])
        for svg in page.locator("#pictures .picture svg").all():
            assert svg.bounding_box() == pytest.approx(svg.locator("xpath=../img").bounding_box(), abs=1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is cut off on a phone"
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        browser.close()
