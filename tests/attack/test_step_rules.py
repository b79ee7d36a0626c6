# SPDX-License-Identifier: Apache-2.0
"""Step rules: the published learning rate schedules, signed gradients, Langevin noise."""

import pytest
import torch

from lightning_recon.attack.inversion.step_rules import StepRule


def test_schedules_are_the_published_ones() -> None:
    steps = StepRule("steps", "none", 0.0, 0, 800)
    factors = [steps.rate_factor(step) for step in (0, 299, 300, 500, 700, 799)]
    assert factors == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.001])
    cosine = StepRule("cosine", "none", 0.0, 0, 1000)
    assert cosine.rate_factor(0) == pytest.approx(1 / 50)
    assert cosine.rate_factor(500) == pytest.approx(0.5)
    assert cosine.rate_factor(999) < 1e-4


def test_gradients_become_signs() -> None:
    gradient = torch.tensor([-3.0, 0.0, 1e-3])
    assert StepRule("constant", "hard", 0.0, 0, 10).shaped(gradient, 0, 1.0).tolist() == [-1, 0, 1]
    soft = StepRule("constant", "soft", 0.0, 0, 10)
    assert torch.allclose(soft.shaped(gradient, 0, 1.0), gradient.tanh())
    assert torch.equal(soft.shaped(gradient, 10, 1.0).sign(), gradient.sign())
    noisy = StepRule("constant", "none", 0.5, 3, 10)
    zeros = torch.zeros(10_000)
    assert float(noisy.shaped(zeros, 1, 1.0).std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(noisy.shaped(zeros, 1, 1.0), noisy.shaped(zeros, 1, 1.0))
    assert not torch.equal(noisy.shaped(zeros, 1, 1.0), noisy.shaped(zeros, 2, 1.0))
