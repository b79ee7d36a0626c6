# SPDX-License-Identifier: Apache-2.0
"""Where the audience has the truth from, and how it scores a client's pictures."""

from lightning.pytorch import Trainer

from lightning_recon.attack import Reconstruction, ReconstructionAttack
from lightning_recon.evaluation.scoring import Attacked, Scored, Truth, score


def truths_of(trainer: Trainer) -> list[Truth]:
    """The clients' batches; none in a replay, which has no data."""
    return list(getattr(getattr(trainer, "datamodule", None), "client_batches", []))


def scored_one(one: Reconstruction, truths: list[Truth], module: ReconstructionAttack) -> Scored:
    """Match one client's pictures to its victims and score them."""
    attacked = Attacked(one.client, one.draw, one.pictures, one.initial, one.unresolved, one.evident)
    return score(truths[one.client], attacked, module.mean_image)
