from mflight.training.run_folder import how_to_go_on, last_checkpoint, last_wandb_run


def test_the_advice_names_what_is_there(tmp_path):
    assert how_to_go_on(tmp_path, None) == "nothing has been saved yet"
    assert how_to_go_on(tmp_path, "runs/before") == "to go on: resume_from=runs/before"
    last_checkpoint(tmp_path).parent.mkdir()
    last_checkpoint(tmp_path).touch()
    assert how_to_go_on(tmp_path, "runs/before") == f"to go on: resume_from={tmp_path}"


def test_the_wandb_run_is_the_one_written_last(tmp_path):
    assert last_wandb_run(tmp_path) is None
    for name in ("offline-run-20260131_120000-first", "run-20260201_080000-second", "latest-run"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert last_wandb_run(tmp_path) == "second"
