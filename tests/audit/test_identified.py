# SPDX-License-Identifier: Apache-2.0
"""An attack that identifies victims leaks, although its images are no better than the mean image."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_recon.audit.aggregate import points_of
from lightning_recon.audit.identified import beats_a_guess, identified_of
from lightning_recon.audit.verdict import level_of

from .pages import Page, outcome, written

MakeRun = Callable[..., Path]

WORSE = ((-5.0, -5.2),) * 8  # dB: noisy pixels


@pytest.mark.parametrize(("count", "beats"), [(0, False), (1, False), (3, False), (4, True), (8, True)])
def test_a_share_counts_once_its_whole_interval_is_above_a_guess(make_run: MakeRun, count: int, beats: bool) -> None:
    (point,) = points_of([outcome(make_run("a", gains=WORSE, identified=[n < count for n in range(8)]))])
    found = identified_of(point)
    assert found is not None
    assert (found.share, found.images, found.gallery, found.chance) == (count / 8, 8, 100, 0.1)
    assert found.beats_a_guess is beats_a_guess(point) is beats  # 3 of 8: 9 to 76 %; 4 of 8: 16 to 84 %
    assert level_of(point, 0.5) == ("identified" if beats else "nothing")


def test_records_without_a_gallery_say_nothing(make_run: MakeRun) -> None:
    (point,) = points_of([outcome(make_run("a", gains=WORSE))])
    assert identified_of(point) is None
    assert level_of(point, 0.5) == "nothing"


def test_better_images_keep_their_level(make_run: MakeRun) -> None:
    (point,) = points_of([outcome(make_run("a", gains=((3.0, 3.0),) * 8, ssim=0.2, identified=[True] * 8))])
    assert level_of(point, 0.5) == "something"


@pytest.mark.parametrize("detected", [True, False])
def test_the_report_does_not_call_it_harmless(make_run: MakeRun, tmp_path: Path, detected: bool) -> None:
    runs = [
        outcome(make_run(f"z{z}", z=z, gains=WORSE, ssim=0.1, identified=[known] * 8, detected=detected))
        for z, known in ((0.1, True), (0.6, False))
    ]
    text = Page(written(tmp_path, *runs)).text
    assert "no attack exceeded the mean image by more than 0.5 dB, but one identified victims, under 1" in text
    assert "identifies 100 % of 8 images among 100 (a guess identifies 10 %)." in text
    assert "This is not enough to hide who the victims are: at z = 0.1, an attack identifies them." in text
    assert "no better than the mean image, but identified" in text
    assert "reveals nothing" not in text
