# SPDX-License-Identifier: Apache-2.0
"""Random numbers that depend on what they are for, and on nothing that ran before."""

import hashlib

import torch


def generator_for(purpose: str, *numbers: int) -> torch.Generator:
    """A random stream: the same for the same purpose and numbers, independent for any others.

    Args:
        purpose: what the numbers are drawn for.
        numbers: seed, and what else tells one stream from another.

    Returns:
        Generator on the CPU, so that what is drawn depends on neither the device, nor the rank, nor what ran before.
    """
    key = hashlib.sha256(" ".join([purpose, *map(str, numbers)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little"))
