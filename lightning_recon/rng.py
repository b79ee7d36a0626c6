# SPDX-License-Identifier: Apache-2.0
"""Random generators seeded by their purpose, independent of any random numbers drawn before."""

import hashlib

import torch


def generator_for(purpose: str, *numbers: int) -> torch.Generator:
    """A random generator, determined by its purpose and numbers; others give independent streams.

    Args:
        purpose: what the random numbers are used for.
        numbers: the seed, and any further indices that distinguish streams, such as client and round.

    Returns:
        A generator on the CPU, so that its numbers do not depend on the device, the rank or earlier draws.
    """
    key = hashlib.sha256(" ".join([purpose, *map(str, numbers)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little"))
