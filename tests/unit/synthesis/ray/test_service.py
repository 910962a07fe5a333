import importlib.util

import pytest

from mflight.synthesis.ray.service import RaySynthesisService
from mflight.synthesis.ray.settings import RayGeneratorSettings
from mflight.synthesis.ray.status import RayStatus
from tests.unit.synthesis.squares import PLANNER, SYNTHESIZER

has_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def service(folder, **settings):
    return RaySynthesisService(
        RayGeneratorSettings(pool_dir=folder, planner=PLANNER, synthesizer=SYNTHESIZER, **settings)
    )


def test_without_ray_the_error_names_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mflight\[ray\]'"):
        service(tmp_path)


@has_ray
def test_settings_are_checked_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="below high_water 4, got 4"):
        service(tmp_path, high_water=4, low_water=4)
    with pytest.raises(ValueError, match="got ray://head:10001"):
        service(tmp_path, address="ray://head:10001")
    with pytest.raises(ValueError, match="num_generators"):
        service(tmp_path, num_generators=0)
    assert list(tmp_path.iterdir()) == []


@has_ray
def test_what_the_driver_says_is_told_once_and_a_dead_driver_has_no_generators(tmp_path, caplog):
    running = service(tmp_path)
    said = RayStatus(pid=1, alive=2, num_deaths=1, messages=["Ray generator 1 was lost"])
    said.write(tmp_path)
    report = running.poll()
    assert report.messages == ("Ray generator 1 was lost",)
    assert report.messages[0] in caplog.text
    assert (report.alive, report.restarting, report.num_deaths) == (0, 0, 1)
    said.messages.append("Ray generator 0 was lost")
    said.write(tmp_path)
    assert running.poll().messages == ("Ray generator 0 was lost",)
    assert running.poll().messages == ()
