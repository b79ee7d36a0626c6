# SPDX-License-Identifier: Apache-2.0
"""Numbers in a report."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_recon.audit.aggregate import points_of
from lightning_recon.audit.formatting import guarantee_of, noise_of, number

from .pages import outcome

MakeRun = Callable[..., Path]


def test_numbers_have_few_digits() -> None:
    assert [number(value) for value in (None, 0, 8.0, 0.333, 970.4, 3540, 1.25e7, 2e-4)] == [
        "–", "0", "8", "0.333", "970", "3540", "1.2e7", "2e-4"
    ]  # fmt: skip


DROPPING = {"aggregated": 8, "noise_share": "distributed", "client_dropout": 0.1}


def test_a_guarantee_counts_clients_that_drop_out(make_run: MakeRun) -> None:
    (point,) = points_of([run := outcome(make_run("sums", z=1.0, sums=DROPPING))])
    assert guarantee_of(point).startswith("accounted ε = 4.94 ")
    assert run.epsilon(1, "add_remove") == pytest.approx(4.940, abs=1e-3)
    (point,) = points_of([outcome(make_run("skellam", z=1.0, mechanism="skellam", sums=DROPPING))])
    assert guarantee_of(point) == "no known ε (clients drop out with their noise)"
    (point,) = points_of([outcome(make_run("nothing", z=0.0))])
    assert guarantee_of(point) == "no noise (no finite ε)"


def test_a_guarantee_names_the_updates_that_it_covers(make_run: MakeRun) -> None:
    (point,) = points_of([outcome(make_run("some rounds", z=0.5, sums={"participation": 0.5}))])
    assert guarantee_of(point).startswith("accounted ε = 10 of one client's updates ")
    assert noise_of(0.5, [point]) == "z = 0.5 (accounted ε = 10 of one client's updates)"
    (point,) = points_of([outcome(make_run("every round", z=0.5))])
    assert "of one client" not in guarantee_of(point)
