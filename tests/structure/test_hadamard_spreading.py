# SPDX-License-Identifier: Apache-2.0
"""Rows spread over tensors that are clipped one by one."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_recon.exchange import ClientUpdate, Task
from lightning_recon.structure import WaterFilling
from lightning_recon.structure.coding.hadamard_spreading import block_count, block_width, distortion, gather, spread
from lightning_recon.structure.layer import InferenceStructure, structure_bytes

Photographs = Callable[[int], Tensor]
MakeTask = Callable[..., Task]
Release = Callable[..., ClientUpdate]


@pytest.mark.parametrize(("inputs", "blocks"), [(1, 1), (5, 1), (5, 8), (100, 8), (1000, 32), (64, 64)])
def test_spreading_is_an_isometry_that_is_undone(inputs: int, blocks: int) -> None:
    rows = torch.randn(3, inputs, dtype=torch.float64)
    entries = spread(rows, blocks)
    if blocks > 1:
        assert entries.shape == (3, blocks * block_width(inputs, blocks))
    torch.testing.assert_close(entries.norm(dim=1), rows.norm(dim=1))
    torch.testing.assert_close(gather(entries, inputs, blocks), rows)


def test_a_lone_input_is_dealt_to_every_block_alike() -> None:
    lone = torch.zeros(200)
    lone[7] = 3.0
    energies = spread(lone, 16).view(16, -1).square().sum(dim=1)
    torch.testing.assert_close(energies, torch.full((16,), 9.0 / 16))


@pytest.mark.parametrize("blocks", [4, 16])
def test_the_distortion_is_what_clipping_each_block_leaves(blocks: int) -> None:
    power = torch.arange(1, 401, dtype=torch.float64) ** -1.5
    power /= power.sum()
    rows = torch.randn(4000, 400, dtype=torch.float64) * power.sqrt()
    rows /= rows.norm(dim=1, keepdim=True)
    entries = spread(rows, blocks).unflatten(-1, (blocks, -1))
    clipped = entries / (entries.norm(dim=-1, keepdim=True) * math.sqrt(blocks))
    errors = gather(clipped.flatten(1), 400, blocks) - rows
    # The law is for random signs of inputs of exactly these powers; normal ones scatter a little less once normalised.
    assert float(errors.square().mean().sqrt()) == pytest.approx(distortion(power, blocks), rel=0.15)


def test_more_noise_asks_for_more_tensors() -> None:
    power = torch.full((4096,), 1 / 4096)
    counts = [block_count(8, power, noise) for noise in (0.0, 1e-4, 1e-3, 1e-2, 1.0)]
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[-1] == 64


def test_blocks_leave_the_network_as_it_was(task: MakeTask, photographs: Photographs) -> None:
    payload = WaterFilling(nulls=5).payload(task(16, 4, 0.03, "update", True))
    structure, images = InferenceStructure(payload), photographs(16)[:4]
    assert structure.spec.blocks > 1
    assert not bool(structure(images).any())
    assert structure_bytes(payload) == 4 * sum(parameter.numel() for parameter in structure.parameters())
    # The zeros, which the noise is measured on, stay zero.
    assert not bool(structure.encode(images)[:, -5:].any())


@pytest.mark.parametrize(("granularity", "count", "batch", "noise"), [("sample", 3, 1, 0.01), ("update", 8, 8, 0.003)])
def test_spreading_wins_back_what_clipping_by_layer_takes(
    task: MakeTask, release: Release, photographs: Photographs, granularity: str, count: int, batch: int, noise: float
) -> None:
    images = photographs(32)[:count]

    def quality(structure: WaterFilling, per_layer: bool) -> float:
        errors = []
        announced = task(32, batch, noise, granularity, per_layer)
        payload = structure.payload(announced)
        for part in images.split(batch):
            decoded = structure.decode(payload, announced, release(payload, announced, part))
            assert len(decoded.images) == batch
            distance = (decoded.images[:, None] - part).square().mean(dim=(2, 3, 4))
            errors += distance.min(dim=0).values.tolist()
        return -10 * math.log10(sum(errors) / len(errors))

    whole = quality(WaterFilling(), False)
    spread_out = quality(WaterFilling(), True)
    single = quality(WaterFilling(spread=False), True)
    # One tensor beside the network's three has a quarter of the power; 32 have nearly all.
    assert single + 1.5 < spread_out < whole + 0.5
    assert spread_out > whole - 1.0
