# SPDX-License-Identifier: Apache-2.0
"""Train the small denoiser that ships with the package, on errors like those that decoding leaves, and on white noise.

    python scripts/train_denoiser.py photographs/ --output lightning_recon/priors/weights/denoiser.safetensors

About half an hour on one core. A stopped run goes on where it was: its checkpoints are in --work.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_recon.priors.dct import CosineTransform
from lightning_recon.priors.image_statistics import public_statistics
from lightning_recon.priors.unet_denoiser import SmallDenoiser
from lightning_recon.structure.coding.power_allocation import water_filling
from lightning_recon.structure.refinement import PlugAndPlay, Posterior

PATCH = 56
SIZES = (56, 112, 168, 224)  # of whole images, of which a patch is a part
PICTURES_PER_PHOTOGRAPH = 24
NOISE_LEVELS = (4e-4, 1.0)  # effective noise multipliers
WHITE_LEVELS = (0.7 / 255, 80 / 255)  # standard deviations of white noise
SUBJECT_SHARE = 0.35
# White noise is learned first and quickly; its share of the batches decreases between these fractions of the training.
WHITE_SHARE = (1.0, 0.25)
WHITE_UNTIL = (0.2, 0.45)
# Later, the network also learns from the decoding after the attack's first steps.
UNROLLED, UNROLLED_FROM = 6, 0.55
# Learned with a slower decay than the attack's, so that later steps see noise as well.
DECAY = 0.75
FLOOR = 1 / 255  # smaller errors do not matter
PILOT_POWER = 0.08
RUNGS = 64  # noise multipliers for which the code is tabulated


@dataclass(frozen=True)
class Codes:
    """Per image size and noise multiplier, of the cosine coefficients that a patch sees: shape (RUNGS, 3, P, P).

    Args:
        variance: Public variance, shape (3, P, P).
        gain: Wiener's gain.
        spread: Root of the mean posterior variance over the whole image, shape (RUNGS,).
    """

    variance: Tensor
    gain: Tensor
    spread: Tensor


def codes(size: int) -> Codes:
    """Water-filling for whole images, seen through a patch: every (size / PATCH)-th frequency."""
    variance = public_statistics(size, size, subjects=False).variance
    gains, spreads = [], []
    for noise in torch.linspace(*(math.log(level) for level in NOISE_LEVELS), RUNGS).exp().tolist():
        power = water_filling(variance, noise, 1 - PILOT_POWER)
        gain = power / (power + noise**2)
        spreads.append((variance * (1 - gain)).mean().sqrt())
        gains.append(gain)
    seen = slice(None, None, size // PATCH)
    return Codes(variance[:, seen, seen], torch.stack(gains)[..., seen, seen], torch.stack(spreads))


def pictures(folder: Path, generator: torch.Generator) -> dict[int, tuple[Tensor, Tensor]]:
    """Random crops of all photographs at several scales: per size the images (uint8) and their energy factors κ."""
    found: dict[int, list[Tensor]] = {size: [] for size in SIZES}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")):
        photograph = TF.to_image(Image.open(path).convert("RGB"))
        short = min(photograph.shape[-2:])
        for index in range(PICTURES_PER_PHOTOGRAPH):
            size = SIZES[index % len(SIZES)]
            if short < size:
                continue
            side = int(size + (min(1.8 * size, short) - size) * float(torch.rand((), generator=generator)))
            small = TF.resize(photograph, [side], antialias=True)
            top, left = (int(torch.randint(n - size + 1, (), generator=generator)) for n in small.shape[-2:])
            found[size].append(small[:, top : top + size, left : left + size].clone())
    return {size: (torch.stack(all_), torch.stack([contrast(one) for one in all_])) for size, all_ in found.items()}


def contrast(picture: Tensor) -> Tensor:
    """Energy of an image relative to the public spectrum, weighted like the code."""
    statistics = public_statistics(*picture.shape[-2:], subjects=False)
    std = statistics.variance.sqrt()
    return (statistics.transform.analyse(picture / 255).square() / std).sum() / std.sum()


class Batch(NamedTuple):
    """Simulated decodings of some images.

    Args:
        clean: The images, shape (B, 3, P, P).
        mean: Of the coefficients' posterior, same shape.
        variance: Likewise.
        prior_variance: Likewise.
        expected: Public mean images, same shape.
        sigma: Standard deviation of the decoding's error over the whole image, shape (B,).
        steps: How many steps of refinement to take before the one to learn from.
    """

    clean: Tensor
    mean: Tensor
    variance: Tensor
    prior_variance: Tensor
    expected: Tensor
    sigma: Tensor
    steps: int


class Batches(IterableDataset[Batch]):
    """Endless batches of decoded images, and of images with white noise."""

    def __init__(self, folder: Path, batch: int, steps: int, done: int) -> None:
        """Read all photographs; a resumed run uses other patches than the stopped one."""
        self.batch, self.steps, self.done = batch, steps, done
        self.generator = torch.Generator().manual_seed(done)
        self.pool = pictures(folder, self.generator)
        self.codes = {size: codes(size) for size in SIZES}
        self.statistics = public_statistics(PATCH, PATCH, subjects=False)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of one image size."""
        while True:
            size = SIZES[int(torch.randint(len(SIZES), (), generator=self.generator))]
            clean, factor, dim = self.patches(size)
            code = self.codes[size]
            rung = torch.randint(RUNGS, (self.batch,), generator=self.generator)
            low, high = (math.log(level) for level in WHITE_LEVELS)
            level = (low + (high - low) * self.uniform(self.batch)).exp()
            white = self.uniform(self.batch) < self.white_share()
            wide = white[:, None, None, None]
            prior = factor[:, None, None, None] * code.variance
            # White noise corresponds to equal gain for every coefficient, whatever the spectrum.
            prior = torch.where(wide, 1e4, prior)
            gain = torch.where(wide, 1 - level[:, None, None, None] ** 2 / prior, code.gain[rung])
            expected = self.statistics.mean * dim[:, None, None, None]
            coefficients = CosineTransform(expected, self.statistics.colour).analyse(clean)
            # A gain g means noise of variance prior · (1 − g) / g; a coefficient that was not sent has g = 0.
            filtered = gain * coefficients + (prior * gain * (1 - gain)).sqrt() * self.normal(gain.shape)
            sigma = torch.where(white, level, factor.sqrt() * code.spread[rung])
            unrolled = self.done > UNROLLED_FROM * self.steps
            steps = int(torch.randint(UNROLLED, (), generator=self.generator)) if unrolled else 0
            self.done += 1
            variance = (prior * (1 - gain)).clamp(min=1e-12)
            yield Batch(clean, filtered, variance, prior, expected, sigma, steps)

    def white_share(self) -> float:
        """Share of white noise at this stage."""
        (early, late), (start, end) = WHITE_SHARE, WHITE_UNTIL
        passed = (self.done / self.steps - start) / (end - start)
        return early + (late - early) * min(1.0, max(0.0, passed))

    def uniform(self, *shape: int) -> Tensor:
        """Random numbers in [0, 1)."""
        return torch.rand(*shape, generator=self.generator)

    def normal(self, shape: torch.Size) -> Tensor:
        """Standard normal random numbers."""
        return torch.randn(shape, generator=self.generator)

    def patches(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random patches, turned and mirrored, some with the background cut out.

        Args:
            size: Size of the images that contain the patches.

        Returns:
            The patches, the κ of their images, and the public mean of their pixels, in [0, 1].
        """
        pool, factors = self.pool[size]
        chosen = torch.randint(len(pool), (self.batch,), generator=self.generator)
        corners = torch.randint(size - PATCH + 1, (self.batch, 2), generator=self.generator).tolist()
        clean = torch.stack(
            [pool[i, :, y : y + PATCH, x : x + PATCH] for i, (y, x) in zip(chosen.tolist(), corners, strict=True)]
        )
        clean = clean / 255
        turns = int(torch.randint(8, (), generator=self.generator))
        clean = torch.rot90(clean.flip(-1) if turns > 3 else clean, turns % 4, (-2, -1))
        factor = factors[chosen] * (0.4 * self.normal(torch.Size([self.batch]))).exp()
        subject = self.uniform(self.batch) < SUBJECT_SHARE
        cells = int(torch.randint(2, 6, (), generator=self.generator))
        field = F.interpolate(self.normal(torch.Size([self.batch, 1, cells, cells])), PATCH, mode="bicubic")
        inside = field > 0.5 * self.normal(torch.Size([self.batch, 1, 1, 1]))
        clean = torch.where(subject[:, None, None, None] & ~inside, 0.0, clean).contiguous()
        return clean, factor, torch.where(subject, self.uniform(self.batch), torch.ones(self.batch))


class Training(LightningModule):
    """Mean squared error in units of the noise; Adam with a cosine."""

    def __init__(self, steps: int) -> None:
        """Train for a number of steps."""
        super().__init__()
        self.steps = steps
        self.colour = public_statistics(PATCH, PATCH, subjects=False).colour
        self.network = SmallDenoiser(weights=None).to(memory_format=torch.channels_last)
        # Rounding to bfloat16 would remove the faintest noise of the images: the first layer is exact.
        head = self.network.head
        head.forward = torch.autocast("cpu", enabled=False)(head.forward)  # type: ignore[method-assign]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Take some refinement steps like the attack, and learn from the next one."""
        posterior = Posterior(batch.mean, batch.variance, batch.prior_variance, torch.zeros_like(batch.mean))
        splitting = PlugAndPlay(posterior, CosineTransform(batch.expected, self.colour), self.denoised)
        splitting.sigma, splitting.decay = batch.sigma, DECAY
        dummies = torch.zeros_like(batch.mean)
        for step in range(batch.steps):
            dummies = splitting.stepped(dummies, step)
        noisy = splitting.images(splitting.fitted(dummies, batch.steps)).clamp(0, 1)
        found = self.denoised(noisy, batch.sigma * DECAY**batch.steps)
        decoded = splitting.images(torch.zeros_like(dummies)).clamp(0, 1)
        before, after = ((x - batch.clean).square().mean(dim=(1, 2, 3)) for x in (decoded, found))
        scale = torch.maximum(before, batch.sigma**2) + FLOOR**2
        self.log("error", (after / scale).detach().mean())
        return (after / scale).mean()

    def denoised(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """The output of the network, in half precision except for its first layer."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found: Tensor = self.network(noisy.contiguous(memory_format=torch.channels_last), sigma)
        return found.float()

    def configure_optimizers(self) -> dict[str, object]:
        """Adam with a linear warm-up of 100 steps and a cosine schedule."""
        adam = torch.optim.Adam(self.parameters(), lr=1e-3)

        def rate(step: int) -> float:
            return min(1.0, step / 100) * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps))))

        scheduler = torch.optim.lr_scheduler.LambdaLR(adam, rate)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main() -> None:
    """Train, and write the averaged weights in half precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of photographs that may be used for it")
    parser.add_argument("--output", type=Path, required=True, help="where to write the weights (.safetensors)")
    parser.add_argument("--work", type=Path, default=Path("runs/denoiser"), help="checkpoints")
    parser.add_argument("--steps", type=int, default=5900)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seed_everything(0)
    last = options.work / "last.ckpt"
    done = torch.load(last, map_location="cpu", weights_only=True)["global_step"] if last.exists() else 0
    batches = Batches(options.photographs, options.batch, options.steps, done)
    training = Training(options.steps)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=options.steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        default_root_dir=options.work,
        callbacks=[
            EMAWeightAveraging(decay=0.998),
            ModelCheckpoint(options.work, save_last=True, save_top_k=0, every_n_train_steps=250),
        ],
        log_every_n_steps=25,
        enable_progress_bar=False,
    )
    trainer.fit(training, DataLoader(batches, batch_size=None), ckpt_path=last if last.exists() else None)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.half().contiguous() for name, value in training.network.state_dict().items()}, options.output
    )


if __name__ == "__main__":
    main()
