import re

import pytest

from mflight.proof.difference import paired_difference
from mflight.proof.plots import bar_track, curve_plot, interval_track, mean_curve, minus, scale_of, signed


def test_curves_are_averaged_where_all_seeds_have_a_point_and_at_their_ends():
    one, other = [(100, 10.0), (200, 20.0), (300, 30.0)], [(100, 14.0), (250, 28.0)]
    assert mean_curve([one, other]) == [
        (100.0, 12.0, pytest.approx(8**0.5)),
        (275, 29.0, pytest.approx(2**0.5)),
    ]
    assert mean_curve([one]) == [(100.0, 10.0, 0.0), (200.0, 20.0, 0.0), (300, 30.0, 0.0)]
    assert mean_curve([[], []]) == []


def test_a_plot_holds_every_arm_within_its_frame_and_tells_the_ends():
    plot = curve_plot("AP", {"synthesis": [[(10, 5.0), (20, 9.0)]], "real_only": [[(10, 3.0), (20, 7.0)]]})
    assert "synthesis ends at 9.0, real only ends at 7.0" in plot
    assert plot.count("data-arm") == 2
    points = [
        tuple(map(float, pair.split(",")))
        for one in re.findall(r'points="(.+?)"', plot)
        for pair in one.split()
    ]
    assert len(points) == 2 * (4 + 2)
    assert all(0 <= x <= 400 and 0 <= y <= 250 for x, y in points)
    assert [text for text in (">5<", ">10<", ">15<", ">20<") if text not in plot] == []
    few = curve_plot("AP", {"synthesis": [[(1, 0.5), (2, 0.9)]]})
    assert ">1<" in few and ">2<" in few and "0.5<" in few, "there are no half steps"
    assert curve_plot("APr", {"synthesis": [[]]}) == ""


def test_intervals_and_bars_are_placed_by_percent():
    track = interval_track(paired_difference([0.0, 0.0], [1.0, 3.0]), low=-20.0, high=20.0)
    # mean 2; t(0.975, 1) = 12.7062: half width 12.7062, from -10.7062 to 14.7062
    assert 'class="dot" style="left:55.00%"' in track
    assert 'class="span" style="left:23.23%;right:13.23%"' in track
    assert "track even" in track and 'class="zero" style="left:50.00%"' in track
    assert "left:50.00%;right:25.00%" in bar_track(10.0, -20.0, 20.0, "good")
    assert "left:25.00%;right:50.00%" in bar_track(-10.0, -20.0, 20.0, "bad")
    assert interval_track(paired_difference([None], [None]), -1.0, 1.0) == ""


def test_a_wide_interval_does_not_flatten_the_scale():
    low, high = scale_of([paired_difference([0.0, 0.0], [1.0, 3.0])])
    assert (low, high) == (pytest.approx(-4.48), pytest.approx(4.48))


def test_minus_is_for_numbers_only():
    assert minus("x-ray -1.0, 3-4") == "x-ray \N{MINUS SIGN}1.0, 3-4"
    assert signed(-0.04) == "+0.0"
