# SPDX-License-Identifier: Apache-2.0
"""Fisher information, and the balanced parametrization: spectral units under noise, equal units without noise."""

from dataclasses import replace

import pytest
import torch

from lightning_recon.attack.inversion.fisher_information import information
from lightning_recon.attack.inversion.forward_model import client_update
from lightning_recon.attack.inversion.functional_model import functionalize
from lightning_recon.attack.inversion.parametrization import Parametrization
from lightning_recon.exchange import Task
from lightning_recon.networks.construction import build_network
from lightning_recon.priors.image_statistics import public_statistics

SIZE = 16
TASK = Task((3, SIZE, SIZE), 10, 1, 1, "convnet", "sample", False, 1.0, 0.01, 1, 10)


def balanced() -> Parametrization:
    return Parametrization("balanced", public_statistics(SIZE, SIZE, False), torch.device("cpu"))


def test_units_go_from_the_spectrum_to_all_alike() -> None:
    parametrization = balanced()
    parametrization.balance(0.0)
    torch.testing.assert_close(parametrization.unit, parametrization.std)
    parametrization.balance(1e12)
    torch.testing.assert_close(
        parametrization.unit, parametrization.std.square().mean().sqrt().expand_as(parametrization.std)
    )


def test_units_change_neither_the_prior_nor_where_a_search_begins() -> None:
    parametrization = balanced()
    spectrum = Parametrization("spectrum", public_statistics(SIZE, SIZE, False), torch.device("cpu"))
    parametrization.balance(100.0)
    mine = parametrization.start("mean", 1, torch.Generator().manual_seed(0))
    theirs = spectrum.start("mean", 1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(parametrization.images(mine), spectrum.images(theirs))
    torch.testing.assert_close(parametrization.whitened(mine), spectrum.whitened(theirs))


def test_information_is_that_of_the_jacobian_over_the_noise() -> None:
    network, parametrization = build_network("convnet", 10), balanced()
    model, exact = functionalize(network, False), functionalize(network.double(), False)
    found = information(model, TASK, parametrization)
    assert information(model, replace(TASK, noise_multiplier=0.1), parametrization) == pytest.approx(
        found / 100, rel=1e-3
    )
    generator, energies = torch.Generator().manual_seed(7), []
    for label in torch.arange(8).split(1):
        image, change = (torch.randn(1, 3, SIZE, SIZE, generator=generator) for _ in range(2))
        image, step = parametrization.images(image).clamp(0, 1).double(), 1e-5 * change.double()
        ahead, _ = client_update(exact, image + step, label, TASK)
        behind, _ = client_update(exact, image - step, label, TASK)
        energy = sum(float((ahead[name] - behind[name]).square().sum()) for name in ahead)
        energies.append(energy / float((2 * step).square().sum()))
    assert found == pytest.approx(sum(energies) / 8 / TASK.noise_multiplier**2, rel=0.35)
