# SPDX-License-Identifier: Apache-2.0
"""Intervals against theory and simulation, and thresholds of hand-made cases."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_recon.audit.aggregate import Point, Threshold, interval_of, points_of, smallest_noise

from .pages import outcome

MakeRun = Callable[..., Path]


def test_the_interval_is_students_over_pictures() -> None:
    found = interval_of({"a": [1.0, 3.0], "b": [4.0, 4.0], "c": [6.0, 6.0]})  # means 2, 4, 6
    half = 4.302652729911275 * 2 / math.sqrt(3)  # the table's 0.975 quantile with two degrees of freedom
    assert (found.mean, found.pictures) == (4.0, 3)
    assert found.high == pytest.approx(4 + half)
    assert found.low == pytest.approx(4 - half)
    assert interval_of({"a": [1.0, 3.0]}).low is None


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Pictures differ by 3 dB, the draws of one by 1 dB: taking draws for pictures would hold it far too rarely."""
    generator, held, trials = np.random.default_rng(0), 0, 2000
    for _ in range(trials):
        pictures = 3 * generator.standard_normal((6, 1)) + generator.standard_normal((6, 4))
        found = interval_of({index: list(map(float, row)) for index, row in enumerate(pictures)})
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
    assert abs(held / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


def test_seeds_are_pooled_and_a_picture_counts_once(make_run: MakeRun) -> None:
    one = make_run("one", seed=0, gains=((1.0,), (2.0,)), names=["cat/a", "cat/b"])
    two = make_run("two", seed=1, gains=((3.0,), (6.0,)), names=["cat/a", "cat/c"])
    (point,) = points_of([outcome(one), outcome(two)])
    assert point.gain.pictures == 3
    assert point.gain.mean == pytest.approx((2.0 + 2.0 + 6.0) / 3)
    assert point.best == 18.0


def test_without_originals_there_is_a_gain_but_no_interval(make_run: MakeRun) -> None:
    (point,) = points_of([outcome(make_run("bare", originals=False))])
    assert point.gain.mean == pytest.approx(21.0)
    assert point.gain.low is None
    assert point.psnr.low is not None
    assert smallest_noise([point], 0.5) is None


def curve(make_run: MakeRun, attack: str, gains: dict[float, tuple[float, float]]) -> list[Point]:
    folders = [make_run(f"{attack}{z}", attack, z=z, gains=[[gain] for gain in pair]) for z, pair in gains.items()]
    return points_of([outcome(folder) for folder in folders])


def test_the_smallest_noise_is_an_audited_one(make_run: MakeRun) -> None:
    # With two pictures an interval is 12.7 half-differences wide.
    ours = curve(make_run, "ours", {0.1: (20.0, 20.1), 0.3: (0.4, 0.5), 1.0: (0.1, 0.1), 3.0: (0.0, 0.0)})
    assert smallest_noise(ours, 0.5) == Threshold(exceeded=0.1, mean=0.3, sure=1.0)
    weak = curve(make_run, "weak", {0.1: (0.0, 0.0), 0.3: (0.0, 0.0), 1.0: (0.0, 0.0), 3.0: (0.0, 0.0)})
    assert smallest_noise(weak, 0.5) == Threshold(exceeded=None, mean=0.1, sure=0.1)
    assert smallest_noise([*ours, *weak], 0.5) == smallest_noise(ours, 0.5)
    assert smallest_noise(ours[:1], 0.5) == Threshold(exceeded=0.1, mean=None, sure=None)


def test_less_noise_that_happens_to_keep_within_does_not_count(make_run: MakeRun) -> None:
    odd = curve(make_run, "odd", {0.1: (0.0, 0.0), 0.3: (5.0, 5.0), 1.0: (0.0, 0.0)})
    assert smallest_noise(odd, 0.5) == Threshold(exceeded=0.3, mean=1.0, sure=1.0)


@pytest.mark.parametrize(
    "other",
    [
        {"delta": 1e-6},
        {"adjacency": "replace_one"},
        {"per_layer": True},
        {"rounds": 2},
        {"data": {"root": "/elsewhere/photos"}},
        {"data": {"root": "/photos", "masks": {"class_path": "lightning_recon.data.NoMasks"}}},
        {"data": {"root": "/photos", "image_size": 16}},
        {"data": {"root": "/photos", "source": "cifar100"}},
    ],
)
def test_what_is_not_the_same_is_not_pooled(make_run: MakeRun, other: dict[str, Any]) -> None:
    base = {"data": {"root": "/photos"}}
    one, two = outcome(make_run("one", **base)), outcome(make_run("two", seed=1, **(base | other)))
    assert len(points_of([one, two])) == 2
    assert one.setting != two.setting
    # Seeds and the number of clients are.
    same = outcome(make_run("same", seed=1, data={"root": "/photos", "seed": 1, "clients": 7}))
    assert len(points_of([one, same])) == 1
