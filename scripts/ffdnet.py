# SPDX-License-Identifier: Apache-2.0
"""A public denoiser to compare with, and an example of how to plug in one's own by class path.

    FFDNET=ffdnet_color.pth PYTHONPATH=scripts recon fit --config quickstart.yaml --config attack/linear.yaml
        --model.denoiser ffdnet.FFDNet

The weights `ffdnet_color.pth` (MIT) are published by the paper's authors with their code, KAIR.
"""

import os
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.errors import UserError


class FFDNet(nn.Module):
    """FFDNet for colour images: twelve convolutions at half the resolution, with a noise level map as input.

    Source: Zhang, Zuo & Zhang (2018), "FFDNet: toward a fast and flexible solution for CNN-based image denoising".
    """

    largest_sigma = 64 / 255  # as `LargeDenoiser`: it was trained for noise up to 75/255

    def __init__(self) -> None:
        """Load the published weights from the file that the environment variable FFDNET names."""
        super().__init__()
        widths = [13, *[96] * 11, 12]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        weights = os.environ.get("FFDNET")
        if weights is None:
            raise UserError("FFDNET is not set: let it name the file ffdnet_color.pth")
        self.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Remove noise of standard deviation sigma, shape (M,), from images of shape (M, 3, H, W) in [0, 1]."""
        height, width = x.shape[-2:]
        even = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        halves = F.pixel_unshuffle(even, 2)
        level = sigma.to(x)[:, None, None, None].expand(-1, 1, *halves.shape[-2:])
        return F.pixel_shuffle(self.model(torch.cat([halves, level], dim=1)), 2)[..., :height, :width]
