# SPDX-License-Identifier: Apache-2.0
"""The weights with which local SGD steps enter an update, against training that is carried out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.client.gradients import per_sample_gradients
from lightning_recon.exchange import LocalTraining, Task
from lightning_recon.structure import InferenceStructure, TamperedNetwork, WaterFilling
from lightning_recon.structure.local_weights import (
    layer_settings,
    local_weights,
    step_gains,
    step_weights,
    victim_weights,
)

SIZE, BATCH, CLASSES = 16, 5, 10
LABELS = torch.tensor([0, 3, 7, 7, 1])
MakeTask = Callable[..., Task]

TRAININGS: dict[str, dict[str, Any]] = {
    "steps": {"batch_size": 1},
    "epochs": {"batch_size": 2, "epochs": 3},
    "without the last": {"batch_size": 2, "epochs": 2, "drop_last": True},
    "accumulation": {"batch_size": 1, "epochs": 2, "accumulate_grad_batches": 2},
    "momentum": {"batch_size": 1, "epochs": 2, "options": {"momentum": 0.9}},
    "dampening": {"batch_size": 1, "epochs": 2, "options": {"momentum": 0.9, "dampening": 0.5}},
    "Nesterov": {"batch_size": 2, "epochs": 2, "options": {"momentum": 0.9, "nesterov": True}},
    "weight decay": {"batch_size": 2, "epochs": 2, "options": {"momentum": 0.5, "weight_decay": 0.3}},
    "schedule": {"batch_size": 1, "epochs": 2, "learning_rates": (0.4, 0.2, 0.1)},
    "delta": {"batch_size": 1, "update": "delta"},
}


class Fixed(nn.Module):
    """A network whose logits, and so gradient weights, nothing changes."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :CLASSES]


def trained(model: nn.Module, local: LocalTraining, images: Tensor) -> Tensor:
    """The weight's change, old minus new, after training as announced."""
    optimizer = torch.optim.SGD(model.parameters(), lr=local.learning_rate(0), **local.options)
    before, step = model.structure.weight.detach().clone(), 0
    parts = list(zip(images.split(local.batch_size), LABELS.split(local.batch_size), strict=True))
    parts = [part for part in parts if len(part[0]) == local.batch_size or not local.drop_last]
    for _ in range(local.epochs):
        for index, (some, labels) in enumerate(parts, start=1):
            (F.cross_entropy(model(some), labels) / local.accumulate_grad_batches).backward()
            if index % local.accumulate_grad_batches == 0 or index == len(parts):
                optimizer.param_groups[0]["lr"] = local.learning_rate(step)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
    assert step == local.steps(len(images))
    return (before - model.structure.weight.detach()) / local.divisor


@pytest.mark.parametrize("name", TRAININGS)
def test_an_update_is_the_weighted_sum_of_the_victims_gradients(
    task: MakeTask, photographs: Callable[[int], Tensor], name: str
) -> None:
    announced = replace(task(SIZE, BATCH, 1e-3, "update"), local=LocalTraining(**TRAININGS[name]))
    model = TamperedNetwork(
        Fixed(), InferenceStructure(WaterFilling(units=24, nulls=4).payload(announced)), zeros=False
    )
    model, images = model.double(), photographs(SIZE)[:BATCH].double()
    model.structure.step_gains, gains = None, model.structure.step_gains
    gradients = per_sample_gradients(model, F.cross_entropy, images, LABELS)["structure.weight"]
    local = announced.local
    weights = victim_weights(local, BATCH, sampled=False)
    expected = torch.einsum("b,bkm->km", weights, gradients)
    model.structure.step_gains = gains
    for _ in range(2):  # the second time as a client that keeps the model for the next round, and loads what is sent
        torch.nn.init.zeros_(model.structure.weight)
        found = trained(model, local, images)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.max()))


def test_one_step_of_plain_sgd_is_what_it_was(task: MakeTask) -> None:
    plain = task(SIZE, BATCH, 1e-3, "update")
    found = local_weights(plain)
    assert (found.size, found.signal, found.noise, found.typical, found.weakest, found.spread) == (1, 1, 1, 1, 1, 0)
    assert layer_settings(plain, 1e12) == {"strength": 1e12}
    # Other optimizers are left to the codes that are made for them.
    adam = replace(plain, local=LocalTraining(optimizer="torch.optim.adam.Adam", epochs=3))
    assert local_weights(adam) == found
    assert layer_settings(adam, 1e12) == {"strength": 1e12, "zero_weight": True, "fixed_signs": True}


def test_the_weights_of_momentum_are_geometric_sums() -> None:
    steps = step_weights(LocalTraining(options={"momentum": 0.9}, batch_size=1), 3)
    torch.testing.assert_close(steps, torch.tensor([1 + 0.9 + 0.81, 1 + 0.9, 1.0]).double())


@pytest.mark.parametrize("name", TRAININGS)
def test_the_step_gains_give_all_victims_the_same_weight(task: MakeTask, name: str) -> None:
    local = LocalTraining(**TRAININGS[name])
    weights = victim_weights(local, BATCH, sampled=False)
    weights = weights[: BATCH - BATCH % (local.batch_size or BATCH)] if local.drop_last else weights
    torch.testing.assert_close(weights, weights.mean().expand_as(weights), rtol=1e-9, atol=0)
    found = local_weights(replace(task(SIZE, BATCH, 1e-3, "update"), local=local))
    assert found.spread == 0


def test_where_samples_are_clipped_victims_of_early_steps_have_more_weight(task: MakeTask) -> None:
    local = LocalTraining(batch_size=1, options={"momentum": 0.9})
    found = local_weights(replace(task(SIZE, 4, 1e-3, "sample"), local=local))
    weights = torch.tensor([3.439, 2.71, 1.9, 1.0])
    root = float(weights.square().mean().sqrt())
    assert found.weakest == pytest.approx(1 / root, rel=1e-5)
    assert found.typical == pytest.approx(float(weights.log().mean().exp()) / root, rel=1e-5)
    assert found.spread == pytest.approx(float(weights.log().std(correction=0)), rel=1e-5)


def test_a_shuffled_batch_gives_every_victim_the_same_weights_on_average() -> None:
    local = LocalTraining(batch_size=2, epochs=3, options={"momentum": 0.9})
    fixed, drawn = (victim_weights(one, BATCH, sampled=True) for one in (local, replace(local, shuffle=True)))
    assert float(drawn.mean()) == pytest.approx(float(fixed.mean()), rel=1e-9)


def test_a_step_without_a_learning_rate_has_a_bounded_gain() -> None:
    gains = step_gains(LocalTraining(batch_size=1, learning_rates=(0.1, 0.1, 0.0)), 3)
    assert gains.tolist() == pytest.approx([2 / 3, 2 / 3, 100.0])


def test_noise_of_dp_sgd_adds_up_over_the_steps_as_the_signal_does_over_the_visits(task: MakeTask) -> None:
    local = LocalTraining(batch_size=4, epochs=9, update="delta", learning_rates=(0.5,))
    found = local_weights(replace(task(SIZE, 16, 1e-3, "sample"), local=local))
    # 36 steps, of which 9 visit a victim; each divides by 4.
    assert found.signal == pytest.approx(9 * 0.5 / 4)
    assert found.noise == pytest.approx(6 * 0.5 / 4)
    assert (found.typical, found.weakest) == pytest.approx((1, 1))
    assert found.spread == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rate", [1e-8, 1e-3, 10.0])
def test_the_strength_makes_up_for_the_learning_rate(task: MakeTask, rate: float) -> None:
    local = LocalTraining(batch_size=1, epochs=2, update="delta", learning_rates=(rate,))
    announced = replace(task(SIZE, BATCH, 1e-3, "update"), local=local)
    assert float(layer_settings(announced, 1e12)["strength"]) * rate * 2 * BATCH == pytest.approx(1e12)
    # Clipped in every step, a gradient has to exceed the clip at any learning rate.
    sampled = replace(announced, granularity="sample")
    assert layer_settings(sampled, 1e12)["strength"] == 1e12
