# SPDX-License-Identifier: Apache-2.0
"""Numbers in a report."""

from collections.abc import Callable
from pathlib import Path

from lightning_recon.audit.formatting import number

MakeRun = Callable[..., Path]


def test_numbers_have_few_digits() -> None:
    assert [number(value) for value in (None, 0, 8.0, 0.333, 970.4, 3540, 1.25e7, 2e-4)] == [
        "–", "0", "8", "0.333", "970", "3540", "1.2e7", "2e-4"
    ]  # fmt: skip
