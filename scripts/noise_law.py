# SPDX-License-Identifier: Apache-2.0
"""The noise law, checked: what a row that holds one victim says of its pixels, before any prior, filter or clamp.

No attack: the party that measures knows the pictures. For "identity" it gives every victim a row of its own (oracle
"rows") and divides by the true scale (oracle "scale"); for "paper" it takes the rows of the seed paper's structure that
happen to hold one victim alone ("rows") and divides by the leaked copies of δ, as the paper does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientDataModule, GrabCutMasks, NoMasks
from lightning_recon.data.sources import ClientBatch
from lightning_recon.evaluation.bounds import noise_law_psnr
from lightning_recon.evaluation.metrics import mse_per_image, psnr_from_mse, ssim_per_image
from lightning_recon.exchange import ServerPayload
from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, mu_of, nominal_epsilon
from lightning_recon.structure import InferenceStructure, SeedPaper
from lightning_recon.structure.head_weights import class_code

CLASSES, DRAWS, DELTA, MAX_GRAD_NORM = 64, 5, 1e-5, 10.0
# The paper sends 100 copies of δ beside the picture; a quarter of its units suffices to measure on.
COPIES, PAPER_UNITS = 100, 256
NOISE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Setting:
    """Whose pictures, how protected, through which structure."""

    attack: str
    size: int
    batch: int
    granularity: Literal["sample", "update"]
    cut_out: bool


def settings() -> Iterator[Setting]:
    """Every structure, size, batch, clip and kind of picture that is checked.

    The paper's structure only with few victims: of sixteen some share a row, and take more of the budget together.
    """
    for cut_out in (False, True):
        for attack, size in (("identity", 32), ("identity", 64), ("identity", 224), ("paper", 64)):
            yield Setting(attack, size, 1, "sample", cut_out)
            yield Setting(attack, size, 4, "update", cut_out)
            if attack == "identity":
                yield Setting(attack, size, 16, "update", cut_out)


def rows(root: Path) -> Iterator[dict[str, object]]:
    """The table, one row a setting, noise multiplier and noise draw.

    Args:
        root: Folder of photographs.
    """
    for setting in settings():
        print(setting, flush=True)
        data = ClientDataModule(
            str(root),
            image_size=setting.size,
            batch_size=setting.batch,
            clients=16 // setting.batch,
            masks=GrabCutMasks(work_size=192) if setting.cut_out else NoMasks(),
            num_classes=CLASSES,
        )
        data.prepare_data()
        data.setup()
        for z in NOISE:
            yield from measure(setting, data.client_batches, z)


def measure(setting: Setting, batches: list[ClientBatch], z: float) -> Iterator[dict[str, object]]:
    """One row a noise draw; none if no row of the structure holds a victim alone.

    Args:
        setting: Whose pictures, how protected.
        batches: One for each client.
        z: Noise multiplier.
    """
    truth = torch.cat([batch.images for batch in batches])
    found = [_readings(setting, batch, z, number) for number, batch in enumerate(batches)]
    readings, alone = torch.cat([read for read, _ in found], dim=1), torch.cat([private for _, private in found])
    if not bool(alone.any()):
        return
    # What is sent beside the picture takes its share of the clipping budget.
    beside = COPIES if setting.attack == "paper" else 0
    energies = torch.stack([batch.images.double().square().sum((1, 2, 3)) + beside for batch in batches])
    law = noise_law_psnr(z, energies, setting.granularity, 1)
    for draw in range(DRAWS):
        read = readings[draw, alone]
        mse = mse_per_image(read, truth[alone])
        yield {
            "attack": setting.attack,
            "granularity": setting.granularity,
            "z": z,
            "size": setting.size,
            "batch": setting.batch,
            "rounds": 1,
            "draw": draw,
            "psnr_mean": round(float(psnr_from_mse(mse).mean()), 4),
            "ssim_mean": round(float(ssim_per_image(read.clamp(0, 1), truth[alone]).mean()), 4),
            "detected": int(alone.sum()),
            "collided": int((~alone).sum()),
            "false": 0,
            "oracles": "rows" if setting.attack == "paper" else "rows scale",
            "missed": 0,
            "psnr_worst": round(float(psnr_from_mse(mse).min()), 4),
            "psnr_of_mean_mse": round(float(psnr_from_mse(mse.mean())), 4),
            "epsilon_nominal": nominal_epsilon(z),
            "epsilon_accounted": gaussian_epsilon(mu_of(z, 1, "add_remove"), DELTA),
            "noise_law_psnr": law,
            "victims": len(truth),
            "max_grad_norm": MAX_GRAD_NORM,
            "network": "convnet",
            "subject_fraction": round(float(torch.cat([batch.masks for batch in batches]).double().mean()), 4),
        }


def _readings(setting: Setting, batch: ClientBatch, z: float, seed: int) -> tuple[Tensor, Tensor]:
    """What the rows say of one client's victims in every draw, and which victims have a row of their own.

    Returns:
        Shape (draws, B, 3, H, W), not clamped; and (B,), bool.
    """
    noisy, clean = (
        VictimClient(
            "convnet",
            CLASSES,
            privacy=Privacy(MAX_GRAD_NORM, noise, setting.granularity),
            seed=seed,
            noise_seed=seed,
            normalization="imagenet",
        )
        for noise in (z, 0.0)
    )
    noisy.bind([batch])
    clean.bind([batch])
    payload = private_rows(batch.images) if setting.attack == "identity" else SeedPaper(PAPER_UNITS).payload(noisy.task)
    structure, pixels = InferenceStructure(payload), batch.images.flatten(1)
    measured = F.linear(structure.encode(batch.images), structure.weight)
    excited = (structure.lower <= measured) & (measured < structure.upper)
    alone = (excited & (excited.sum(dim=0) == 1)).any(dim=1)
    unit = excited.int().argmax(dim=1)
    sent = clean.share(payload, 0, 0, 0).gradient["structure.weight"][unit, : pixels.shape[1]]
    scale = (sent * pixels).sum(dim=1, keepdim=True) / pixels.square().sum(dim=1, keepdim=True)
    readings = []
    for draw in range(DRAWS):
        update = noisy.share(payload, 0, draw, 0).gradient
        if setting.attack == "paper":
            scale = update["structure.bias"][unit, :COPIES].mean(dim=1, keepdim=True)
        readings.append((update["structure.weight"][unit, : pixels.shape[1]] / scale).view_as(batch.images))
    return torch.stack(readings), alone


def private_rows(images: Tensor) -> ServerPayload:
    """A structure that sends plain pixels and gives each of these pictures, which it was made for, a row of its own.

    Args:
        images: Shape (B, 3, H, W), values in [0, 1], of different brightness.
    """
    pixels = images[0].numel()
    brightness = images.flatten(1).mean(dim=1).sort().values
    between = (brightness[1:] + brightness[:-1]) / 2
    return ServerPayload(
        settings={"pixels": True, "cancel": True, "strength": 1e4, "target_scale": 0.0},
        tensors={
            "mean": torch.zeros_like(images[0]),
            "colour": torch.eye(3),
            "index": torch.arange(pixels),
            "gain": torch.ones(pixels),
            "constants": torch.zeros(0),
            "directions": torch.full((1, pixels), 1 / pixels),
            "unit_direction": torch.zeros(len(images), dtype=torch.int64),
            "lower": torch.cat([torch.tensor([-torch.inf]), between]),
            "upper": torch.cat([between, torch.tensor([torch.inf])]),
            "code": class_code(CLASSES),
        },
    )
