# SPDX-License-Identifier: Apache-2.0
"""Regularization terms: group consistency aligns restarts before it averages them."""

import torch
from torch import Tensor

from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.priors.regularizers import group_consistency


def photographs(count: int, size: int) -> Tensor:
    data = ClientDataModule(image_size=size, batch_size=count, masks=NoMasks())
    data.prepare_data()
    data.setup()
    return data.client_batches[0].images


def test_the_consensus_undoes_shifts() -> None:
    picture = photographs(2, 24)
    shifts = [(0, 0), (3, -2), (-5, 7)]
    restarts = torch.stack([picture.roll(shift, (-2, -1)) for shift in shifts])
    assert torch.allclose(group_consistency(restarts), restarts, atol=1e-5)
    far = torch.stack([picture, picture.roll((3, 0), (-2, -1)) + 0.2])
    assert torch.allclose(group_consistency(far)[0], picture + 0.1, atol=1e-4)
