# SPDX-License-Identifier: Apache-2.0
"""Fisher information of an update about the images, estimated by the server on samples of the public model."""

import torch
from torch import Tensor

from lightning_recon.attack.inversion.distances import noise_std
from lightning_recon.attack.inversion.forward_model import client_update
from lightning_recon.attack.inversion.functional_model import FunctionalModel
from lightning_recon.attack.inversion.parametrization import Parametrization
from lightning_recon.exchange import Task
from lightning_recon.losses import as_targets

_PERTURBATION = 1e-2  # of a pixel: small enough for a network to be linear, large against rounding
_SAMPLES = 4


@torch.no_grad()
def information(model: FunctionalModel, task: Task, parametrization: Parametrization, seed: int = 0) -> float:
    """Fisher information of an update about one coefficient of an image, a mean over coefficients and images.

    Samples of the public model are perturbed by white noise; the information is the mean square of the change of their
    update, divided by the noise's variance.

    Args:
        model: the network that the server shipped.
        task: the announced training parameters.
        parametrization: holds the public model of images.
        seed: of samples and perturbations.

    Returns:
        The inverse of a coefficient's variance due to noise, if the update depended on all coefficients alike.
    """
    generator, found = torch.Generator().manual_seed(seed), []
    shape = (task.victims, *task.image_shape)
    for sample in range(_SAMPLES):
        waves = torch.randn(shape, generator=generator).to(parametrization.std) * parametrization.std
        images = parametrization.transform.synthesise(waves).clamp(0, 1)
        perturbation = _PERTURBATION * torch.randn(shape, generator=generator).to(images)
        labels = (sample + torch.arange(task.victims, device=images.device)) % task.num_classes
        targets = _likely_targets(model, images, labels, task)
        before, _ = client_update(model, images, targets, task)
        after, _ = client_update(model, images + perturbation, targets, task)
        energy = torch.stack([(after[name] - before[name]).square().sum() for name in before]).sum()
        found.append(float(energy / perturbation.square().sum()))
    return sum(found) / _SAMPLES / noise_std(task) ** 2


def _likely_targets(model: FunctionalModel, images: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Targets of public images: their labels; of maps over pixels the prediction, which is about half true."""
    outputs: Tensor = model.network(images)
    if outputs.ndim == 2:
        return as_targets(task.loss, labels, task.num_classes)
    found: Tensor = outputs.argmax(1) if task.loss == "cross_entropy" else (outputs > 0).to(outputs)
    return found
