# SPDX-License-Identifier: Apache-2.0
"""Addition of the privacy noise, which only the client may draw.

The attacker's packages must not import this module: code that can regenerate the noise can subtract it. See
tests/test_threat_model.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_recon.client.noise_key import Generators
from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.mechanism import Mechanism

CHUNK = 1 << 17  # numbers drawn at a time, which fit the processor's cache; reproducible noise depends on it


def add_noise(
    gradients: Mapping[str, Tensor],
    scale: float,
    generators: Generators,
    mechanism: Mechanism = Gaussian(),  # noqa: B008 - has no state
) -> dict[str, Tensor]:
    """Add a mechanism's noise in place, chunk by chunk, without a second copy of large tensors.

    Args:
        gradients: gradients by parameter name; contiguous, on any device.
        scale: scale of the noise, in the gradients' unit (`Privacy.noise_scale`); 0 draws nothing; negative where
            correlated noise takes back that of an earlier round.
        generators: one generator for each tensor, see `NoiseSource.generators`.
        mechanism: distribution of the noise.

    Returns:
        The same tensors with noise.
    """
    if scale != 0:
        for name, tensor in gradients.items():
            generator = generators(name)
            for piece in torch.split(tensor.view(-1), CHUNK):
                piece.add_(mechanism.sample(piece.numel(), generator).to(piece), alpha=scale)
    return dict(gradients)
