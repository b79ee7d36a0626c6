# SPDX-License-Identifier: Apache-2.0
"""Local steps of plain SGD, as several tests take them."""

from functools import partial

import torch

from lightning_recon.client import LocalOptions


def local_sgd(steps: int = 1, lr: float = 0.1, epochs: int = 1) -> LocalOptions:
    """Steps on equal parts of the batch, whose gradients add up in the update."""
    return LocalOptions(epochs, steps=steps, optimizer=partial(torch.optim.SGD, lr=lr), update="gradient")
