# SPDX-License-Identifier: Apache-2.0
"""What ranks send each other grows with the number of images, not with its square."""

import pickle

import torch

from lightning_recon.reconstruction import Reconstruction


def test_a_part_of_a_batch_is_sent_without_the_rest() -> None:
    together = torch.rand(64, 3, 16, 16)
    parts = [Reconstruction(client, 0, images, images, 0, True) for client, images in enumerate(together.split(1))]
    compact = [one.compact() for one in parts]
    assert all(torch.equal(one.images, other.images) for one, other in zip(parts, compact, strict=True))
    whole = len(pickle.dumps(parts[0]))
    assert whole > together.numel() * 4  # the reason
    assert len(pickle.dumps(compact)) < 3 * together.numel() * 4
