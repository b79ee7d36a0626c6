# SPDX-License-Identifier: Apache-2.0
"""Alarms of the model inspection, counted by attack."""

from collections.abc import Callable
from pathlib import Path

from lightning_recon.audit.payload_checks import payload_checks_of

from .pages import outcome

MakeRun = Callable[..., Path]


def test_alarms_are_counted_by_attack(make_run: MakeRun) -> None:
    found = payload_checks_of(
        [
            outcome(make_run("a", alarms=["energy_share"])),
            outcome(make_run("b", alarms=[])),
            outcome(make_run("c")),  # not inspected
            outcome(make_run("d", attack="quiet")),
        ]
    )
    (ours,) = found
    assert (ours.attack, ours.refused, ours.runs) == ("ours", 1, 2)
    assert ours.checks == ("one layer that has nearly all of the gradient's energy",)
