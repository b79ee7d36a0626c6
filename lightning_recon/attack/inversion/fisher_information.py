# SPDX-License-Identifier: Apache-2.0
"""How much an update tells of a picture at all, as the server can find out by itself on pictures that it imagines."""

import torch

from lightning_recon.attack.inversion.distances import noise_std
from lightning_recon.attack.inversion.forward_model import client_update
from lightning_recon.attack.inversion.functional_model import FunctionalModel
from lightning_recon.attack.inversion.parametrization import Parametrization
from lightning_recon.exchange import Task
from lightning_recon.priors.dct import synthesise

_CHANGE = 1e-2  # of a pixel, small against what bends a network, large against rounding
_LOOKS = 4


@torch.no_grad()
def information(model: FunctionalModel, task: Task, coordinates: Parametrization, seed: int = 0) -> float:
    """Fisher information of an update about one coefficient of a picture, a mean over coefficients and pictures.

    Imagined pictures are changed by white noise, and so is their update: the mean square of that change, divided by
    the noise's variance.

    Args:
        model: the network that the server shipped.
        task: what was announced.
        coordinates: hold the public statistics from which pictures are imagined.
        seed: of the pictures and the changes.

    Returns:
        The inverse of the variance that noise alone would leave of a coefficient if all were seen alike.
    """
    generator, found = torch.Generator().manual_seed(seed), []
    shape = (task.victims, *task.image_shape)
    for look in range(_LOOKS):
        waves = torch.randn(shape, generator=generator).to(coordinates.std) * coordinates.std
        pictures = synthesise(waves, coordinates.mean, coordinates.colour).clamp(0, 1)
        change = _CHANGE * torch.randn(shape, generator=generator).to(pictures)
        labels = (look + torch.arange(task.victims, device=pictures.device)) % task.num_classes
        before, _ = client_update(model, pictures, labels, task)
        after, _ = client_update(model, pictures + change, labels, task)
        energy = torch.stack([(after[name] - before[name]).square().sum() for name in before]).sum()
        found.append(float(energy / change.square().sum()))
    return sum(found) / _LOOKS / noise_std(task) ** 2
