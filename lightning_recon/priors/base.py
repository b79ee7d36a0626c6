# SPDX-License-Identifier: Apache-2.0
"""What images look like: one protocol for both attacks."""

from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.ranges import NOT_NEGATIVE, POSITIVE, check_ranges


class Prior(nn.Module):
    """Public knowledge of images, for either attack.

    The refinement of a malicious server's reconstructions (`--model.denoiser`) calls a prior as a denoiser. Gradient
    inversion (`--model.priors`, a list) adds `strength * value(images)` to its objective. A subclass implements
    `forward`, `value`, or both. Without `value`, the denoiser acts as a regularizer (RED); without `forward`, the
    prior serves gradient inversion alone.
    """

    def __init__(self, strength: float = 1.0, sigma: float = 0.05) -> None:
        """Set up.

        Args:
            strength: Factor of `value` in the objective of gradient inversion, at least 0.
            sigma: Standard deviation of the noise for which the denoiser is called by the default `value`, above 0.
        """
        super().__init__()
        check_ranges("--model.priors.", strength=(strength, NOT_NEGATIVE), sigma=(sigma, POSITIVE))
        self.strength, self.sigma = strength, sigma

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Remove white Gaussian noise.

        Args:
            x: Noisy images, shape (M, C, H, W), values around [0, 1].
            sigma: Standard deviation of each image's noise, shape (M,).

        Returns:
            Images of the same shape.
        """
        raise UserError(f"{type(self).__name__} is no denoiser: give another --model.denoiser")

    def value(self, images: Tensor) -> Tensor:
        """Negative log-density of images up to a constant, a scalar; its gradient is what the search follows.

        By default ½ ‖x - D(x)‖² / sigma² with the denoiser's result D(x) held constant: its gradient is that of the
        negative log-density of images with noise of this standard deviation.

        Args:
            images: Shape (B, C, H, W), values around [0, 1].

        Source: Romano, Elad & Milanfar 2017 (arXiv 1611.02862), regularization by denoising; Tweedie's formula.
        """
        denoised: Tensor = self(images.detach(), images.new_full((len(images),), self.sigma))
        return 0.5 * (images - denoised.detach()).square().sum() / self.sigma**2


class DenoiserPrior(Prior):
    """A prior from any denoiser, such as `deepinv.models.DRUNet`."""

    def __init__(self, denoiser: nn.Module, strength: float = 1.0, sigma: float = 0.05) -> None:
        """Set up.

        Args:
            denoiser: Called with noisy images (M, C, H, W) and the standard deviation of their noise (M,).
            strength: Factor of `value` in the objective of gradient inversion, at least 0.
            sigma: Standard deviation of the noise for which the denoiser is called, above 0.
        """
        super().__init__(strength, sigma)
        self.denoiser = denoiser
        if hasattr(denoiser, "largest_sigma"):  # see `Denoiser`
            self.largest_sigma = denoiser.largest_sigma

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Remove white Gaussian noise; see `Prior`."""
        denoised: Tensor = self.denoiser(x, sigma)
        return denoised
