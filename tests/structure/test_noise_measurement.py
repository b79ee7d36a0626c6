# SPDX-License-Identifier: Apache-2.0
"""Noise that is measured on inputs that are always zero: when it takes the place of the announced one."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_recon.exchange import LocalTraining, Quantization, Task
from lightning_recon.exchange.local_training import ADAM
from lightning_recon.structure.noise_measurement import contradicting_multiplier, noise_is_announced, noise_variance

TASK = Task((3, 16, 16), 10, 4, 1, "none", "update", False, 2.0, 1e-3, 1, 3)
LAPLACE = replace(TASK, mechanism="laplace")


def noise(task: Task, draws: int, zeros: int) -> Tensor:
    """Noise of standard deviation 1, shape (draws, zeros)."""
    generator = np.random.default_rng(0)
    terms = [task.noise.sample(draws * zeros, generator) for _ in range(task.noise_terms)]
    return torch.stack(terms).sum(dim=0).view(draws, zeros) / (task.noise.noise_std * math.sqrt(len(terms)))


@pytest.mark.parametrize("task", [TASK, LAPLACE, replace(LAPLACE, rounds=2), replace(LAPLACE, rounds=16)])
@pytest.mark.parametrize("zeros", [64, 256])
def test_noise_as_announced_is_hardly_ever_contradicted(task: Task, zeros: int) -> None:
    draws = noise(task, 4000, zeros)
    contradicted = sum(noise_variance(one, 1.0, task) != 1.0 for one in draws)
    # Squares of Laplace numbers leave four standard deviations of a normal distribution once in 500 times.
    assert contradicted <= 2


@pytest.mark.parametrize("task", [TASK, LAPLACE])
@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_other_noise_is_measured(task: Task, factor: float) -> None:
    draws = factor * noise(task, 200, 512)
    measured = torch.tensor([noise_variance(one, 1.0, task) for one in draws])
    assert bool((measured != 1.0).all())
    assert float(measured.mean()) == pytest.approx(factor**2, rel=0.02)


def test_without_an_announcement_or_without_zeros_the_other_one_counts() -> None:
    assert noise_variance(torch.tensor([3.0, -4.0]), None, TASK) == 12.5
    assert noise_variance(torch.zeros(0), 0.25, TASK) == 0.25
    assert noise_variance(torch.zeros(0), None, TASK) == 0.0
    assert noise_variance(torch.zeros(5), 0.0, TASK) == 0.0
    assert noise_variance(torch.ones(5), 0.0, TASK) == 1.0


def test_zeros_need_not_show_the_noise_of_rounding() -> None:
    task = replace(TASK, noise_multiplier=0.0, quantization=Quantization(quantization_range=1 << 10))
    assert task.rounding_noise > 0
    assert noise_variance(torch.zeros(4, 64), 1e-6, task) == 1e-6


def test_laplace_noise_with_more_rounding_than_noise_is_hardly_ever_contradicted() -> None:
    task = replace(LAPLACE, quantization=Quantization(quantization_range=1 << 10))
    step, std = 16 / (1 << 10), task.noise_multiplier * math.sqrt(2) * 2.0
    levels = std * noise(task, 500, 1024) / step
    rounded = step * (levels + torch.rand(levels.shape, generator=torch.Generator().manual_seed(0))).floor()
    announced = (2.0 * task.update_noise) ** 2
    assert sum(noise_variance(one, announced, task) != announced for one in rounded) <= 1


def test_the_multiplier_of_a_client_that_adds_other_noise() -> None:
    assert contradicting_multiplier(TASK.update_noise, TASK) is None
    assert contradicting_multiplier(2e-3, TASK) == pytest.approx(2e-3)
    assert contradicting_multiplier(2e-3, replace(TASK, noise_multiplier=0.0)) == pytest.approx(2e-3)
    assert contradicting_multiplier(2e-3, LAPLACE) == pytest.approx(2e-3 / math.sqrt(2))
    silent = replace(LAPLACE, noise_multiplier=0.0)
    assert contradicting_multiplier(2e-3, silent) == pytest.approx(2e-3 / math.sqrt(2))


def test_an_optimizer_that_follows_the_noise_changes_it() -> None:
    local = LocalTraining(optimizer=ADAM, learning_rates=(1e-3,), update="delta")
    assert noise_is_announced(replace(TASK, local=local))
    assert not noise_is_announced(replace(TASK, local=local, granularity="sample"))
    assert noise_is_announced(replace(TASK, granularity="sample"))


def test_sums_of_laplace_noise_are_nearly_normal() -> None:
    in_steps = replace(LAPLACE, local=LocalTraining(batch_size=2, update="delta"))
    assert not LAPLACE.noise_is_normal
    assert replace(LAPLACE, rounds=2).noise_is_normal
    assert not in_steps.noise_is_normal  # noise is added once, after all steps
    assert replace(in_steps, granularity="sample").noise_is_normal
