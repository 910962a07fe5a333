import logging
import warnings

import lightning as L
import pytest

from mflight.training.console import build_progress_bar, calm_lightning
from tests.unit.training.foreign import ForeignModule


@pytest.fixture(autouse=True)
def logging_as_before():
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    with warnings.catch_warnings():
        yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


def test_lightning_neither_advertises_nor_writes_a_line_of_its_own(capfd, caplog):
    calm_lightning()
    with caplog.at_level(logging.INFO):
        L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_lightnings_warnings_still_come(caplog):
    calm_lightning()
    logging.getLogger("lightning.pytorch.something").warning("the disk is full")
    assert [record.message for record in caplog.records] == ["the disk is full"]


def test_the_bar_does_not_show_version_numbers(tmp_path):
    bar = build_progress_bar()
    logger = L.pytorch.loggers.CSVLogger(tmp_path, version="csv")
    trainer = L.Trainer(accelerator="cpu", logger=logger, callbacks=[bar], default_root_dir=tmp_path)
    assert "v_num" not in bar.get_metrics(trainer, ForeignModule())
