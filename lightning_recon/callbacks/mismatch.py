# SPDX-License-Identifier: Apache-2.0
"""What contradicts the announced training, or what the structure was designed for, for `results.json`; warnings."""

import logging
from collections.abc import Sequence

from lightning_recon.attack import Attack, Reconstruction, ReconstructionAttack
from lightning_recon.evaluation.results import Record
from lightning_recon.exchange import ServerPayload, Task
from lightning_recon.structure.modelled_mechanism import mechanism_mismatch, sampling_mismatch
from lightning_recon.structure.modelled_training import compression_mismatch, training_mismatch

log = logging.getLogger(__name__)


def sends_feedback(module: Attack) -> bool:
    """Whether the attack's structure sends feedback, under noise that allows it."""
    return isinstance(module, ReconstructionAttack) and module.structure.feedback_code(module.client.task) is not None


def mismatch_record(
    task: Task, found: Sequence[Reconstruction], payload: ServerPayload | None = None, feedback: bool = False
) -> Record | None:
    """The section `mismatch`; warns in one line of what updates contradict, and in one of the design.

    Args:
        task: What was announced.
        found: Reconstructions of every update and draw.
        payload: What was shipped first; None: nothing.
        feedback: Whether the structure sends feedback, see `sends_feedback`.

    Returns:
        For each field that some update contradicts: what was announced, what the update shows (of noise and number of
        images a mean over these updates), and how many updates do; and `local_training`, `compression`, `sampling` and
        `mechanism`, if the structure was not designed for them: the reason, and the estimated cost in decibels. None if
        there is nothing of this.
    """
    record: Record = {}
    reasons: dict[str, list[str]] = {}
    for name, design in (
        ("local_training", training_mismatch(payload, task)),
        ("compression", compression_mismatch(payload, task)),
        ("sampling", sampling_mismatch(payload, task, feedback)),
        *(("mechanism", one) for one in mechanism_mismatch(payload, task, feedback)),
    ):
        if design is None:
            continue
        reasons.setdefault(name, []).append(design.reason)
        record[name] = {"reason": "; ".join(reasons[name]), "cost_db": design.cost_db}
        cost = "unknown" if design.cost_db is None else f"about {design.cost_db:.1f} dB of signal to noise"
        log.warning("%s; this run shows less than a server could see, the loss is %s", design.reason, cost)
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
    if not words:
        return record or None
    log.warning(
        "the updates contradict the announced training: %s; they are decoded as what they show, but the structure was "
        "designed for the announcement",
        ", ".join(words),
    )
    return record
