# SPDX-License-Identifier: Apache-2.0
"""Distances between updates: the discrepancy principle."""

import math

import pytest
import torch

from lightning_recon.attack.inversion.distances import explained, fit_is_visible, noise_std
from lightning_recon.exchange import Task


@pytest.mark.parametrize("visible", [True, False])
def test_a_candidate_is_explained_once_its_residual_is_that_of_noise(visible: bool) -> None:
    z = 1e-3 if visible else 1.0
    task = Task((3, 8, 8), 5, 1, 1, "convnet", "update", False, 0.1, z, 1, 4)
    numbers, limit = 10_000, 10_000 * noise_std(task) ** 2
    assert fit_is_visible(task, numbers) == visible
    residuals = torch.tensor([0.99, 1.01, math.nan]) * limit
    assert explained(residuals, task, numbers).tolist() == [visible, False, False]
