# SPDX-License-Identifier: Apache-2.0
"""The result of an attack: reconstructions, their scores, and a figure."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_recon.data.sources import ClientBatch
from lightning_recon.display import as_rgb
from lightning_recon.evaluation.assignment import arrange, match
from lightning_recon.evaluation.metrics import psnr_per_image, ssim_per_image
from lightning_recon.evaluation.results import bounds_record
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.privacy.parameters import Privacy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AttackResult:
    """Reconstructions of one batch; scored if the true images are known. All tensors are on the CPU.

    Args:
        images: (M, C, H, W) in [0, 1]. With the true images known, M = B, in the order of the batch, and the public
            mean image stands for an image that was missed; otherwise in the attacker's order.
        truth: (B, C, H, W), the true images; None if they are not known.
        psnr: (B,), in dB; None without the true images.
        ssim: (B,); None without the true images.
        labels: (B,), int64, the labels that the attacker recovered, in its own order; None if it recovers none.
        evident: whether the images explain more of the update than its noise does.
        epsilon: accounted epsilon of all rounds; None without noise.
        bounds: as in `results.json`: `channel_nats`, the capacity for one image, `noise_law_psnr`, decoding without a
            prior, and others; None where a bound does not apply. Empty without noise.
        update: the update that was attacked, of several rounds the first, by parameter name.

    Example:
        >>> import torch
        >>> import lightning_recon as lr
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
        >>> images = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
        >>> result = lr.reconstruct(model, images, torch.tensor([3]), max_grad_norm=1.0, noise_multiplier=0.001)
        >>> type(result).__name__, len(result.figure().axes)
        ('AttackResult', 2)
    """

    images: Tensor
    truth: Tensor | None
    psnr: Tensor | None
    ssim: Tensor | None
    labels: Tensor | None
    evident: bool
    epsilon: float | None
    bounds: dict[str, float | None]
    update: dict[str, Tensor]

    def figure(self) -> "Figure":
        """The reconstructions, below the true images if they are known, with the channels of `display.as_rgb`."""
        from matplotlib.figure import Figure

        shown = [self.images] if self.truth is None else [self.truth, self.images]
        count = len(self.images)
        figure = Figure(figsize=(1.6 * max(count, 1), 1.8 * len(shown)), layout="constrained")
        axes: Any = figure.subplots(len(shown), max(count, 1), squeeze=False)
        for row, images in zip(axes, shown, strict=True):
            for axis, image in zip(row, images, strict=False):
                axis.imshow(as_rgb(image).clamp(0, 1).permute(1, 2, 0).numpy())
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, psnr in zip(axes[-1], [] if self.psnr is None else self.psnr.tolist(), strict=False):
            axis.set_title(f"{psnr:.1f} dB")
        return figure


def scored(
    images: Tensor,
    truth: Tensor | None,
    privacy: Privacy,
    statistics: PublicStatistics,
    *,
    labels: Tensor | None,
    evident: bool,
    bounds: dict[str, float | None],
    update: dict[str, Tensor],
) -> AttackResult:
    """Bring reconstructions into the order of the true images, and score them, if these are known.

    Args:
        images: (M, C, H, W), on the CPU.
        truth: (B, C, H, W); None if not known.
        privacy: clipping and noise.
        statistics: public statistics, whose mean image stands for an image that was missed.
        labels: see `AttackResult`.
        evident: likewise.
        bounds: likewise.
        update: likewise.
    """
    found, psnr, ssim, known = images, None, None, None
    if truth is not None:
        known = truth.detach().cpu().float()
        found = arrange(images, match(known, images), statistics.mean)
        psnr, ssim = psnr_per_image(found, known), ssim_per_image(found, known)
    protection = privacy.noise_multiplier, privacy.rounds, privacy.delta, privacy.adjacency
    epsilon = privacy.noise.epsilon(*protection)
    released = {name: tensor.cpu() for name, tensor in update.items()}
    return AttackResult(found, known, psnr, ssim, labels, evident, epsilon, bounds, released)


def bounds_of(privacy: Privacy, batch_size: int, truth: Tensor | None) -> dict[str, float | None]:
    """The `bounds` section of `results.json`, without what needs the true images if they are None; empty without noise.

    Args:
        privacy: clipping and noise.
        batch_size: number of images in the batch.
        truth: true images, (B, C, H, W).
    """
    if not privacy.noise_multiplier:
        return {}
    known = [] if truth is None else [truth.detach().cpu().float()]
    found = bounds_record(
        [ClientBatch(one, one, torch.ones_like(one[:, :1], dtype=torch.bool), torch.zeros(1), []) for one in known],
        noise_multiplier=privacy.noise_multiplier,
        granularity=privacy.granularity,
        per_layer=privacy.per_layer,
        rounds=privacy.rounds,
        batch_size=batch_size,
        mechanism=privacy.mechanism,
    )
    return {name: None if value is None else float(str(value)) for name, value in found.items()}
