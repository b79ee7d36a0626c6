# SPDX-License-Identifier: Apache-2.0
"""One step of training under differential privacy: clip, sum over ranks, add noise, divide by what is public."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_recon.client.gradients import clipped_sum, mean_gradient
from lightning_recon.client.noise import add_noise
from lightning_recon.client.noise_key import Generators
from lightning_recon.losses import Loss, cross_entropy
from lightning_recon.privacy.parameters import Privacy

Reduce = Callable[[Tensor, str], Tensor]  # a tensor of every rank, "sum" or "mean" -> the same on all ranks


def private_gradient(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    privacy: Privacy,
    expected: int,
    chunk_size: int,
    noise: Generators,
    reduce: Reduce,
    loss: Loss = cross_entropy,
) -> tuple[dict[str, Tensor], Tensor]:
    """Privatised gradient of the loss over the batches of all ranks.

    Args:
        network: images to logits, in the mode in which it is to be trained.
        images: (B, channels, height, width), floating point: this rank's part; B may be 0 under granularity "sample".
        labels: (B,), int64, or other targets (B, ...).
        privacy: clip and noise.
        expected: expected size of all ranks' batch, which the sum is divided by under granularity "sample": the actual
            size is not public.
        chunk_size: under granularity "sample", samples differentiated at once.
        noise: one generator for each tensor, the same on every rank, which adds the same noise to the same sum:
            networks stay equal, and the noise counts once.
        reduce: sum or mean over the ranks.
        loss: mean loss of outputs and targets.

    Returns:
        The gradient by parameter name, and the mean loss, which is not private; NaN of no images.

    Raises:
        UserError: a gradient holds NaN or infinity, or the network mixes samples that are to be clipped alone.

    Source: Abadi et al. 2016 (arXiv 1607.00133), algorithm 1, for "sample".
    """
    if privacy.granularity == "sample":
        summed, _, value = clipped_sum(network, loss, images, labels, privacy.clip, chunk_size)
        gradient, divisor = {name: reduce(tensor, "sum") for name, tensor in summed.items()}, expected
    else:
        mean, value = mean_gradient(network, loss, images, labels, dict(network.named_buffers()))
        gradient, divisor = privacy.clip({name: reduce(tensor, "mean") for name, tensor in mean.items()}), 1
    add_noise(gradient, privacy.noise_scale, noise, privacy.noise)
    # Ranks may hold parts of different sizes, some of them none.
    value = reduce(value * len(images), "sum") / reduce(torch.full_like(value, len(images)), "sum")
    return {name: tensor.div_(divisor) for name, tensor in gradient.items()}, value
