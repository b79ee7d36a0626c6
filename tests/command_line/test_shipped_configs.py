# SPDX-License-Identifier: Apache-2.0
"""Shipped configs are listed and printed."""

import pytest

from lightning_recon.command_line.shipped_configs import CONFIGS, shipped

from .typed import answer


def test_shipped_configs_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(capsys, "configs")
    for name, path in shipped().items():
        (line,) = [line for line in said.splitlines() if line.startswith(f"{name} ")]
        assert line.split(maxsplit=1)[1].startswith(path.read_text().splitlines()[0].removeprefix("# "))
    assert {"quickstart.yaml", "attack/paper.yaml", "defense/dp_sgd.yaml", "trainer/cpu.yaml"} <= shipped().keys()
    for name in ("attack/paper.yaml", "attack/paper", "configs/attack/paper.yaml"):
        assert answer(capsys, "configs", name) == (CONFIGS[1] / "attack/paper.yaml").read_text()
