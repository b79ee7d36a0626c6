# SPDX-License-Identifier: Apache-2.0
"""P-values of correct clients are as small as they say, and no smaller."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from lightning_recon.privacy.parameters import Privacy
from lightning_recon.verification.canary_scores import CanaryReach
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.clipping_checks import displacement, layers_check
from lightning_recon.verification.independence_checks import coordinates_check
from lightning_recon.verification.probes import Canaries
from lightning_recon.verification.releases import Releases

REPEATS = 3000


def share_below(p_values: list[float], limit: float) -> float:
    return sum(one < limit for one in p_values) / len(p_values)


@pytest.mark.parametrize("size", [4, 5, 10])
def test_independent_coordinates_at_all_distances(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    found = [coordinates_check({"bias": torch.randn(8, size, generator=generator)}).p_value for _ in range(REPEATS)]
    p_values = [one for one in found if one is not None]
    assert len(p_values) == REPEATS
    for limit in (0.05, 0.01):
        assert 0.3 * limit < share_below(p_values, limit) < 1.4 * limit


def test_numbers_half_of_a_tensor_apart_that_are_related_are_found() -> None:
    rows = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    rows[:, 5:] = 0.8 * rows[:, :5] + 0.6 * rows[:, 5:]
    found = coordinates_check({"bias": rows})
    assert found.p_value is not None
    assert found.p_value < 1e-6
    assert found.remark == "numbers of bias at distance 5 are related"


@pytest.mark.parametrize("per_layer", [False, True])
def test_layers_of_a_correct_clip_under_large_noise(per_layer: bool) -> None:
    """Scores of few canaries may be far off, and even negative."""
    claims = Claims(Privacy(1.0, 1.0, "update", per_layer=per_layer), 8)
    canaries, noise = Canaries(32, 10, (3, 8, 8)), torch.Generator().manual_seed(0)
    reach = (8**-0.5, 0.5) if per_layer else (1.0, 1.0)  # C over the root of 8 tensors in each of them
    p_values = []
    for _ in range(REPEATS):
        one, both = (
            CanaryReach(2.0, far + torch.randn(8, generator=noise).double(), torch.zeros(0), 1.0) for far in reach
        )
        releases = cast(Releases, SimpleNamespace(canaries={"both layers": both}, tensors=8))
        p_value = layers_check(displacement(one, claims), claims, canaries, releases).p_value
        p_values.append(1.0 if p_value is None else p_value)
    for limit in (0.05, 0.01, 0.001):
        assert share_below(p_values, limit) < 1.4 * limit
    assert min(p_values) > 0
