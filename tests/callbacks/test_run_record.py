# SPDX-License-Identifier: Apache-2.0
"""What the callbacks add to the record of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Fit = Callable[..., dict[str, Any]]


def test_perceptual_distances_are_recorded_where_they_can_be_had(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "lpips_mean" not in fit(tmp_path / "without", "--trainer.max_steps", "0")["summary"]
    monkeypatch.setattr(
        "lightning_recon.callbacks.run_record.lpips_per_image",
        lambda pictures, truth: pictures[:, 0, 0, 0] * 0 + 0.25,
    )
    assert fit(tmp_path / "with", "--trainer.max_steps", "0")["summary"]["lpips_mean"] == 0.25
