# SPDX-License-Identifier: Apache-2.0
"""Sums of whole numbers modulo another, with noise of several mechanisms; dropouts; clipping norms that adapt."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.client.clipping_norms import ClippingNorms
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.client.quantize import modular_sum, quantized
from lightning_recon.data.sources import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, Quantization, ServerPayload, Task, task_of_sums
from lightning_recon.privacy.adaptive_clipping import AdaptiveClip

Payloads = Callable[..., ServerPayload]
Batches = Callable[[int], ClientBatch]
Make = Callable[..., VictimClient]
FINE = Quantization(clipping_range=4.0, quantization_range=1 << 16, modulus_range=1 << 20)


@pytest.fixture
def a_group(networks: dict[str, str], a_batch: Batches) -> Make:
    def make(privacy: Privacy, **options: object) -> VictimClient:
        client = VictimClient(networks["linear"], 5, privacy=privacy, aggregated=4, noise_seed=0, **options)
        client.bind([a_batch(seed) for seed in range(4)])
        return client

    return make


def rows(client: VictimClient, payload: ServerPayload, draw: int = 0, round: int = 0) -> Tensor:
    return client.share(payload, 0, draw, round).gradient["structure.weight"].double()


def test_rounding_is_unbiased_and_as_flower_does_it() -> None:
    flower = pytest.importorskip("flwr.common.secure_aggregation.quantization", reason="needs flwr")
    coarse = Quantization(clipping_range=2.0, quantization_range=64, modulus_range=256)
    values = torch.linspace(-2.5, 2.5, 1001)
    draws = np.stack(
        [quantized({"w": values}, coarse, lambda _, seed=seed: np.random.default_rng(seed))["w"] for seed in range(400)]
    )
    np.random.seed(0)  # Flower draws from numpy's global generator
    theirs = np.stack([flower.quantize([values.double().numpy()], 2.0, 64)[0] for _ in range(400)]) - 32
    for found in (draws, theirs):
        exact = np.clip(values.double().numpy(), -2, 2) / coarse.step
        assert np.abs(found.mean(0) - exact).max() < 5 * 0.5 / math.sqrt(400)
        share = exact - np.floor(exact)
        assert found.var(0).mean() == pytest.approx((share * (1 - share)).mean(), rel=0.03)
    assert draws.min() == theirs.min() == -32
    assert draws.max() == theirs.max() == 32


def test_sums_wrap_around_and_are_lifted_around_zero() -> None:
    small = Quantization(clipping_range=8.0, quantization_range=16, modulus_range=16)
    parts = [{"w": torch.tensor([3, 5, -4, 0])}, {"w": torch.tensor([4, 5, -5, 0])}]
    assert modular_sum(parts, small)["w"].tolist() == [7.0, -6.0, 7.0, 0.0]
    assert (small.step, small.sum_reach, small.reach) == (1.0, 8.0, 8.0)


@pytest.mark.parametrize("mechanism", ["gaussian", "skellam", "discrete_gaussian"])
def test_noise_and_rounding_of_a_sum_are_as_announced(a_group: Make, a_payload: Payloads, mechanism: str) -> None:
    quiet = a_group(Privacy(2.0, 0.0))
    coarse = replace(FINE, quantization_range=1 << 11)  # steps of 1/256
    noisy = a_group(Privacy(2.0, 0.02, mechanism=mechanism), quantization=coarse)
    payload, std = a_payload(), 2.0 * noisy.task.update_noise
    assert std == pytest.approx(math.hypot(0.02 * 2.0 * math.sqrt(4), coarse.step * math.sqrt(4 / 6)))
    clean = rows(quiet, payload)
    count = sum(t.numel() for t in quiet.share(payload, 0, 0, 0).gradient.values())
    kept = 1.0 if mechanism == "gaussian" else 1 - coarse.step * math.sqrt(count) / 2.0
    noise = torch.stack([rows(noisy, payload, draw) - kept * clean for draw in range(4)])
    assert float(noise.mean()) == pytest.approx(0, abs=5 * std / math.sqrt(noise.numel()))
    assert float(noise.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * noise.numel()))
    steps = rows(noisy, payload) / coarse.step
    assert torch.equal(steps, steps.round())


def test_a_fine_sum_is_the_real_one(a_group: Make, a_payload: Payloads) -> None:
    real, whole = a_group(Privacy(2.0, 0.1)), a_group(Privacy(2.0, 0.1), quantization=FINE)
    difference = rows(real, a_payload()) - rows(whole, a_payload())
    assert float(difference.abs().max()) < 5 * FINE.step  # the same noise, and at most a step a client


def test_the_clip_holds_after_rounding(a_group: Make, a_payload: Payloads) -> None:
    client = a_group(Privacy(2.0, 0.0, mechanism="skellam"), quantization=FINE)
    update = client.share(a_payload(), 0, 0, 0).gradient
    norm = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in update.values()))
    assert norm <= 4 * 2.0


def test_clients_that_drop_out_take_their_noise_with_them(a_group: Make, a_payload: Payloads, tmp_path: Path) -> None:
    client = a_group(Privacy(2.0, 0.1), client_dropout=0.5, quantization=FINE, noise_share="distributed")
    updates = [client.share(a_payload(), 0, 0, number) for number in range(12)]
    assert {update.contributors for update in updates} > {2, 3}
    assert min(update.contributors or 0 for update in updates) >= 1
    last = next(update for update in updates if update.contributors == 3)
    last.save(tmp_path, "last", keep={})
    assert ClientUpdate.load(tmp_path, "last").contributors == 3
    seen = task_of_sums(client.task, [last.contributors])
    assert (seen.aggregated, seen.victims) == (3, 3 * client.task.batch_size)
    assert seen.update_noise == pytest.approx(0.1 * math.sqrt(3 / 4), rel=1e-3)
    assert task_of_sums(client.task, [None, 4]) == client.task
    several = task_of_sums(client.task, [3, 4, None, 1])
    assert (several.aggregated, several.noise_multiplier) == (4, pytest.approx(0.1 * math.sqrt(3 / 4)))


def test_adaptive_clips_follow_the_norms(a_group: Make, a_payload: Payloads, tmp_path: Path) -> None:
    adaptive = AdaptiveClip(clipbound_learning_rate=1.0, unclipped_num_std=1e-3)
    client = a_group(Privacy(2.0, 1e-3, rounds=4, adaptive_clip=adaptive), quantization=None)
    updates = [client.share(a_payload(), 0, 0, number) for number in range(4)]
    # The structure's gradients exceed every clip, so that it grows by the same factor in every round.
    clips = [update.max_grad_norm for update in updates]
    assert clips == pytest.approx([2.0 * math.exp(0.5 * number) for number in range(4)], rel=2e-3)
    norms = [float(one.gradient["structure.weight"].norm()) for one in updates]
    assert norms[3] / norms[0] == pytest.approx(clips[3] / clips[0], rel=0.01)
    updates[3].save(tmp_path, "third", keep={})
    assert ClientUpdate.load(tmp_path, "third").max_grad_norm == clips[3]
    assert torch.equal(
        client.share(a_payload(), 0, 0, 2).gradient["structure.weight"], updates[2].gradient["structure.weight"]
    )
    with pytest.raises(UserError, match="round 2 was asked for before round 0"):
        client.share(a_payload(), 0, 1, 2)


def test_a_random_number_of_gradients_does_not_show_in_the_clip() -> None:
    adaptive = AdaptiveClip(clipbound_learning_rate=1.0, unclipped_num_std=1e-9)
    clips = ClippingNorms(adaptive, 2.0, 1e-9, NoiseSource(0))
    assert clips.of(0, 0, 0) == 2.0
    clips.follow(0, 0, 0, [], expected=4)  # an empty Poisson sample
    assert clips.of(0, 0, 1) == pytest.approx(2.0)
    clips.follow(0, 0, 1, [1.0, 1.0, 1.0, 5.0], expected=4)
    assert clips.of(0, 0, 2) == pytest.approx(2.0 * math.exp(0.5 - 3 / 4))
    # One gradient more moves the logarithm by half of what is announced of one, not by a share of their number.
    for draw, norms in ((1, [1.0]), (2, [1.0, 1.0])):
        assert clips.of(0, draw, 0) == 2.0
        clips.follow(0, draw, 0, norms, expected=4)
    assert math.log(clips.of(0, 1, 1) / clips.of(0, 2, 1)) == pytest.approx(0.5 / 4)


def test_clients_under_more_noise_have_clips_of_their_own(a_group: Make, a_payload: Payloads) -> None:
    client = a_group(Privacy(2.0, 1e-3, rounds=2, adaptive_clip=AdaptiveClip()))
    client.share(a_payload(), 0, 0, 0)
    with pytest.raises(UserError, match="round 1 was asked for before round 0"):
        client.under_noise(0.1).share(a_payload(), 0, 0, 1)
    assert client.share(a_payload(), 0, 0, 1).max_grad_norm != 2.0


def test_dropouts_make_batches_change(a_group: Make) -> None:
    task = a_group(Privacy(2.0, 0.1), client_dropout=0.25).task
    assert (task.client_dropout, task.batches_change, task.presence) == (0.25, True, 0.75)
    assert not a_group(Privacy(2.0, 0.1)).task.batches_change


def test_records_hold_what_is_announced(a_group: Make, tmp_path: Path) -> None:
    privacy = Privacy(2.0, 0.1, adaptive_clip=AdaptiveClip())
    task = a_group(privacy, quantization=FINE).task
    task.save(tmp_path)
    assert Task.load(tmp_path) == task
    assert (task.quantization, task.adaptive_clip) == (FINE, AdaptiveClip())
    assert "modulo 1048576, 65536 steps in ±4" in FINE.in_words


@pytest.mark.parametrize(
    ("privacy", "options", "message"),
    [
        (Privacy(2.0, 0.1, mechanism="skellam"), {}, r"whole number of steps: give clipping_range"),
        (Privacy(2.0, 1e-6, mechanism="skellam"), {"quantization": FINE}, r"needs 8 or more: raise"),
        (Privacy(2.0, 0.1, per_layer=True, mechanism="skellam"), {"quantization": FINE}, "modelled for one clip"),
        (Privacy(2.0, 0.1), {"client_dropout": 1.0}, "give a probability below 1"),
        (
            Privacy(2.0, 0.1, mechanism="discrete_gaussian"),
            {"quantization": FINE, "noise_share": "distributed"},
            "a sum of discrete_gaussian noises is none",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    a_group: Make, privacy: Privacy, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        a_group(privacy, **options)


def test_steps_that_are_too_coarse_are_refused(a_group: Make, a_payload: Payloads) -> None:
    coarse = Quantization(clipping_range=4.0, quantization_range=16, modulus_range=1 << 20)
    with pytest.raises(UserError, match="may change the norm of"):
        a_group(Privacy(2.0, 4.0, mechanism="skellam"), quantization=coarse).share(a_payload(), 0, 0, 0)
    with pytest.raises(UserError, match="a modulus that is no smaller"):
        Quantization(modulus_range=16)
