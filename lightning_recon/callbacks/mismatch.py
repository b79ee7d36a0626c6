# SPDX-License-Identifier: Apache-2.0
"""What updates show that contradicts the announced training, for `results.json`, and a warning."""

import logging
from collections.abc import Sequence

from lightning_recon.attack import Reconstruction
from lightning_recon.evaluation.results import Record
from lightning_recon.exchange import Task

log = logging.getLogger(__name__)


def mismatch_record(task: Task, found: Sequence[Reconstruction]) -> Record | None:
    """The section `mismatch`; warns in one line if there is one.

    Args:
        task: What was announced.
        found: Reconstructions of every update and draw.

    Returns:
        For each field that some update contradicts: what was announced, what the update shows (of noise and number of
        images a mean over these updates), and how many updates do; None if none does.
    """
    record: Record = {}
    words = []
    kinds = {None: "images", True: "subjects on black", False: "whole photographs"}
    subjects = [one.mismatch.subjects for one in found if one.mismatch.subjects is not None]
    if subjects:
        record["subjects"] = {"announced": task.subjects, "found": subjects[0], "updates": len(subjects)}
        words.append(f"{kinds[subjects[0]]} ({len(subjects)} of {len(found)} updates)")
    for name, announced, values in (
        (
            "noise_multiplier",
            task.noise_multiplier,
            [one.mismatch.noise_multiplier for one in found if one.mismatch.noise_multiplier is not None],
        ),
        ("images", task.victims, [one.mismatch.images for one in found if one.mismatch.images is not None]),
    ):
        if values:
            mean = sum(values) / len(values)
            record[name] = {"announced": announced, "found": mean, "updates": len(values)}
            shown = "noise multiplier" if name == "noise_multiplier" else "images an update"
            words.append(f"{shown} {mean:.3g}, not {announced:g} ({len(values)} of {len(found)} updates)")
    if not record:
        return None
    log.warning(
        "the updates contradict the announced training: %s; they are decoded as what they show, but the structure was "
        "designed for the announcement",
        ", ".join(words),
    )
    return record
