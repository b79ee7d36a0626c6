# SPDX-License-Identifier: Apache-2.0
"""What `recon validate` says about a client's release is what the client would release."""

import math
from collections.abc import Callable
from typing import Literal

import pytest

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.exchange import ServerPayload

BATCH = 3
Granularity = Literal["sample", "update"]
Clients = Callable[..., VictimClient]
Payloads = Callable[..., ServerPayload]


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_preview_describes_the_release(a_client: Clients, a_payload: Payloads, granularity: Granularity) -> None:
    client = a_client(privacy=Privacy(0.5, 0.01, granularity))
    release = client.preview(a_payload(strength=1e4), 0)
    assert len(release.norms) == (BATCH if granularity == "sample" else 1)
    for before, factor in zip(release.norms, release.clip_factors, strict=True):
        assert before * factor == pytest.approx(0.5)
    assert 0.99 < release.structure_share <= 1
    assert client.preview(ServerPayload(), 0).structure_share == 0
    update = client.share(a_payload(strength=1e4), 0, 0, 0)
    assert release.parameters == sum(tensor.numel() for tensor in update.gradient.values())
    assert release.noise_norm == pytest.approx(0.005 * math.sqrt(release.parameters))


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_per_layer_clipping_bounds_what_a_structure_gets(
    a_client: Clients, a_payload: Payloads, granularity: Granularity
) -> None:
    client = a_client(privacy=Privacy(0.5, 0.0, granularity, per_layer=True))
    release, update = client.preview(a_payload(strength=1e6), 0), client.share(a_payload(strength=1e6), 0, 0, 0)
    shipped = [name for name in update.gradient if name.startswith("structure.")]
    assert release.tensors == len(update.gradient)
    assert release.structure_bound == len(shipped) / release.tensors
    # All its tensors reach their bound C/sqrt(L) here, however small the others are.
    voices = BATCH if granularity == "sample" else 1
    energies = {name: float(tensor.double().square().sum()) for name, tensor in update.gradient.items()}
    if granularity == "update":
        assert sum(energies[name] for name in shipped) == pytest.approx(release.structure_bound * 0.25)
        assert release.structure_share == pytest.approx(
            sum(energies[name] for name in shipped) / sum(energies.values())
        )
    assert release.structure_share >= release.structure_bound * (1 - 1e-6)
    assert all(
        factor * norm <= 0.5 * (1 + 1e-6) for factor, norm in zip(release.clip_factors, release.norms, strict=True)
    )
    assert len(release.norms) == voices


def test_one_clip_bounds_a_structure_by_nothing(a_client: Clients, a_payload: Payloads) -> None:
    client = a_client(privacy=Privacy(0.5))
    assert client.preview(a_payload(), 0).structure_bound == 1
    assert client.preview(ServerPayload(), 0).structure_bound == 0
