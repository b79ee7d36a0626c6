# SPDX-License-Identifier: Apache-2.0
"""What is publicly known of images: statistics, transforms, denoisers, regularizers."""

from lightning_recon.priors.base import DenoiserPrior, Prior

__all__ = ["DenoiserPrior", "Prior"]
