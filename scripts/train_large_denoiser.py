# SPDX-License-Identifier: Apache-2.0
"""Train the large denoiser on errors of decodings of the linear code, as the refinement meets them.

    python scripts/train_large_denoiser.py photographs/ --output large_denoiser.safetensors

About two and a half hours on two cores. A stopped run goes on where it was: its state is in --work. The photographs are
those that `lightning_recon/priors/weights/photographs.tsv` lists: `scripts/repository_photographs.py photographs/` and,
as the folder `photographs/debian-cc0`, the folder `cc0` that `scripts/photographs.py` writes. Of the flowers, which are
many, every fifth picture is one.

Training starts from the weights of the small denoiser: what is added to it changes nothing at first. The learning rate
of the first half of the shipped weights' training followed the time that had passed instead of the number of steps.
"""

import argparse
import copy
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from PIL import Image
from repository_photographs import PHOTOGRAPHS, read_photographs
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_recon.priors.dct import CosineTransform
from lightning_recon.priors.image_statistics import public_statistics
from lightning_recon.priors.unet_denoiser import LargeDenoiser, SmallDenoiser
from lightning_recon.structure.coding.power_allocation import water_filling
from lightning_recon.structure.detection.wiener import RowPrior, decode_row
from lightning_recon.structure.refinement import PlugAndPlay, Posterior
from lightning_recon.structure.row_model import in_coefficients

PATCH, BATCH = 64, 16
LONGEST_SHORT_SIDE = 512  # of photographs in memory
LEARNING_RATE, DECAY_OF_AVERAGE = 5e-4, 0.999
PILOT_POWER = 0.08
FLOWERS, FLOWER_SHARE = "tf-flower-photos", 0.2
# Shares of the batches: white noise, and patches of larger images; the rest are whole images of 64 x 64.
WHITE_SHARE, PATCH_SHARE = 0.15, 0.25
LARGER_SIZES = (112, 112, 224)
SUBJECT_SHARE = 0.2
# Noise multipliers are drawn log-uniformly from two ranges, mostly from the first; 24 are kept for each size.
FAINT, CLEAR, FAINT_SHARE = (10**-2.15, 10**-0.6), (10**-3.5, 10**-2.15), 0.75
LEVELS = 24
WHITE_SIGMAS = (0.7 / 255, 80 / 255)
# In the second half, the network also learns from the refinement's later steps, in these shares.
UNROLLED_FROM, STEP_SHARES = 0.5, (50, 25, 15, 10)
FLOOR = 1 / 255  # smaller errors do not matter


class LinearCode:
    """The linear code of one image that is clipped alone, as encoder, channel and decoder."""

    def __init__(self, size: int, noise: float, subjects: bool) -> None:
        """Allocate the power for images of size x size pixels at a noise multiplier."""
        self.noise, self.statistics = noise, public_statistics(size, size, subjects)
        power = water_filling(self.statistics.variance, noise, 1 - PILOT_POWER).flatten()
        index = power.nonzero().flatten()
        gain = (power / self.statistics.variance.flatten()).sqrt()[index]
        self.shipped = {"index": index, "gain": gain}
        self.prior = RowPrior(
            power=power[index],
            pilot_level=math.sqrt(PILOT_POWER),
            log_contrast_std=self.statistics.log_contrast_std,
            scale=1.0,
            log_scale_std=0.0,
            mean=None,
        )

    def decode(self, images: Tensor) -> Posterior:
        """The posterior of images, shape (N, 3, size, size), after a release with fresh noise."""
        coefficients = self.statistics.transform.analyse(images).flatten(1)
        inputs = coefficients[:, self.shipped["index"]] * self.shipped["gain"]
        inputs = torch.cat([inputs, torch.full((len(images), 1), self.prior.pilot_level)], dim=1)
        rows = inputs / inputs.norm(dim=1, keepdim=True)
        rows = rows + self.noise * torch.randn_like(rows)
        decoded = [decode_row(row[:-1], float(row[-1]), self.noise, self.prior) for row in rows]
        return in_coefficients(decoded, self.shipped, self.statistics)


class Batch(NamedTuple):
    """Images and what the denoiser is to make them from: either `noisy` and `sigma`, or `posterior` and `mean`.

    Args:
        clean: The images, shape (BATCH, 3, PATCH, PATCH).
        noisy: The images with errors, same shape.
        sigma: Standard deviation of the errors, shape (BATCH,).
        posterior: Of decoded whole images, from which the refinement starts.
        mean: Mean image of the posterior's transform, shape (3, PATCH, PATCH).
    """

    clean: Tensor
    noisy: Tensor | None = None
    sigma: Tensor | None = None
    posterior: Posterior | None = None
    mean: Tensor | None = None


def photographs(folder: Path) -> tuple[list[Tensor], list[Tensor]]:
    """All listed photographs as uint8 tensors (3, H, W), reduced: flowers, and all others."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for listed in read_photographs(PHOTOGRAPHS):
        path = folder / listed.file
        if not path.is_file():
            raise SystemExit(f"{path} is missing: gather the photographs as the text of --help says")
        image = TF.to_image(Image.open(path).convert("RGB"))
        if min(image.shape[-2:]) > LONGEST_SHORT_SIDE:
            image = TF.resize(image, [LONGEST_SHORT_SIDE], antialias=True)
        found[path.parent.name != FLOWERS].append(image)
    return found


def crop(photograph: Tensor, size: int) -> Tensor:
    """A random square of a photograph, mostly nearly all of it, at size x size pixels, in other light."""
    height, width = photograph.shape[-2:]
    short = min(height, width)
    if random.random() < 0.6:
        side = short * random.uniform(0.8, 1)
    else:
        side = math.exp(random.uniform(math.log(min(short, max(size, 0.2 * short))), math.log(short)))
    side = int(max(min(size, short), side))
    top, left = random.randint(0, height - side), random.randint(0, width - side)
    square = photograph[None, :, top : top + side, left : left + side].float() / 255
    image = F.interpolate(square, (size, size), mode="bilinear", antialias=True)[0].clamp(0, 1)
    # Photographs are upright: few are turned over, none is turned aside.
    image = image.flip(-1) if random.random() < 0.5 else image
    if random.random() < 0.5:
        image = image.clamp(min=1e-4) ** math.exp(random.gauss(0, 0.25))
        tint = torch.tensor([math.exp(random.gauss(0, 0.06)) for _ in range(3)])[:, None, None]
        image = (image * tint * math.exp(random.gauss(0, 0.12))).clamp(0, 1)
    image = image.flip(-2) if random.random() < 0.05 else image
    return (image * 255).round() / 255


def cut_out(images: Tensor) -> Tensor:
    """The same with a random part on black."""
    cells = random.randint(2, 5)
    field = F.interpolate(torch.randn(len(images), 1, cells, cells), images.shape[-2:], mode="bicubic")
    return images * (field > 0.5 * torch.randn(len(images), 1, 1, 1))


class Batches(IterableDataset[Batch]):
    """Endless random batches."""

    def __init__(self, folder: Path, seed: int) -> None:
        """A resumed run gets another seed, and so other batches."""
        self.folder, self.seed = folder, seed
        self.codes: dict[tuple[int, bool, int], LinearCode] = {}

    def __iter__(self) -> Iterator[Batch]:
        """White noise, patches of larger images, or whole images."""
        torch.manual_seed(self.seed)
        random.seed(self.seed)
        torch.set_num_threads(1)
        flowers, others = photographs(self.folder)
        while True:
            kind, subjects = random.random(), random.random() < SUBJECT_SHARE
            white, patches = kind < WHITE_SHARE, WHITE_SHARE <= kind < WHITE_SHARE + PATCH_SHARE
            size = random.choice(LARGER_SIZES) if patches else PATCH
            pools = [flowers if flowers and random.random() < FLOWER_SHARE else others for _ in range(BATCH)]
            count = 6 if size > 2 * PATCH else BATCH
            clean = torch.stack([crop(random.choice(pool), size) for pool in pools[:count]])
            clean = cut_out(clean) if subjects else clean
            if white:
                sigma = torch.empty(BATCH).uniform_(*(math.log(level) for level in WHITE_SIGMAS)).exp()
                noisy = clean + sigma[:, None, None, None] * torch.randn_like(clean)
                yield Batch(clean, noisy.clamp(0, 1), sigma)
                continue
            code = self.code(size, subjects)
            posterior, transform = code.decode(clean), code.statistics.transform
            if patches:
                yield self.patches(clean, PlugAndPlay(posterior, transform, LargeDenoiser(weights=None)))
            else:
                yield Batch(clean, posterior=posterior, mean=transform.mean)

    def code(self, size: int, subjects: bool) -> LinearCode:
        """One of the codes for a size, designed when it is first used."""
        place = (size, subjects, random.randrange(LEVELS))
        if place not in self.codes:
            low, high = FAINT if random.random() < FAINT_SHARE else CLEAR
            noise = math.exp(random.uniform(math.log(low), math.log(high)))
            self.codes[place] = LinearCode(size, noise, subjects)
        return self.codes[place]

    @staticmethod
    def patches(clean: Tensor, splitting: PlugAndPlay) -> Batch:
        """Random patches of what the refinement's first step denoises."""
        dummies = torch.zeros_like(splitting.mean)
        noisy, size = splitting.images(splitting.fitted(dummies, 0)).clamp(0, 1), clean.shape[-1]
        places = [(number % len(clean), *(random.randint(0, size - PATCH) for _ in "yx")) for number in range(BATCH)]
        pairs = [
            torch.stack([images[one, :, y : y + PATCH, x : x + PATCH] for one, y, x in places])
            for images in (clean, noisy)
        ]
        return Batch(*pairs, torch.stack([splitting.sigma[one] for one, _, _ in places]))


def start() -> LargeDenoiser:
    """The large network with the small one's weights, which the rest of its weights do not disturb."""
    network, small = LargeDenoiser(weights=None), SmallDenoiser().state_dict()
    weights = network.state_dict()
    for name, old in small.items():
        new = weights[name]
        if old.dim() == 1:
            new[: len(old)] = old
            continue
        rows, columns = old.shape[:2]
        # Channels that are added have no influence on the old ones; transposed convolutions store inputs first.
        (new[:, :columns] if name.startswith("grow") else new[:rows]).zero_()
        new[:rows, :columns] = old
    blocks = {name.split(".")[1] for name in weights if name.startswith("coarse.")}
    for added in blocks - {name.split(".")[1] for name in small if name.startswith("coarse.")}:
        for kind in ("weight", "bias"):
            weights[f"coarse.{added}.second.{kind}"].zero_()
    network.load_state_dict(weights)
    return network


def loss(network: LargeDenoiser, batch: Batch, colour: Tensor, later_steps: bool) -> Tensor:
    """Squared error of the denoised images in units of the error before."""
    step = 0
    if batch.posterior is None:
        assert batch.noisy is not None
        assert batch.sigma is not None
        noisy, sigma = batch.noisy, batch.sigma
        before = _errors(noisy, batch.clean)
    else:
        assert batch.mean is not None
        splitting = PlugAndPlay(batch.posterior, CosineTransform(batch.mean, colour), network)
        dummies = torch.zeros_like(batch.clean)
        before = _errors(splitting.images(dummies).clamp(0, 1), batch.clean)
        if later_steps:
            step = random.choices(range(len(STEP_SHARES)), STEP_SHARES)[0]
        for earlier in range(step):
            dummies = splitting.stepped(dummies, earlier)
        noisy = splitting.images(splitting.fitted(dummies, step)).clamp(0, 1)
        sigma = splitting.sigma * splitting.decay**step
    after = _errors(network(noisy.contiguous(memory_format=torch.channels_last), sigma), batch.clean)
    unit = torch.maximum(before, sigma**2) if step == 0 else before
    return (after / (unit + FLOOR**2)).mean()


def _errors(images: Tensor, clean: Tensor) -> Tensor:
    return (images - clean).square().mean(dim=(1, 2, 3))


def main() -> None:
    """Train, and write the averaged weights in half precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of photographs that may be used for it")
    parser.add_argument("--output", type=Path, required=True, help="where to write the weights (.safetensors)")
    parser.add_argument("--work", type=Path, default=Path("runs/large_denoiser.pt"), help="state of the training")
    parser.add_argument("--steps", type=int, default=10400)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    network = start()
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, betas=(0.9, 0.99))
    done = 0
    if options.work.exists():
        state = torch.load(options.work, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    options.work.parent.mkdir(parents=True, exist_ok=True)
    random.seed(done)
    colour = public_statistics(PATCH, PATCH, subjects=False).colour
    loader = DataLoader(Batches(options.photographs, 1000 + done), batch_size=None, num_workers=1, prefetch_factor=8)
    for step, batch in enumerate(loader, start=done):
        if step >= options.steps:
            break
        passed = step / options.steps
        rate = min(1.0, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * passed)))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        value = loss(network, batch, colour, passed > UNROLLED_FROM)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        share = 1 - min(DECAY_OF_AVERAGE, (step + 2) / (step + 51))
        with torch.no_grad():
            for mean, present in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(present, share)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: {float(value):.3f} of the error before", flush=True)
            torch.save(
                {
                    "network": network.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                },
                options.work,
            )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in average.state_dict().items()}, options.output)


if __name__ == "__main__":
    main()
