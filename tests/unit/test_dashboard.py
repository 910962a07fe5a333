import json
import socket

import pytest

from mflight.dashboard import BEST_FIGURE, PER_CLASS_TABLE, main

pytest.importorskip("wandb_workspaces")


@pytest.fixture
def layout(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("a layout that is only written needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    main(["--entity", "us", "--project", "tail", "--output", str(tmp_path / "layout.json")])
    assert "Synthesis: 6 panels" in capsys.readouterr().out
    return json.loads((tmp_path / "layout.json").read_text())


def test_the_layout_holds_its_project_sections_and_panels(layout):
    assert (layout["entity"], layout["project"]) == ("us", "tail")
    sections = layout["spec"]["section"]["panelBankConfig"]["sections"]
    kinds = {panel["viewType"] for section in sections for panel in section["panels"]}
    assert {"Run History Line Plot", "Scalar Chart", "Media Browser"} <= kinds
    text = json.dumps(layout)
    for name in (
        "val/segm/APr",
        "panels/synthetic",
        PER_CLASS_TABLE,
        f"summary:{BEST_FIGURE}",
        "train/loss/mask",
    ):
        assert name in text
