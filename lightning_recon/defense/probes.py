# SPDX-License-Identifier: Apache-2.0
"""Run a received model from outside: gradient, logits, and copies that are changed in one respect.

The received model itself is never changed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_recon.client.gradients import mean_gradient, reproducible_fp32
from lightning_recon.losses import Loss, cross_entropy
from lightning_recon.privacy.clipping import tensor_norms


def randomize_zero_weights(model: nn.Module) -> nn.Module:
    """Copy a model, with small random numbers in weights that are entirely zero.

    Some networks start with a head of zeros (torchvision's vision transformers). Until the first step, such a head
    takes the whole gradient, and no other layer counts, just as beside a malicious structure. A server could exploit
    this by shipping zero weights beside constants of its own; therefore `inspect_model` looks at the copy only.

    Args:
        model: any network.
    """
    copy, generator = deepcopy(model), torch.Generator().manual_seed(0)
    for parameter in copy.parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):
            random = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
            parameter.data.copy_(random)
    return copy


def gradient_of(model: nn.Module, images: Tensor, labels: Tensor, loss: Loss = cross_entropy) -> dict[str, Tensor]:
    """Gradient of the mean loss by parameter name, as a client would compute it, before clipping and noise.

    Args:
        model: images to logits.
        images: (B, channels, height, width), of the model's precision. Batch normalization uses the batch if B > 1.
        labels: what the loss takes: (B,), int64, or other targets (B, ...).
        loss: mean loss of outputs and targets.
    """
    with reproducible_fp32(model, images.device, 0, len(images) > 1):
        return mean_gradient(model, loss, images, labels)[0]


def energies_of(gradient: Mapping[str, Tensor]) -> dict[str, float]:
    """Squared Euclidean norm of every tensor of a gradient.

    Args:
        gradient: by parameter name.
    """
    return {name: norm**2 for name, norm in tensor_norms(gradient).items()}


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits in training mode, (B, classes).

    Args:
        model: images to logits.
        images: (B, channels, height, width), of the model's precision.
    """
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with reproducible_fp32(model, images.device, 0, len(images) > 1), torch.no_grad():
        logits: Tensor = functional_call(model, state, (images,))
    return logits


@contextmanager
def zero_output(module: nn.Module) -> Iterator[list[bool]]:
    """Replace a module's output by zeros within the context.

    Args:
        module: part of a model.

    Yields:
        A list that is empty as long as the module has returned no tensor.
    """
    replaced: list[bool] = []

    def replace(_: nn.Module, __: Any, output: Any) -> Tensor | None:  # noqa: ANN401 - torch's signature
        replaced.extend([True] if torch.is_tensor(output) else [])
        return torch.zeros_like(output) if torch.is_tensor(output) else None

    hook = module.register_forward_hook(replace)
    try:
        yield replaced
    finally:
        hook.remove()
