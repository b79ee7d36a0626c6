# SPDX-License-Identifier: Apache-2.0
"""The effect of a change, image by image, and the alarms of the payload check."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_recon.audit.interventions import Advice, advice_of, advice_sentence, warned_of
from lightning_recon.audit.load import Intervention
from lightning_recon.audit.run import Outcome, read_outcome

MakeRun = Callable[..., Path]
NAMES = ["cat/a", "cat/b"]


def outcome(folder: Path, attack: str | None = None) -> Outcome:
    found = read_outcome(folder, attack)
    assert found is not None
    return found


def test_decibels_are_compared_on_the_same_pictures(make_run: MakeRun) -> None:
    before = outcome(make_run("before", gains=((20.0, 22.0), (10.0, 12.0)), names=NAMES))
    weak = outcome(make_run("weak", attack="weak", gains=((1.0, 1.0), (1.0, 1.0)), names=NAMES))
    # Two pictures of three were attacked before: 21 -> 15 and 11 -> 9; the third does not count.
    after = outcome(
        make_run("after", attack="weak", gains=((15.0,), (9.0,), (99.0,)), names=["cat/a", "cat/b", "dog/c"])
    )
    found = advice_of(Intervention("more", "little", (before, weak), (after,)), 0.5)
    assert (found.before.attack, found.after.attack) == ("ours", "weak")
    assert (found.psnr_before, found.psnr_after) == (28.0, 24.0)
    half = 12.706204736432095 * (6.0 - 2.0) / math.sqrt(2) / math.sqrt(2)  # Student, one degree of freedom
    assert found.bought.mean == 4.0
    assert found.bought.low == pytest.approx(4.0 - half)
    assert found.level == "recognisable"  # 15 and 9 dB above a mean image


def test_what_is_still_seen_is_said_of_the_same_pictures(make_run: MakeRun) -> None:
    before = outcome(make_run("before", gains=((5.0,), (5.1,)), names=NAMES))
    after = outcome(make_run("after", gains=((5.0,), (5.1,), (60.0,)), names=[*NAMES, "dog/c"]))
    assert advice_of(Intervention("more", "", (before,), (after,)), 0.5).level == "something"


@pytest.mark.parametrize("originals", [True, False])
def test_of_other_pictures_only_the_gains_are_compared(make_run: MakeRun, originals: bool) -> None:
    before = outcome(make_run("before", gains=((20.0,), (10.0,)), originals=originals))
    after = outcome(make_run("after", seed=1, gains=((5.0,), (6.0,)), originals=originals))
    found = advice_of(Intervention("other", "", (before,), (after,)), 0.5)
    assert (found.bought.mean, found.bought.low) == (pytest.approx(9.5), None)


def test_the_best_change_is_named_only_if_it_is_sure(make_run: MakeRun) -> None:
    def advice(name: str, gains: tuple[float, float]) -> list[Advice]:
        before = outcome(make_run(f"before {name}", gains=((20.0,), (21.0,)), names=NAMES))
        after = outcome(make_run(f"after {name}", gains=tuple((gain,) for gain in gains), names=NAMES))
        return [advice_of(Intervention(name, "", (before,), (after,)), 0.5)]

    large, small, unsure = advice("large", (10.0, 11.0)), advice("small", (19.0, 20.0)), advice("unsure", (1.0, 19.0))
    assert "“large” has the largest effect: the strongest attack loses 10.0 dB" in advice_sentence([*small, *large])
    assert "No tested change" in advice_sentence(unsure)
    assert "No tested change" in advice_sentence(advice("worse", (22.0, 23.0)))


def test_alarms_are_counted_by_attack(make_run: MakeRun) -> None:
    found = warned_of(
        [
            outcome(make_run("a", alarms=["energy_share"])),
            outcome(make_run("b", alarms=[])),
            outcome(make_run("c")),  # nobody looked
            outcome(make_run("d", attack="quiet")),
        ]
    )
    (ours,) = found
    assert (ours.attack, ours.refused, ours.runs) == ("ours", 1, 2)
    assert ours.checks == ("one layer that takes nearly all of the gradient",)
