# SPDX-License-Identifier: Apache-2.0
"""The effect of an intervention, image by image where both sides have the same images."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_recon.audit.interventions import InterventionEffect, best_intervention_sentence, effect_of
from lightning_recon.audit.load import Intervention

from .pages import outcome

MakeRun = Callable[..., Path]
NAMES = ["cat/a", "cat/b"]


def test_the_reduction_is_measured_on_common_images(make_run: MakeRun) -> None:
    before = outcome(make_run("before", gains=((20.0, 22.0), (10.0, 12.0)), names=NAMES))
    weak = outcome(make_run("weak", attack="weak", gains=((1.0, 1.0), (1.0, 1.0)), names=NAMES))
    # Two pictures of three were attacked before: 21 -> 15 and 11 -> 9; the third does not count.
    after = outcome(
        make_run("after", attack="weak", gains=((15.0,), (9.0,), (99.0,)), names=["cat/a", "cat/b", "dog/c"])
    )
    found = effect_of(Intervention("more", "little", (before, weak), (after,)), 0.5)
    assert (found.before.attack, found.after.attack) == ("ours", "weak")
    assert (found.psnr_before, found.psnr_after) == (28.0, 24.0)
    half = 12.706204736432095 * (6.0 - 2.0) / math.sqrt(2) / math.sqrt(2)  # Student, one degree of freedom
    assert found.reduction.mean == 4.0
    assert found.reduction.low == pytest.approx(4.0 - half)
    assert found.level == "recognisable"  # 15 and 9 dB above a mean image


def test_the_level_is_that_of_common_images(make_run: MakeRun) -> None:
    before = outcome(make_run("before", gains=((5.0,), (5.1,)), names=NAMES))
    after = outcome(make_run("after", gains=((5.0,), (5.1,), (60.0,)), names=[*NAMES, "dog/c"]))
    assert effect_of(Intervention("more", "", (before,), (after,)), 0.5).level == "something"


@pytest.mark.parametrize("originals", [True, False])
def test_without_common_images_the_gains_are_compared(make_run: MakeRun, originals: bool) -> None:
    before = outcome(make_run("before", gains=((20.0,), (10.0,)), originals=originals))
    after = outcome(make_run("after", seed=1, gains=((5.0,), (6.0,)), originals=originals))
    found = effect_of(Intervention("other", "", (before,), (after,)), 0.5)
    assert (found.reduction.mean, found.reduction.low) == (pytest.approx(9.5), None)


def test_a_seed_without_an_index_of_its_true_images_counts_for_none_of_them(make_run: MakeRun) -> None:
    before = outcome(make_run("before", gains=((20.0,), (20.1,)), names=NAMES))
    after = outcome(make_run("after", gains=((5.0,), (5.1,)), names=NAMES))
    other = outcome(make_run("other", seed=1, gains=((7.0,), (7.1,)), originals=False))
    found = effect_of(Intervention("more", "", (before,), (after, other)), 0.5)
    assert found.reduction.mean == pytest.approx(15.0)


def test_the_best_intervention_is_named_only_if_its_interval_is_above_zero(make_run: MakeRun) -> None:
    def effects(name: str, gains: tuple[float, float]) -> list[InterventionEffect]:
        before = outcome(make_run(f"before {name}", gains=((20.0,), (21.0,)), names=NAMES))
        after = outcome(make_run(f"after {name}", gains=tuple((gain,) for gain in gains), names=NAMES))
        return [effect_of(Intervention(name, "", (before,), (after,)), 0.5)]

    large, small = effects("large", (10.0, 11.0)), effects("small", (19.0, 20.0))
    unsure, worse = effects("unsure", (1.0, 19.0)), effects("worse", (22.0, 23.0))
    sentence = best_intervention_sentence([*small, *large])
    assert "is “large”: it lowers the PSNR of the strongest attack by 10.0 dB" in sentence
    assert "No tested change reliably reduces the leakage." in best_intervention_sentence(unsure)
    assert "No tested change reliably reduces the leakage." in best_intervention_sentence(worse)
