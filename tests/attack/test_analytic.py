# SPDX-License-Identifier: Apache-2.0
"""A fully connected first layer: the picture exactly without noise, and with noise what theory leaves of it."""

import pytest
import torch
from torch import Tensor, nn

from lightning_recon.attack.inversion.analytic import revealed_image, revealed_input
from lightning_recon.attack.inversion.distances import noise_std
from lightning_recon.attack.inversion.forward_model import client_update
from lightning_recon.attack.inversion.functional_model import FunctionalModel, functionalize
from lightning_recon.attack.inversion.parametrization import Parametrization
from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.networks.construction import build_network
from lightning_recon.networks.normalization import IMAGENET, normalize_inputs
from lightning_recon.priors.image_statistics import public_statistics

SIZE = 16
PARAMETRIZATION = Parametrization("spectrum", public_statistics(SIZE, SIZE, False), torch.device("cpu"))


def perceptron() -> FunctionalModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 64), nn.ReLU(), nn.Linear(64, 10))
    return functionalize(normalize_inputs(layers, IMAGENET), batch_statistics=False)


def task(z: float) -> Task:
    return Task((3, SIZE, SIZE), 10, 1, 1, "perceptron", "sample", False, 1.0, z, 1, 4)


def picture() -> Tensor:
    """One that the public statistics expect."""
    waves = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return PARAMETRIZATION.images(waves)


def noised(update: dict[str, Tensor], std: float, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: value + std * torch.randn(value.shape, generator=generator) for name, value in update.items()}


def test_without_noise_the_picture_is_exact() -> None:
    model, truth = perceptron(), picture()
    update, _ = client_update(model, truth, torch.tensor([3]), task(0.0))
    found = PARAMETRIZATION.images(revealed_image(model, update, noise_std(task(0.0)), PARAMETRIZATION))
    assert float((found - truth).square().mean().sqrt()) < 5e-3


def test_noise_leaves_what_theory_says() -> None:
    voice = torch.randn(64, generator=torch.Generator().manual_seed(2))
    truth = torch.randn(768, generator=torch.Generator().manual_seed(3))
    std = 0.02
    errors, promised = [], []
    for seed in range(20):
        rows = noised({"weight": voice[:, None] * truth, "bias": voice}, std, seed)
        found, left = revealed_input(rows["weight"], rows["bias"], std)
        # What is wrong with the scale, known from the bias alone, is one number beside the noise of all inputs.
        scale = (found @ truth) / (truth @ truth)
        errors.append(float((found - scale * truth).square().mean()))
        promised.append(float(left.square()))
    assert sum(errors) == pytest.approx(sum(promised), rel=0.03)
    assert sum(promised) / 20 == pytest.approx(std**2 / float(voice.square().sum()), rel=0.03)


def test_a_drowned_voice_gives_the_mean_image() -> None:
    model = perceptron()
    noise = {name: torch.zeros_like(value) for name, value in model.parameters.items()}
    found = revealed_image(model, noised(noise, 1e-3, 0), 1.0, PARAMETRIZATION)
    assert not found.any()


def test_a_network_that_starts_otherwise_is_refused() -> None:
    model = functionalize(build_network("convnet", 10), batch_statistics=False)
    with pytest.raises(UserError, match="fully connected layer"):
        revealed_image(model, dict(model.parameters), 1.0, PARAMETRIZATION)
