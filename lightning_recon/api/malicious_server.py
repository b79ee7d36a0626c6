# SPDX-License-Identifier: Apache-2.0
"""A batch under attack by a malicious server, in memory: the client, and the attack with a structure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_recon.api.result import AttackResult, bounds_of, scored
from lightning_recon.api.user_model import (
    check_denoiser,
    check_images,
    check_privacy,
    check_structure,
    check_targets,
    float_copy,
    isolated,
    task_of,
)
from lightning_recon.attack.protocol import prepare, run_protocol
from lightning_recon.client.clean_update import tampered_model
from lightning_recon.client.gradients import reproducible_fp32
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.client.privatize import noised_when_read
from lightning_recon.client.update import clipped_update
from lightning_recon.exchange import ClientUpdate, LazyTensors, ServerPayload, Task
from lightning_recon.image_format import format_of
from lightning_recon.losses import LOSS_NAMES, LossName, loss_named
from lightning_recon.networks.setup_check import explained_batch_norm
from lightning_recon.priors.denoisers import Denoiser
from lightning_recon.priors.unet_denoiser import LargeDenoiser
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.ranges import COUNT_OR_NONE, SEED, check_choices, check_ranges
from lightning_recon.rng import generator_for
from lightning_recon.structure import Structure, WaterFilling


@dataclass
class BatchClient:
    """A client with one batch that answers a server, see `exchange.Client`.

    Args:
        task: what the server knows.
        network: in float32, in the mode in which it is differentiated.
        device: of the network.
        images: (B, C, H, W) in [0, 1].
        labels: (B,), int64, or other targets (B, ...).
        privacy: clipping and noise.
        seed: seed of dropout.
        noise_source: where the noise comes from.
        released: the update of the first round.
    """

    task: Task
    network: nn.Module
    device: torch.device
    images: Tensor
    labels: Tensor
    privacy: Privacy
    seed: int
    noise_source: NoiseSource
    released: Mapping[str, Tensor] = field(default_factory=dict)

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """Answer one round's payload with a privatized update."""
        gradient = self.privatized(payload, round)
        self.released = self.released or gradient
        return ClientUpdate(
            client,
            draw,
            round,
            gradient,
            payload=payload.digest(),
            reproducible_noise=self.noise_source.seed is not None,
        )

    def privatized(self, payload: ServerPayload, round: int) -> LazyTensors:
        """The clipped and noised gradient of one round, by parameter name."""
        dropout = generator_for("dropout", self.seed, 0, 0).initial_seed()
        with reproducible_fp32(self.network, self.device, dropout, None), explained_batch_norm():
            # Clones, because tensors that were made in inference mode cannot be differentiated.
            images, labels = (one.detach().to(self.device).clone() for one in (self.images, self.labels))
            model = tampered_model(self.network, payload, self.device)
            loss = loss_named(self.task.loss)
            gradient = clipped_update(model, images.float(), labels, self.privacy, 1, loss=loss).gradient
        return noised_when_read(gradient, self.privacy, [(1.0, self.noise_source.generators(0, 0, round))])


def client_of(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    privacy: Privacy,
    seed: int,
    noise_seed: int | None,
    loss: LossName = "cross_entropy",
) -> BatchClient:
    """Check the user's arguments, and make a client of them.

    Raises:
        UserError: Model, images and labels do not fit each other, or a seed is out of range.
    """
    check_ranges("", seed=(seed, SEED), noise_seed=(noise_seed, SEED))
    check_choices("", loss=(loss, LOSS_NAMES))
    check_privacy(privacy)
    check_images(images)
    network, device = float_copy(model)
    task = task_of(network, format_of(images[0]).shape, len(images), privacy, loss)
    labels = check_targets(loss, labels, len(images), task.num_classes)
    return BatchClient(task, network, device, images, labels, privacy, seed, NoiseSource(noise_seed))


@isolated()
def privatized_update(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    privacy: Privacy,
    payload: ServerPayload | None = None,
    seed: int = 0,
    noise_seed: int | None = None,
    loss: LossName = "cross_entropy",
) -> dict[str, Tensor]:
    """The clipped and noised gradient that a client would release.

    The model is not changed, nor is the global random state. The gradient is computed in float32 where the model is.

    Args:
        model: any network, images to logits, differentiated in the mode (train or eval) in which it is.
        images: (B, C, H, W) in [0, 1].
        labels: (B,), int64; or other targets of the loss, (B, outputs) or (B, channels, H, W), floating point.
        privacy: clipping and noise.
        payload: what a malicious server adds to the model; None adds nothing.
        seed: seed of dropout.
        noise_seed: seed for reproducible noise, which anyone who knows it can subtract; None: secret noise, drawn anew.
        loss: name of the loss that the client trains by, see `VictimClient`.

    Returns:
        By parameter name: "network.<parameter>" for the model's own, "structure.<parameter>" for what the payload adds.
        Granularity "update": the clipped gradient of the mean loss plus noise; "sample": the sum of the
        samples' clipped gradients plus noise.

    Raises:
        UserError: Model, images and labels do not fit each other, or a gradient holds NaN or infinity.

    Example:
        >>> import torch
        >>> import lightning_recon as lr
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
        >>> images = torch.full((2, 3, 8, 8), 0.5)
        >>> update = lr.privatized_update(model, images, torch.tensor([1, 2]), lr.Privacy(max_grad_norm=1.0))
        >>> [(name, tuple(tensor.shape)) for name, tensor in update.items()]
        [('network.1.weight', (10, 192)), ('network.1.bias', (10,))]
    """
    client = client_of(model, images, labels, privacy, seed, noise_seed, loss)
    return dict(client.privatized(ServerPayload() if payload is None else payload, 0))


@isolated()
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
    rounds: int = 1,
    mechanism: str = "gaussian",
    noise_seed: int | None = None,
    loss: LossName = "cross_entropy",
) -> AttackResult:
    """Attack one batch as a malicious server does, which adds a layer to the model.

    The model is not changed, nor is the global random state. The attack runs where the model is.

    Args:
        model: any network, images to logits, differentiated in the mode (train or eval) in which it is.
        images: (B, C, H, W) in [0, 1].
        labels: (B,), int64; or other targets of the loss, (B, outputs) or (B, channels, H, W), floating point.
        max_grad_norm: clipping norm C.
        noise_multiplier: scale of the noise divided by C (z), for Gaussian noise its standard deviation.
        granularity: what is clipped: each sample's gradient, or the whole update.
        structure: what the server adds to the model; default: `WaterFilling`, the linear code.
        denoiser: prior of the refinement; default: `LargeDenoiser`; `SmallDenoiser` is faster.
        steps: refinement steps, 0 for the decoding alone.
        seed: seed of dropout.
        rounds: updates on the same batch (T); `structure.Feedback` uses later rounds to ask for what is still unknown.
        mechanism: distribution of the noise, see `Privacy`.
        noise_seed: seed for reproducible noise, which anyone who knows it can subtract; None: secret noise, drawn anew.
        loss: name of the loss that the client trains by, see `VictimClient`.

    Raises:
        UserError: Model, images and labels do not fit each other, another argument is not what it has to be, or a
            gradient holds NaN or infinity.

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
    check_ranges("", steps=(steps, COUNT_OR_NONE))
    server = WaterFilling() if structure is None else structure
    check_structure(server)
    check_denoiser(denoiser)
    privacy = Privacy(max_grad_norm, noise_multiplier, granularity, rounds=rounds, mechanism=mechanism)
    client = client_of(model, images, labels, privacy, seed, noise_seed, loss)
    payload = prepare(client, server)
    decoded = run_protocol(client, server, payload, 0, 0, None)
    found, statistics = decoded.images, server.statistics(client.task)
    if decoded.refinement is not None and steps:
        trained = LargeDenoiser().eval().requires_grad_(False).to(client.device) if denoiser is None else denoiser
        start, transform = found.to(client.device), statistics.transform.to(client.device)
        *_, found = decoded.refinement.to(client.device).objective(start, transform, trained).iterates(steps)
    return scored(
        found.cpu(),
        images,
        privacy,
        statistics,
        labels=None,
        evident=decoded.evident,
        bounds=bounds_of(privacy, len(images), images),
        update=dict(client.released),
    )
