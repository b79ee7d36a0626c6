# SPDX-License-Identifier: Apache-2.0
"""Where a client's announced training is not the one that a shipped layer was designed for, and what that costs."""

import math
from dataclasses import dataclass

from lightning_recon.exchange import ServerPayload, Task
from lightning_recon.exchange.local_training import SGD
from lightning_recon.plural import counted
from lightning_recon.structure.coding.movement import scale_free
from lightning_recon.structure.layer_spec import layer_spec
from lightning_recon.structure.local_weights import victim_weights


@dataclass(frozen=True)
class TrainingMismatch:
    """A difference between announced local training and what a layer was designed for.

    Args:
        reason: What differs, a clause of a sentence.
        cost_db: Estimated loss of signal-to-noise ratio, in decibels; None where no model gives it.
    """

    reason: str
    cost_db: float | None


def training_mismatch(payload: ServerPayload | None, task: Task) -> TrainingMismatch | None:
    """Compare what was shipped with the announced local training; None where the one was designed for the other.

    Args:
        payload: What was shipped; None, or an empty one: nothing was added to the network.
        task: What was announced.
    """
    spec = None if payload is None else layer_spec(payload)
    local = task.local
    if spec is None or payload is None or local.is_plain_step:
        return None
    name = local.optimizer.rpartition(".")[2]
    if not spec.cancel:
        return TrainingMismatch(
            "the structure measures images with the weight that local training moves, so later steps mix its rows", None
        )
    if not spec.zero_weight:
        cost = _unequal_weights_db(task) if local.optimizer == SGD else None
        return TrainingMismatch(
            f"the structure was designed for one step of plain SGD, and clients take "
            f"{counted(local.steps(task.batch_size), 'local step')} of {name} and send the {local.update}",
            cost,
        )
    if local.optimizer != SGD and not spec.signs:
        where = f" {clipped}" if scale_free(local) and (clipped := _clip_without_signs(task)) else ""
        reason = f"no code is made for the optimizer {name}{where}, and rows are decoded as those of SGD"
        return TrainingMismatch(reason, None)
    return None


def _clip_without_signs(task: Task) -> str:
    """The clip under which optimizers that let little but signs through have no code, in words; empty under others."""
    if task.max_grad_norm is None:
        return "without a clip"
    if task.per_layer:
        return "where each tensor is clipped on its own"
    return "under a clip of the L1 norm" if task.clip.order != 2 else ""


def compression_mismatch(payload: ServerPayload | None, task: Task) -> TrainingMismatch | None:
    """The same for the announced compression: only structures whose inputs are signs are designed for one.

    Arguments as in `training_mismatch`.
    """
    spec, compression = None if payload is None else layer_spec(payload), task.compression
    if spec is None or compression is None or task.values_arrive:
        return None
    reason, how = "", compression.in_words
    if not spec.signs:
        reason = f"no code is made for updates compressed by {how}, and rows are decoded as uncompressed"
    elif compression.method == "sign" and task.aggregated > 1:
        reason = "the code is made for the signs of one client, and the server gets sums of several clients' signs"
    elif compression.before_noise and compression.method in ("sign", "top_k"):
        reason = f"the code is made for compression after the noise, and clients compress by {how}"
    return TrainingMismatch(reason, None) if reason else None


def _unequal_weights_db(task: Task) -> float:
    """What the typical victim loses where nothing makes up for the weights of the steps that visit it."""
    weights = victim_weights(task.local, task.batch_size, sampled=True).abs()
    weights = weights[weights > 0]
    return max(0.0, 20 * math.log10(float(weights.square().mean().sqrt()) / math.exp(float(weights.log().mean()))))
