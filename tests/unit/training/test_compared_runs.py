import json

import pytest
from omegaconf import OmegaConf

from mflight.training.compared_runs import find_runs, group_runs


def write_run(folder, *, overrides=(), choices=None, results=None, **settings):
    """Leave what Hydra and a finished run leave."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create({"seed": 0, **settings}), folder / ".hydra" / "config.yaml")
    hydra_cfg = {"runtime": {"choices": {"hydra/launcher": folder.name, **(choices or {})}}}
    hydra_cfg["overrides"] = {"task": list(overrides)}
    OmegaConf.save(OmegaConf.create({"hydra": hydra_cfg}), folder / ".hydra" / "hydra.yaml")
    if results is not False:
        (folder / "results.json").write_text(json.dumps(results or {"val/segm/AP": 1.0, "messages": []}))


def groups_of(folder):
    return [
        (dict(g.settings), [run.folder.name for run in g.runs]) for g in group_runs(find_runs([folder])[0])
    ]


def test_runs_that_differ_by_the_seed_and_by_where_they_lie_are_one_group(tmp_path):
    for number in (10, 2):
        write_run(
            tmp_path / str(number), seed=number, paths={"run_dir": str(number)}, ratio="${name}", name="a"
        )
    assert groups_of(tmp_path) == [({}, ["2", "10"])]


def test_a_setting_that_differs_parts_them_even_if_no_command_line_names_it(tmp_path):
    for number, ratio in enumerate((0.1, 0.5, 0.1)):
        write_run(tmp_path / str(number), seed=number, synthesis={"ratio": ratio, "grids": [[2, 3]]})
    key = "synthesis.ratio"
    assert groups_of(tmp_path) == [({key: "0.1"}, ["0", "2"]), ({key: "0.5"}, ["1"])]


def test_callbacks_that_train_part_runs_those_that_tell_do_not_and_zero_is_one_number(tmp_path):
    callbacks = {"panels": {"num_images": 8}, "detector_check": {"min_score": None}}
    write_run(tmp_path / "0", callbacks=callbacks, ratio=0)
    write_run(tmp_path / "1", callbacks={**callbacks, "panels": {"num_images": 2}}, ratio=0.0)
    write_run(tmp_path / "2", callbacks={**callbacks, "detector_check": {"min_score": 0.9}}, ratio=0)
    key = "callbacks.detector_check.min_score"
    assert groups_of(tmp_path) == [({key: "None"}, ["0", "1"]), ({key: "0.9"}, ["2"])]


def test_an_average_of_the_weights_is_a_group_of_its_own(tmp_path):
    for name in ("default", "ema"):
        write_run(tmp_path / name, choices={"callbacks": name}, overrides=[f"callbacks={name}"])
    assert [settings for settings, _ in groups_of(tmp_path)] == [
        {"callbacks": "default"},
        {"callbacks": "ema"},
    ]


def test_a_choice_speaks_for_all_below_it_but_for_what_a_command_line_sets(tmp_path):
    online = {"ratio": 0.25, "wait": True, "service": {"high_water": 256}}
    choices = [{"synthesis": "none"}, {"synthesis": "online"}, {"synthesis": "online"}]
    write_run(tmp_path / "0", synthesis={"ratio": 0.0}, choices=choices[0], overrides=["synthesis=none"])
    write_run(tmp_path / "1", synthesis=online, choices=choices[1], overrides=["synthesis=online"])
    write_run(
        tmp_path / "2",
        synthesis={**online, "ratio": 0.5},
        choices=choices[2],
        overrides=["synthesis=online", "synthesis.ratio=0.5"],
    )
    settings = [list(settings.items()) for settings, _ in groups_of(tmp_path)]
    assert settings == [
        [("synthesis", choice), ("synthesis.ratio", ratio)]
        for choice, ratio in (("none", "0"), ("online", "0.25"), ("online", "0.5"))
    ]


def test_unfinished_runs_are_told_and_a_run_named_twice_counts_once(tmp_path):
    write_run(tmp_path / "done")
    write_run(tmp_path / "stopped", results=False)
    finished, unfinished = find_runs([tmp_path, tmp_path / "done"])
    assert [run.folder for run in finished] == [tmp_path / "done"]
    assert unfinished == [tmp_path / "stopped"]
    assert finished[0].figures == {"val/segm/AP": 1.0}


def test_a_place_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_runs([tmp_path / "nowhere"])
