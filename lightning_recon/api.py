# SPDX-License-Identifier: Apache-2.0
"""The public Python API: attack a batch under clipping and noise without a Trainer, files or YAML."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lightning_recon.client.noise import add_noise, noise_generator
from lightning_recon.client.update import clipped_update
from lightning_recon.evaluation.assignment import arrange, match
from lightning_recon.evaluation.bounds import channel_nats, noise_law_psnr
from lightning_recon.evaluation.metrics import psnr_per_image, ssim_per_image
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.networks.construction import copied
from lightning_recon.priors.denoisers import Denoiser
from lightning_recon.priors.unet_denoiser import SmallDenoiser
from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, mu_of
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.structure import Structure, TamperedNetwork, WaterFilling, build_layer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["AttackResult", "Privacy", "privatized_update", "reconstruct"]


@dataclass(frozen=True)
class AttackResult:
    """Reconstructions of one batch, scored against the true images.

    Args:
        truth: (B, 3, H, W), the true images.
        images: (B, 3, H, W) in [0, 1], in the order of the batch; the public mean image where a victim was missed.
        psnr: (B,), in dB.
        ssim: (B,).
        epsilon: accounted epsilon of this one release (add/remove), None without noise.
        bounds: `noise_law_psnr`, decoding without a prior, and `channel_nats`, the capacity for one victim.
        update: what the client released, by parameter name.
    """

    truth: Tensor
    images: Tensor
    psnr: Tensor
    ssim: Tensor
    epsilon: float | None
    bounds: dict[str, float | None]
    update: dict[str, Tensor]

    def figure(self) -> "Figure":
        """The true images above their reconstructions."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(1.6 * len(self.truth), 3.6), layout="constrained")
        axes: Any = figure.subplots(2, len(self.truth), squeeze=False)
        for column, psnr in enumerate(self.psnr.tolist()):
            axes[0, column].imshow(self.truth[column].detach().cpu().permute(1, 2, 0).numpy())
            axes[1, column].imshow(self.images[column].detach().cpu().permute(1, 2, 0).numpy())
            axes[1, column].set_title(f"{psnr:.1f} dB")
            axes[0, column].set_axis_off()
            axes[1, column].set_axis_off()
        return figure


def privatized_update(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    privacy: Privacy,
    payload: ServerPayload | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The clipped and noised gradient that a client would release; the model is left as it was.

    Args:
        model: any network, images to logits, differentiated in the mode in which it is.
        images: (B, 3, H, W) in [0, 1].
        labels: (B,), int64.
        privacy: clipping and noise.
        payload: what a malicious server adds to the model; None adds nothing.
        seed: seed of the noise.
    """
    network, tampered = copied(model).float(), payload is not None and bool(payload.tensors)
    whole: nn.Module = nn.Sequential(OrderedDict(network=network))
    if payload is not None and tampered:
        whole = TamperedNetwork(network, build_layer(payload), zeros=False)
    gradient = clipped_update(whole, images, labels, privacy, 1).gradient
    return add_noise(gradient, privacy.noise_scale, noise_generator(seed, 0, 0, 0), privacy.noise)


def reconstruct(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    max_grad_norm: float,
    noise_multiplier: float,
    granularity: Literal["sample", "update"] = "update",
    structure: Structure | None = None,
    denoiser: Denoiser | None = None,
    steps: int = 6,
    seed: int = 0,
) -> AttackResult:
    """Attack one batch as a malicious server does, in one round.

    Args:
        model: any network, images to logits.
        images: (B, 3, H, W) in [0, 1].
        labels: (B,), int64.
        max_grad_norm: clipping norm C.
        noise_multiplier: standard deviation of the noise divided by C (z).
        granularity: what is clipped: each sample's gradient, or the whole update.
        structure: what the server adds to the model; default: `WaterFilling`, the linear code.
        denoiser: prior of the refinement; default: the small denoiser that ships with the package.
        steps: refinement steps, 0 for the decoding alone.
        seed: seed of the noise.

    Example:
        >>> import torch
        >>> import lightning_recon as lr
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
        >>> images = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
        >>> result = lr.reconstruct(model, images, torch.tensor([3]), max_grad_norm=1.0, noise_multiplier=0.001)
        >>> result.images.shape
        torch.Size([1, 3, 16, 16])
        >>> bool(result.psnr.mean() > 25)
        True
    """
    privacy = Privacy(max_grad_norm, noise_multiplier, granularity)
    with torch.no_grad():
        classes = copied(model).eval()(images[:1]).shape[1]
    task = Task(
        image_shape=(3, images.shape[2], images.shape[3]),
        num_classes=classes,
        batch_size=len(images),
        clients=1,
        network="custom",
        granularity=granularity,
        per_layer=False,
        max_grad_norm=max_grad_norm,
        noise_multiplier=noise_multiplier,
        rounds=1,
        parameter_tensors=len(list(model.parameters())),
    )
    server = WaterFilling() if structure is None else structure
    payload = server.payload(task)
    update = privatized_update(model, images, labels, privacy, payload, seed)
    decoded = server.decode(payload, task, ClientUpdate(0, 0, 0, update, payload=payload.digest()))
    found, statistics = decoded.images, server.statistics(task)
    if decoded.refinement is not None and steps:
        prior = SmallDenoiser().eval().requires_grad_(False) if denoiser is None else denoiser
        *_, found = decoded.refinement.objective(found, statistics.transform, prior).iterates(steps)
    placed = arrange(found, match(images, found), statistics.mean)
    energies = images.square().sum(dim=(1, 2, 3))
    return AttackResult(
        truth=images,
        images=placed,
        psnr=psnr_per_image(placed, images),
        ssim=ssim_per_image(placed, images),
        epsilon=gaussian_epsilon(mu_of(noise_multiplier, 1, "add_remove"), privacy.delta),
        bounds={
            "noise_law_psnr": noise_law_psnr(noise_multiplier, energies, granularity, 1),
            "channel_nats": channel_nats(noise_multiplier, granularity, len(images), 1),
        },
        update=update,
    )
