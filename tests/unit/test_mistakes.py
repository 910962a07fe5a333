"""A user's mistake is one sentence and exit status 2; a fault of the program keeps its traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from pydantic import Field, validate_call

from mflight.mistakes import Mistake, MistakeExit, tell, tells_mistakes

ROOT = Path(__file__).resolve().parents[2]


@validate_call
def draw(*, share: float = Field(default=0.5, le=1.0), steps: int = 1) -> float:
    """A constructor of a config node."""
    return share * steps


def raising(error):
    @tells_mistakes
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("steps must be at least 1, got 0"), "steps must be at least 1, got 0"),
        (FileNotFoundError(2, "No such file or directory", "pool"), "pool: No such file or directory"),
        (FileNotFoundError("no pool at x"), "no pool at x"),
        (Mistake("all generators\n  have ended"), "all generators have ended"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(error, sentence, capsys):
    with pytest.raises(MistakeExit) as raised:
        raising(error)()
    assert (raised.value.code, str(raised.value)) == (2, sentence)
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_a_fault_of_the_program_stays_one():
    with pytest.raises(KeyError, match="label"):
        raising(KeyError("label"))()


def test_the_debug_variable_lets_the_mistake_through(monkeypatch):
    monkeypatch.setenv("MFLIGHT_DEBUG", "1")
    with pytest.raises(ValueError, match="got 0"):
        raising(ValueError("got 0"))()


def test_a_sentence_of_another_library_says_where_to_look():
    with pytest.raises(MistakeExit, match=r"Expecting value.* \(MFLIGHT_DEBUG=1 shows where\)"):
        tells_mistakes(json.loads)("nothing")


def test_a_value_out_of_range_names_the_key_that_sets_it(capsys):
    from hydra.utils import instantiate

    cfg = OmegaConf.create(
        {
            "synthesis": {"share": 1.5},
            "drawn": {"_target_": f"{__name__}.draw", "share": "${synthesis.share}", "steps": "many"},
        }
    )

    @tells_mistakes
    def command(cfg):
        return instantiate(cfg.drawn)

    with pytest.raises(MistakeExit):
        command(cfg)
    assert capsys.readouterr().err == (
        "error: synthesis.share is refused: Input should be less than or equal to 1, got 1.5; drawn.steps is "
        "refused: Input should be a valid integer, unable to parse string as an integer, got 'many'\n"
    )
    cfg = OmegaConf.create({"drawn": {"_target_": f"{__name__}.draw", "sharing": 1}})
    with pytest.raises(MistakeExit, match=r"drawn\.sharing is refused: Unexpected keyword argument, got 1"):
        command(cfg)
    cfg = OmegaConf.create({"drawn": {"_target_": f"{__name__}.paint"}})
    with pytest.raises(MistakeExit, match="paint"):
        command(cfg)


def test_what_a_validator_says_loses_the_librarys_trimmings():
    with pytest.raises(ValueError, match="1 validation error") as raised:
        draw(share=2.0)
    assert tell(raised.value) == "share is refused: Input should be less than or equal to 1, got 2.0"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.bach_size=4"], ["data.bach_size", "Key 'bach_size' is not in struct"]),
        (["data=lvis_formt"], ["data/lvis_formt", "lvis_format"]),
        (["data.batch_size=[1"], ["data.batch_size=[1"]),
        (["data=lvis_format"], ["Missing mandatory value: data.train_annotations"]),
        (["data=lvis_v1", "data.root=/nowhere"], ["data.train_annotations=/nowhere/lvis_v1_train.json"]),
    ],
)
@pytest.mark.parametrize("command", [["train.py"], ["-m", "mflight.check_data"]])
def test_a_command_line_that_cannot_be_is_told_within_a_line(command, overrides, words, tmp_path):
    if command[0] != "train.py" and "/nowhere" in str(overrides):
        pytest.skip("the check prints what is missing as a finding")
    if command[0] != "train.py" and not any(o.startswith("data=") for o in overrides):
        overrides = ["data=minilvis", *overrides]
    done = subprocess.run(
        [sys.executable, *command, *overrides, f"hydra.run.dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "full_key" not in line
    for word in words:
        assert word in line
