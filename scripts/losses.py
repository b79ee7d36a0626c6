# SPDX-License-Identifier: Apache-2.0
"""What clients learn of their images, and by which loss, against both codes: untrained networks, closed form.

One client holds 8 photographs at 64 x 64. Labels and values are made up at random, masks are those of GrabCut.
"""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from synthetic_targets import LABELS, VALUES, synthetic_targets
from torch import Tensor

from lightning_recon.attack.protocol import run_protocol
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientDataModule, GrabCutMasks, NoMasks
from lightning_recon.evaluation.assignment import arrange, match
from lightning_recon.evaluation.metrics import psnr_per_image, ssim_per_image
from lightning_recon.losses import LossName, loss_named
from lightning_recon.structure import Digital, WaterFilling
from lightning_recon.structure.loss_weights import loss_code

SIZE, BATCH, DRAWS, CLIP = 64, 8, 5, 10.0
NOISE = (1e-2, 2e-4)
GRANULARITIES: tuple[Literal["sample", "update"], ...] = ("sample", "update")


@dataclass(frozen=True)
class Learned:
    """What a network learns.

    Args:
        target: in words.
        loss: name of the loss.
        outputs: number of outputs of the network.
        network: its name.
        targets: "labels", "masks", or the kind of `synthetic_targets`.
    """

    target: str
    loss: LossName
    outputs: int
    network: str
    targets: str


LEARNED = (
    Learned("one class", "cross_entropy", 64, "convnet", "labels"),
    Learned("14 labels", "binary_cross_entropy", LABELS, "convnet", "made-up labels"),
    Learned("3 values", "mean_squared_error", VALUES, "convnet", "made-up values"),
    Learned("mask", "binary_cross_entropy", 1, "pixel_convnet", "masks"),
    Learned("mask", "dice", 1, "pixel_convnet", "masks"),
    Learned("mask", "dice_bce", 1, "pixel_convnet", "masks"),
    Learned("class of each pixel", "cross_entropy", 2, "pixel_convnet", "masks"),
)


def rows(root: Path) -> Iterator[dict[str, object]]:
    """The table: one row for each loss, clip, noise, code and noise draw.

    Args:
        root: folder of photographs.
    """
    for learned in LEARNED:
        for granularity in GRANULARITIES:
            for z in NOISE:
                yield from _measured(learned, granularity, z, root)


def _measured(
    learned: Learned, granularity: Literal["sample", "update"], z: float, root: Path
) -> Iterator[dict[str, object]]:
    """Both codes against the same client."""
    privacy = Privacy(max_grad_norm=CLIP, noise_multiplier=z, granularity=granularity)
    client = VictimClient(learned.network, learned.outputs, privacy=privacy, noise_seed=0, loss=learned.loss)
    data = _data(learned, root)
    client.bind(data.client_batches)
    truth = data.client_batches[0].images
    weights = gradient_weights(client, learned.loss, truth, client.targets(data.client_batches[0].labels))
    for name, structure in (("linear", WaterFilling(subjects=False)), ("digital", Digital(subjects=False))):
        payload, mean_image = structure.payload(client.task), structure.statistics(client.task).mean
        print(learned.target, learned.loss, granularity, z, name, flush=True)
        for draw in range(DRAWS):
            found = run_protocol(client, structure, payload, 0, draw, None).images
            owner = match(truth, found)
            images = arrange(found, owner, mean_image)
            psnr = psnr_per_image(images, truth)
            exact = ((255 * images).round() == (255 * truth).round()).flatten(1).all(1)
            yield {
                "attack": structure.name,
                "granularity": granularity,
                "z": z,
                "size": SIZE,
                "batch": BATCH,
                "rounds": 1,
                "draw": draw,
                "psnr_mean": round(float(psnr.mean()), 4),
                "ssim_mean": round(float(ssim_per_image(images, truth).mean()), 4),
                "detected": int((owner >= 0).sum()),
                "false": max(0, len(found) - BATCH),
                "oracles": "none",
                "psnr_worst": round(float(psnr.min()), 4),
                "victims": BATCH,
                "max_grad_norm": CLIP,
                "network": learned.network,
                "options": "",
                "target": learned.target,
                "loss": learned.loss,
                "code": name,
                "bit_exact": round(float(exact.float().mean()), 4),
                "weight_ratio": round(float(weights.max() / weights.min()), 3),
                "weight_spread": round(statistics.stdev(math.log(one) for one in weights.tolist()), 4),
            }


def _data(learned: Learned, root: Path) -> ClientDataModule:
    """The client's images and targets."""
    # Without enlargement GrabCut finds no subject in over half of all images of this size.
    masks, targets = GrabCutMasks(work_size=192) if learned.targets == "masks" else NoMasks(), learned.targets
    with TemporaryDirectory() as folder:
        if (kind := targets.removeprefix("made-up ")) != targets:
            targets = str(synthetic_targets(root, kind, Path(folder) / "targets.csv"))
        data = ClientDataModule(str(root), image_size=SIZE, batch_size=BATCH, masks=masks, targets=targets)
        data.prepare_data()
        data.setup()
    return data


def gradient_weights(client: VictimClient, loss: LossName, images: Tensor, targets: Tensor) -> Tensor:
    """Each image's |δ| for a unit of the structure, (B,): how unequal they are under a common clip.

    Args:
        client: bound to the images.
        loss: name of the loss.
        images: (B, 3, H, W).
        targets: of the loss.
    """
    with torch.no_grad():
        outputs = client.network(images)
    steps = torch.zeros(len(images), requires_grad=True)
    moved = outputs + steps.view(-1, *[1] * (outputs.ndim - 1)) * loss_code(loss, outputs)
    value = len(images) * loss_named(loss)(moved, targets)
    return torch.autograd.grad(value, steps)[0].abs()
