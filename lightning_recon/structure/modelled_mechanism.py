# SPDX-License-Identifier: Apache-2.0
"""Where an attack is not designed for the announced mechanism, or for batches that change from round to round."""

import math

from lightning_recon.exchange import ServerPayload, Task
from lightning_recon.structure.coding.hadamard_spreading import spreading_gain_db
from lightning_recon.structure.layer_spec import layer_spec
from lightning_recon.structure.modelled_training import TrainingMismatch
from lightning_recon.structure.sum_range import sum_range


def mechanism_mismatch(payload: ServerPayload | None, task: Task, feedback: bool = False) -> list[TrainingMismatch]:
    """What the mechanism does that the attack is not designed for; empty where there is nothing.

    Args:
        payload: What was shipped; None, or an empty one: nothing was added to the network.
        task: What was announced.
        feedback: Whether the structure sends feedback where rounds have independent noise.
    """
    found = []
    if feedback and task.noise_bands > 1:
        instead = "takes it for independent" if task.batches_change else "averages whitened rounds instead"
        reason = f"feedback is not designed for noise that is correlated over rounds, and {instead}"
        found.append(TrainingMismatch(reason, None))
    room = sum_range(task)
    spec = None if payload is None else layer_spec(payload)
    if room is None or payload is None or spec is None:
        return found
    row = 1 / math.sqrt(len(payload.tensors["directions"]) * task.sharers)
    if room.room <= 0:
        found.append(TrainingMismatch(f"the noise alone exceeds what sums of integers can hold: {room.cause}", None))
    elif len(payload.tensors["index"]) * room.power_limit(row) < 1:
        found.append(TrainingMismatch(f"the code exceeds what sums of integers can hold: {room.cause}", None))
    return found


def sampling_mismatch(payload: ServerPayload | None, task: Task, feedback: bool) -> TrainingMismatch | None:
    """The same for batches that change: only feedback follows each image over the rounds, in rows of a single tensor.

    Args:
        payload: What was shipped; None, or an empty one: nothing was added to the network.
        task: What was announced.
        feedback: Whether the structure sends feedback.
    """
    if task.rounds == 1 or not task.batches_change or payload is None or layer_spec(payload) is None:
        return None
    if feedback and not task.per_layer:
        return None
    if feedback:
        return TrainingMismatch(
            "each tensor is clipped on its own, and Feedback spreads no rows over several tensors where batches change",
            spreading_gain_db(task.parameter_tensors),
        )
    return TrainingMismatch(
        "batches change from round to round, and the attack averages the rounds as if they did not", None
    )
