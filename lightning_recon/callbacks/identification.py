# SPDX-License-Identifier: Apache-2.0
"""Score a run by identification: the gallery comes from the data module, which only the scoring may ask for it."""

from collections.abc import Sequence
from dataclasses import replace

from lightning.pytorch import Trainer

from lightning_recon.attack import Attack
from lightning_recon.callbacks.ground_truth import truths_of
from lightning_recon.data import ClientDataModule
from lightning_recon.evaluation.identification import MOST_IMAGES, Gallery, guess_success, identified
from lightning_recon.evaluation.run_record import RunRecord
from lightning_recon.evaluation.scoring import Scored, Truth
from lightning_recon.exchange import Task
from lightning_recon.reconstruction import Reconstruction


def with_identification(
    trainer: Trainer,
    module: Attack,
    found: Sequence[Reconstruction],
    scored: list[Scored],
    of_each: Sequence[Truth],
    run: RunRecord,
) -> tuple[list[Scored], RunRecord]:
    """Add whether each victim is identified, the size of the gallery, and the bound on every attack's success.

    Args:
        trainer: The trainer; without a data module of this package nothing is added.
        module: The attack.
        found: Reconstructions of every update and draw.
        scored: The same, matched with the true images.
        of_each: The true images of each of them.
        run: Everything about the run but the victims.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, ClientDataModule):
        return scored, run
    truths, task = truths_of(trainer), module.task
    gallery = Gallery.of(truths, data.gallery_photographs(MOST_IMAGES), data.image_format)
    chance = guess_success(found, of_each, gallery)
    return identified(scored, of_each, gallery), replace(
        run,
        gallery_size=len(gallery),
        identification_chance=chance,
        identification_bound=success_bound(task, chance),
    )


def success_bound(task: Task, chance: float) -> float | None:
    """Bound on every attack's success, of the same mechanism as `rero_gamma` in the `privacy` section.

    Args:
        task: What the server announces.
        chance: Success of a guess without the updates, in (0, 1].

    Returns:
        gamma, in [chance, 1]; None where no bound is known.
    """
    if chance == 1:
        return 1.0
    multiplier = 0.0 if task.max_grad_norm is None else task.independent_multiplier
    releases = task.most_rounds * task.releases_per_round
    return task.accounted_noise.reconstruction_robustness(chance, multiplier, releases)
