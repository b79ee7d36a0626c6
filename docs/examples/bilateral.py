# SPDX-License-Identifier: Apache-2.0
"""Your own denoiser: OpenCV's bilateral filter as the prior of the refinement.

A denoiser is a module called with images (M, 3, H, W) in [0, 1] and the standard deviation of the noise of each, (M,).

    recon fit --config quickstart.yaml --config attack/linear.yaml --model.denoiser bilateral.Bilateral
"""

import cv2
import numpy as np
import torch
from torch import Tensor, nn


class Bilateral(nn.Module):
    """Averages neighbours whose colours differ by no more than the noise explains.

    Source: Tomasi & Manduchi, "Bilateral filtering for gray and color images" (1998), as implemented by OpenCV.
    """

    def __init__(self, reach: float = 1.5) -> None:
        """Set how far it looks.

        Args:
            reach: Standard deviation of the spatial weights, in pixels, above 0.
        """
        super().__init__()
        self.reach = reach

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Remove noise of standard deviations `sigma`, shape (M,), from images (M, 3, H, W) in [0, 1]."""
        images = np.ascontiguousarray(x.permute(0, 2, 3, 1).cpu().numpy())
        # Two noisy pixels of one colour differ by √2 sigma in each of three channels.
        filtered = [
            cv2.bilateralFilter(image, d=0, sigmaColor=6**0.5 * float(std), sigmaSpace=self.reach)
            for image, std in zip(images, sigma, strict=True)
        ]
        return torch.from_numpy(np.stack(filtered)).permute(0, 3, 1, 2).to(x)
