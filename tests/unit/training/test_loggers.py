import csv

import pytest
from lightning.pytorch.loggers import CSVLogger

from mflight.training.loggers import build_wandb_logger, join_curves


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def mode_of(tmp_path, mode="auto"):
    return build_wandb_logger(save_dir=tmp_path, mode=mode)._wandb_init["mode"]


def test_without_a_login_a_run_is_offline(tmp_path):
    assert mode_of(tmp_path) == "offline"


def test_a_key_in_the_environment_makes_it_online(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert mode_of(tmp_path) == "online"
    assert mode_of(tmp_path, "offline") == "offline"


@pytest.mark.parametrize(
    ("asked", "mode"),
    [("online", "online"), ("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")],
)
def test_wandbs_own_variable_decides(tmp_path, monkeypatch, asked, mode):
    monkeypatch.setenv("WANDB_MODE", asked)
    assert mode_of(tmp_path) == mode


def test_a_login_is_one_for_the_host_in_use(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 123\n")
    assert mode_of(tmp_path) == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert mode_of(tmp_path) == "offline"


def test_an_unreadable_netrc_is_no_login(tmp_path):
    (tmp_path / "netrc").write_text("machine\n  what is this")
    assert mode_of(tmp_path) == "offline"


def test_an_unknown_mode_is_told(tmp_path):
    with pytest.raises(ValueError, match="sometimes"):
        mode_of(tmp_path, "sometimes")


def test_a_wandb_run_goes_on_under_its_id(tmp_path):
    assert build_wandb_logger(save_dir=tmp_path, run_id="abc123")._wandb_init["id"] == "abc123"


def log(folder, rows):
    logger = CSVLogger(folder, name="", version="csv")
    for step, figures in rows:
        logger.log_metrics(figures, step=step)
    logger.save()
    return logger


def test_a_resumed_run_begins_with_the_rows_before_its_checkpoint(tmp_path):
    log(tmp_path / "stopped", [(0, {"loss": 3.0}), (1, {"loss": 2.0}), (1, {"ap": 0.5}), (2, {"loss": 9.0})])
    logger = CSVLogger(tmp_path / "resumed", name="", version="csv")
    join_curves([logger], tmp_path / "stopped", before_step=2)
    logger.log_metrics({"loss": 1.0, "lr": 0.1}, step=2)
    logger.save()
    with (tmp_path / "resumed" / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["ap"], row["lr"]) for row in rows] == [
        ("0", "3.0", "", ""),
        ("1", "2.0", "", ""),
        ("1", "", "0.5", ""),
        ("2", "1.0", "", "0.1"),
    ]


def test_without_earlier_rows_a_resumed_run_begins_with_its_own(tmp_path):
    logger = CSVLogger(tmp_path / "resumed", name="", version="csv")
    join_curves([logger], tmp_path / "nowhere", before_step=2)
    logger.log_metrics({"loss": 1.0}, step=2)
    logger.save()
    assert (tmp_path / "resumed" / "csv" / "metrics.csv").read_text().split() == ["loss,step", "1.0,2"]
