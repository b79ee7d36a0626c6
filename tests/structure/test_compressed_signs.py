# SPDX-License-Identifier: Apache-2.0
"""Codes of ±1 against clients that compress what they send: what was designed for arrives, in every round."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_recon.exchange import BatchSampling, Compression, Task
from lightning_recon.exchange.compression import Method
from lightning_recon.structure import Digital, Structure, WaterFilling
from lightning_recon.structure.base import Decoded
from lightning_recon.structure.coding.code_plan import HEADER
from lightning_recon.structure.layer import InferenceStructure, structure_bytes
from lightning_recon.structure.layer_spec import LayerSpec
from lightning_recon.structure.sign_readout import _by_pilots
from tests.structure.sign_clients import SIDE, adam, announced, averaged, exact, trained

Photographs = Callable[[int], Tensor]


@pytest.fixture
def images(photographs: Photographs) -> Tensor:
    return (photographs(SIDE)[:4] * 255).round() / 255


def attacked(structure: Structure, task: Task, images: Tensor, seed: int = 0) -> Decoded:
    payload = structure.payload(task)
    return structure.decode(payload, task, averaged(payload, task, images, seed))


def compressing(images: int, noise: float, method: Method, share: float = 1.0, rounds: int = 1) -> Task:
    """A task whose noise over all rounds is given."""
    compression = Compression(method, share=share)
    return announced(images, noise * math.sqrt(rounds), rounds=rounds, compression=compression)


def worst_psnr(images: Tensor, found: Tensor) -> float:
    errors = (found[:, None] - images).square().flatten(2).mean(dim=2).amin(dim=0)
    return float(-10 * errors.max().log10())


@pytest.mark.parametrize("method", ["sign", "top_k", "random_k", "int8", "bfloat16"])
def test_files_survive_compression(images: Tensor, method: str) -> None:
    compression = Compression(method, share=0.5 if method == "random_k" else 0.2)  # type: ignore[arg-type]
    task = announced(4, 1e-4, compression=compression)
    structure = Digital(upload_limit=3_000_000)
    payload = structure.payload(task)
    assert LayerSpec.of(payload).signs == (method != "bfloat16")
    decoded = structure.decode(payload, task, trained(payload, task, images))
    assert exact(images, decoded.images) >= 3


def test_codewords_are_repeated_where_less_arrives_than_the_least_rate_needs(images: Tensor) -> None:
    task = announced(4, 1e-4, compression=Compression("random_k", share=0.05))
    structure = Digital(upload_limit=6_000_000)
    payload = structure.payload(task)
    plan = LayerSpec.of(payload).digital
    assert plan is not None
    assert plan.repeats > 1
    assert structure_bytes(payload) <= 6_000_000
    inputs = InferenceStructure(payload).encode(images)
    sketch = payload.tensors["dither"].numel()
    words = inputs[:, sketch : sketch + plan.words].view(4, plan.repeats, -1)
    assert torch.equal(words, words[:, :1].expand_as(words))
    decoded = structure.decode(payload, task, trained(payload, task, images))
    assert exact(images, decoded.images) == 4


@pytest.mark.parametrize("arrived", [0, 12])
def test_files_are_decoded_although_little_of_their_headers_arrives(images: Tensor, arrived: int) -> None:
    task = announced(4, 1e-4, compression=Compression("random_k", share=0.5))
    structure = Digital(upload_limit=3_000_000)
    payload = structure.payload(task)
    plan = LayerSpec.of(payload).digital
    assert plan is not None
    assert plan.repeats == 1
    update = trained(payload, task, images)
    header = payload.tensors["dither"].numel()
    weight = update.gradient["structure.weight"]
    kept = (weight[:, header : header + HEADER] != 0).cumsum(dim=1) <= arrived
    weight[:, header : header + HEADER] *= kept
    found = exact(images, structure.decode(payload, task, update).images)
    assert found == (4 if arrived else 0)  # without a header, rate and sign are unknown


def test_pulses_arrive_at_the_noise_that_they_are_designed_for(images: Tensor) -> None:
    task = compressing(4, 0.003, "top_k", 0.05)
    structure = Digital(upload_limit=20_000_000)
    plan = LayerSpec.of(structure.payload(task)).digital
    assert plan is not None
    assert plan.positions > 1
    assert exact(images, attacked(structure, task, images).images) >= 3  # one has a smaller gradient weight


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_pulses_of_several_rounds_add_up(images: Tensor, noise: float) -> None:
    # What arrives in one round may cancel what arrived in another, or stand alone.
    task = compressing(4, noise, "top_k", 0.05, rounds=3)
    structure = Digital(upload_limit=20_000_000)
    plan = LayerSpec.of(structure.payload(task)).digital
    assert plan is not None
    assert plan.positions > 1
    assert exact(images, attacked(structure, task, images).images) == 4


@pytest.mark.parametrize("structure", [Digital(upload_limit=3_000_000), WaterFilling(units=64)])
def test_an_update_of_zeros_shows_no_image(images: Tensor, structure: Structure) -> None:
    task = compressing(4, 1e-4, "top_k", 0.2)
    payload = structure.payload(task)
    update = trained(payload, task, images)
    nothing = replace(update, gradient={name: torch.zeros_like(one) for name, one in update.gradient.items()})
    decoded = structure.decode(payload, task, nothing)
    assert len(decoded.images) == 0
    assert not decoded.evident


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_signs_of_several_rounds_add_up(images: Tensor, rounds: int) -> None:
    # At the noise that the code is designed for: a mean of two signs is often 0, and looks like two images.
    task = compressing(4, 0.0035, "sign", rounds=rounds)
    assert exact(images, attacked(Digital(upload_limit=20_000_000), task, images, seed=1).images) >= 3


def test_files_are_decoded_although_hardly_any_input_that_is_zero_arrives(images: Tensor) -> None:
    # On average five of 256 show the noise: it is the announced one.
    task = compressing(1, 0.001, "random_k", 0.02)
    structure = Digital(upload_limit=20_000_000)
    payload = structure.payload(task)
    found = [structure.decode(payload, task, trained(payload, task, images[:1], seed)) for seed in range(6)]
    assert sum(exact(images[:1], one.images) for one in found) == 6


@pytest.mark.parametrize("rounds", [2, 4])
def test_random_entries_of_several_rounds_add_up(images: Tensor, rounds: int) -> None:
    # Entries that arrive in one round and in two have unequal noise, which is no second image.
    task = compressing(4, 1e-3, "random_k", 0.1, rounds)
    assert exact(images, attacked(Digital(upload_limit=20_000_000), task, images).images) == 4


@pytest.mark.parametrize("more", [1.0, 1.2])
def test_noise_alone_is_no_image(images: Tensor, more: float) -> None:
    task = compressing(4, 1e-3, "random_k", 0.02)
    structure = Digital(upload_limit=20_000_000)
    payload = structure.payload(task)
    update = trained(payload, replace(task, noise_multiplier=more * task.noise_multiplier), images)
    silent = trained(payload, replace(task, noise_multiplier=0.0), images)
    noise = {name: torch.where(one != 0, one - silent.gradient[name], 0) for name, one in update.gradient.items()}
    assert len(structure.decode(payload, task, replace(update, gradient=noise)).images) == 0


@pytest.mark.parametrize("few", [False, True])
def test_pilots_of_noise_are_not_taken_for_an_image(few: bool) -> None:
    noise = torch.randn(200_000, 64, generator=torch.Generator().manual_seed(0))
    # Of the largest entries, what arrives of noise has nearly the same magnitude; of random ones it is normal.
    arrived = torch.rand(noise.shape, generator=torch.Generator().manual_seed(1)) < 0.1 if few else noise.abs() > 1.6
    assert _by_pilots(torch.where(arrived, noise, 0.0), len(noise), few) == []


def test_pulses_need_independent_rounds() -> None:
    task = compressing(4, 1e-4, "top_k", 0.2, rounds=3)
    plans = [
        LayerSpec.of(Digital(upload_limit=3_000_000).payload(replace(task, noise_bands=bands))).digital
        for bands in (1, 3)
    ]
    assert [plan is not None and plan.positions > 1 for plan in plans] == [True, False]


def test_more_noise_than_announced_is_measured(images: Tensor) -> None:
    task = compressing(1, 3e-4, "random_k", 0.1)
    structure = Digital(upload_limit=20_000_000)
    payload = structure.payload(task)
    noisier = trained(payload, replace(task, noise_multiplier=6e-4), images[:1])
    assert exact(images[:1], structure.decode(payload, task, noisier).images) == 1


def test_without_noise_empty_rows_are_no_images(images: Tensor) -> None:
    # Every zero arrives as a positive number.
    found = attacked(WaterFilling(), compressing(4, 0.0, "sign"), images).images
    assert worst_psnr(images, found) > 20


def test_a_few_pilots_suffice_where_nothing_hides_them(images: Tensor) -> None:
    decoded = attacked(WaterFilling(), compressing(1, 0.0, "random_k", 0.005), images[:1])
    assert decoded.evident
    assert worst_psnr(images[:1], decoded.images) > 10
    empty = compressing(1, 0.1, "random_k", 0.005)
    assert len(attacked(WaterFilling(), empty, images[:1]).images) == 0


def test_own_rows_need_the_same_images_in_every_round() -> None:
    same = announced(4, 1e-4, local=adam(), rounds=4)
    changing = replace(same, sampling=BatchSampling("shuffle", 16))
    for structure in (Digital(upload_limit=3_000_000), WaterFilling()):
        assert LayerSpec.of(structure.payload(same)).own_units
        assert not LayerSpec.of(structure.payload(changing)).own_units
