# SPDX-License-Identifier: Apache-2.0
"""The denoisers that ship with the package: U-Nets, trained on images with the errors that decoding leaves."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.files.faults import FAULTS, reason_of
from lightning_recon.files.serialization import read_safetensors
from lightning_recon.priors.base import Prior

_WEIGHTS = Path(__file__).parent / "weights"
SHIPPED, SHIPPED_LARGE = _WEIGHTS / "denoiser.safetensors", _WEIGHTS / "large_denoiser.safetensors"

# No pixel changes by more than so many sigmas.
_REACH = 8.0
# Images are padded to a multiple of this.
_STRIDE = 8


class _Block(nn.Module):
    """A residual block: two convolutions around a rectifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.relu(self.first(x)))
        return out


class UNetDenoiser(Prior):
    """A U-Net that changes no pixel by more than a few sigmas: without noise, nothing.

    Source: the architecture follows FFDNet (Zhang et al. 2018: half resolution, a map of the noise level) and DRUNet
    (Zhang et al. 2021: residual U-Net); both much reduced.
    """

    def __init__(
        self,
        widths: tuple[int, int, int],
        coarsest_blocks: int,
        weights: str | None,
        strength: float = 1.0,
        sigma: float = 0.05,
    ) -> None:
        """Build it.

        Args:
            widths: Channels at a half, a quarter and an eighth of the resolution.
            coarsest_blocks: Residual blocks at an eighth of the resolution; elsewhere there is one on the way down and
                one on the way up.
            weights: File of its weights (.safetensors); None: random.
            strength: Factor of `value` in the objective of gradient inversion, at least 0.
            sigma: Standard deviation of the noise for which `value` calls the denoiser, above 0.

        Raises:
            UserError: The file is missing, cannot be read, or holds another network's weights.
        """
        super().__init__(strength, sigma)
        fine, middle, coarse = widths
        self.head = nn.Conv2d(13, fine, 3, padding=1)
        self.fine_down, self.fine_up = _Block(fine), _Block(fine)
        self.middle_down, self.middle_up = _Block(middle), _Block(middle)
        self.coarse = nn.Sequential(*(_Block(coarse) for _ in range(coarsest_blocks)))
        self.shrink = nn.ModuleList([nn.Conv2d(fine, middle, 2, 2), nn.Conv2d(middle, coarse, 2, 2)])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(middle, fine, 2, 2), nn.ConvTranspose2d(coarse, middle, 2, 2)])
        self.tail = nn.Conv2d(fine, 12, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        if weights is not None:
            self.load_state_dict(_read(Path(weights), self.state_dict()))
        # A processor's convolutions are up to 1.4 times faster in this layout, which their outputs keep.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Remove noise; of images that are not RGB from each channel by itself, as from a grey image.

        Args:
            x: Noisy images, shape (M, C, H, W), values around [0, 1].
            sigma: Standard deviation of the noise, one number or shape (M,).

        Returns:
            Images of the same shape.
        """
        count, channels, height, width = x.shape
        if channels != 3:
            grey = x.reshape(-1, 1, height, width).expand(-1, 3, -1, -1)
            level = torch.as_tensor(sigma).to(x).reshape(-1).expand(count).repeat_interleave(channels)
            return self.forward(grey, level).mean(dim=1).reshape(x.shape)
        noise = torch.as_tensor(sigma).to(x).reshape(-1, 1, 1, 1).expand(len(x), 1, 1, 1)
        padded = F.pad(x, (0, -width % _STRIDE, 0, -height % _STRIDE), mode="replicate")
        small = F.pixel_unshuffle(padded, 2) - 0.5
        fine = self.fine_down(self.head(torch.cat([small, noise.expand_as(small[:, :1])], dim=1)))
        middle = self.middle_down(self.shrink[0](fine))
        middle = self.middle_up(middle + self.grow[1](self.coarse(self.shrink[1](middle))))
        fine = self.fine_up(fine + self.grow[0](middle))
        change = F.pixel_shuffle(self.tail(fine), 2)[..., :height, :width]
        limit = _REACH * noise.clamp(min=1e-6)
        return x + limit * (change / limit).tanh()


class SmallDenoiser(UNetDenoiser):
    """A U-Net of a million weights, trained on 153 photographs; faster than the large one."""

    def __init__(self, weights: str | None = str(SHIPPED), strength: float = 1.0, sigma: float = 0.05) -> None:
        """Build it.

        Args:
            weights: File of its weights (.safetensors), as `scripts/train_denoiser.py` writes it; null: random.
            strength: Factor of `value` in the objective of gradient inversion, at least 0.
            sigma: Standard deviation of the noise for which `value` calls the denoiser, above 0.

        Raises:
            UserError: The file is missing, cannot be read, or holds another network's weights.
        """
        super().__init__((48, 80, 128), 2, weights, strength, sigma)


class LargeDenoiser(UNetDenoiser):
    """The default denoiser of the refinement: a U-Net of 2.6 million weights, trained on 1,632 photographs.

    `docs/benchmarks.md` compares it with the small one.
    """

    # See `Denoiser`: errors nearly as large as the contrast of images.
    largest_sigma = 64 / 255

    def __init__(self, weights: str | None = str(SHIPPED_LARGE), strength: float = 1.0, sigma: float = 0.05) -> None:
        """Build it.

        Args:
            weights: File of its weights (.safetensors), as `scripts/train_large_denoiser.py` writes it; null: random.
            strength: Factor of `value` in the objective of gradient inversion, at least 0.
            sigma: Standard deviation of the noise for which `value` calls the denoiser, above 0.

        Raises:
            UserError: The file is missing, cannot be read, or holds another network's weights.
        """
        super().__init__((48, 96, 192), 3, weights, strength, sigma)


def _read(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights from a file, in float32, if they are those of this network."""
    advice = "give a file that the training script of this denoiser wrote, or omit `weights`"
    if not path.is_file():
        raise UserError(f"denoiser weights {path} do not exist: {advice}")
    try:
        found, _ = read_safetensors(path)
    except FAULTS as error:
        raise UserError(f"denoiser weights {path} cannot be read ({reason_of(error)}): {advice}") from None
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in wanted.items()}:
        raise UserError(f"denoiser weights {path} belong to another network: {advice}")
    return {name: value.float() for name, value in found.items()}
