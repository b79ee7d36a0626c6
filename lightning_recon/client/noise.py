# SPDX-License-Identifier: Apache-2.0
"""Drawing of the privacy noise, which only the client may do.

The attacker's packages must not import this module: code that can regenerate the noise can subtract it. See
tests/test_threat_model.py.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.mechanism import Mechanism
from lightning_recon.rng import generator_for

CHUNK = 1 << 20  # elements processed at a time, whatever the size of the tensor; a multiple of BLOCK
BLOCK = 16  # torch fills normals in blocks of 16; drawing whole blocks makes the noise independent of CHUNK


def noise_generator(seed: int, client: int, draw: int, round: int) -> torch.Generator:
    """Create the random generator of one update's noise; other arguments give an independent stream.

    Args:
        seed: seed of the run.
        client: index of the client.
        draw: index of the noise realisation.
        round: index of the round.

    Returns:
        A generator on the CPU, so that the noise does not depend on the device, the rank or earlier computations.
    """
    return generator_for("noise", seed, client, draw, round)


def add_noise(
    gradients: Mapping[str, Tensor],
    scale: float,
    generator: torch.Generator,
    mechanism: Mechanism = Gaussian(),  # noqa: B008 - has no state
) -> dict[str, Tensor]:
    """Add a mechanism's noise in place, chunk by chunk, without a second copy of large tensors.

    Args:
        gradients: gradients by parameter name; contiguous, on any device; noise is drawn in the order of the names.
        scale: scale of the noise, in the gradients' unit (`Privacy.noise_scale`); 0 draws nothing.
        generator: CPU generator, see `noise_generator`.
        mechanism: distribution of the noise.

    Returns:
        The same tensors with noise.
    """
    if scale > 0:
        for name in sorted(gradients):
            for piece in torch.split(gradients[name].view(-1), CHUNK):
                noise = mechanism.sample(math.ceil(piece.numel() / BLOCK) * BLOCK, generator)[: piece.numel()]
                piece.add_(noise.to(piece), alpha=scale)
    return dict(gradients)
