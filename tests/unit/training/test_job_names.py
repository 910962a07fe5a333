from omegaconf import OmegaConf

from mflight.training.job_names import run_name, swept_overrides


def test_a_name_tells_what_sets_the_run_apart_and_not_where_it_lies():
    overrides = [
        "synthesis.synthetic_ratio=0.25",
        "seed=1",
        "paths.pool_dir=/p",
        "sweep=ratio",
        "+logger.x=1",
    ]
    assert run_name("mini", overrides) == "mini synthetic_ratio=0.25 seed=1"
    assert run_name("mini", []) == "mini"
    assert run_name("mini", ["callbacks=ema", "callbacks.panels.num_images=2"]) == "mini callbacks=ema"
    assert run_name("mini", ["synthesis=none", "model/classification_loss=seesaw"]) == (
        "mini synthesis=none classification_loss=seesaw"
    )


def test_keys_that_end_alike_stay_whole_and_drawn_values_are_rounded():
    assert run_name("mini", ["a.seed=1", "b.seed=2"]) == "mini a.seed=1 b.seed=2"
    assert run_name("mini", ["optim.lr=0.0012345678"]) == "mini lr=0.001235"
    assert run_name("mini", ["data.root=/a/b/c.json"]) == "mini root=/a/b/c.json"


def test_a_long_name_is_cut_at_a_hundred_letters():
    name = run_name("mini", [f"group.key_{number}=100" for number in range(30)])
    assert len(name) == 100 and name.endswith("...")


def job(folder, task, params=None):
    return OmegaConf.create(
        {"sweep": {"dir": str(folder)}, "sweeper": {"params": params}, "overrides": {"task": task}}
    )


def test_what_the_command_line_fixes_is_not_swept(tmp_path):
    given = {"hydra": {"overrides": {"task": ["sweep=ratio", "seed=3", "data.batch_size=2,4", "+a.b=true"]}}}
    OmegaConf.save(OmegaConf.create(given), tmp_path / "multirun.yaml")
    task = ["synthesis.synthetic_ratio=0", "seed=3", "sweep=ratio", "data.batch_size=2"]
    task.append("+a.b=True")  # as Hydra writes it
    swept = swept_overrides(job(tmp_path, task, {"synthesis.synthetic_ratio": "0,1", "seed": "0,1"}))
    assert swept == ["synthesis.synthetic_ratio=0", "data.batch_size=2"]


def test_without_a_record_of_the_command_line_the_searched_parameters_are_swept(tmp_path):
    cfg = job(tmp_path, ["optim.lr=0.1", "seed=3"], {"optim.lr": "interval(0, 1)"})
    assert swept_overrides(cfg) == ["optim.lr=0.1"]
