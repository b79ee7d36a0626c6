# SPDX-License-Identifier: Apache-2.0
"""The result of an attack on one update."""

from dataclasses import dataclass

from torch import Tensor

from lightning_recon.structure.base import ReceivedFile
from lightning_recon.structure.clipping_budget import BudgetShare


@dataclass(frozen=True)
class Reconstruction:
    """What the attacker reconstructed from one update under one noise draw, in the attacker's own order.

    Args:
        client: Index of the update.
        draw: Index of the noise draw.
        pictures: Shape (M, 3, H, W), values in [0, 1], at most as many as the update has victims.
        initial: The same before refinement.
        unresolved: Rows whose content no single image explains.
        evident: Whether the images explain more of the update than its noise does.
        labels: The labels that the attacker recovered, (victims,); None if the attack uses none.
        files: For each image the file that was received, or None where none was; None if nothing was sent digitally.
        share: The structure's share of the clipping budget, as the update shows it; None where that cannot be
            estimated.
    """

    client: int
    draw: int
    pictures: Tensor
    initial: Tensor
    unresolved: int
    evident: bool
    labels: Tensor | None = None
    files: tuple[ReceivedFile | None, ...] | None = None
    share: BudgetShare | None = None
