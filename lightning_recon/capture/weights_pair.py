# SPDX-License-Identifier: Apache-2.0
"""A captured update from two files of weights: those of before and of after a client's training."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from lightning_recon.capture.recording import keep_network
from lightning_recon.capture.tensor_check import NETWORK as OF_NETWORK
from lightning_recon.capture.update_file import ENDING, CapturedUpdate, Declared, load_captured, save_captured
from lightning_recon.errors import UserError
from lightning_recon.exchange import Task, update_name
from lightning_recon.networks.target_network import TargetNetwork


def capture_pair(
    before: str | Path,
    after: str | Path,
    folder: str | Path,
    task: Task,
    client: int = 0,
    round: int = 0,
    declared: Declared | None = None,
) -> Path:
    """Write the change between two files of weights as an update to an honest server, and the weights beside it.

    Args:
        before: weights that the server sent; see `networks.weights_file.load_weights` for the formats.
        after: weights that the client sent back, in any of these formats.
        folder: gets the captured update and network.safetensors.
        task: what the server announced; its `network` is built here, and its numbers of parameters are filled in.
        client: index of the client, from 0.
        round: index of the round, from 0.
        declared: the privacy that the client's program declares.

    Returns:
        The file of the update.

    Raises:
        UserError: a file cannot be read, does not fit the network, both hold the same weights, or the folder holds
            another update of this client and round.
    """
    old, new = (_network(task, Path(path)) for path in (before, after))
    trained = dict(new.named_parameters())
    deltas = {name: trained[name].detach() - one.detach() for name, one in old.named_parameters()}
    if not any(bool(delta.any()) for delta in deltas.values()):
        raise UserError(f"{before} and {after} hold the same weights: give those of before and of after the training")
    task = replace(
        task, parameter_tensors=len(deltas), parameters=sum(parameter.numel() for parameter in trained.values())
    )
    gradient = task.local.update == "gradient"
    factor = -1 / task.local.divisor if gradient else 1.0
    tensors = {OF_NETWORK + name: factor * delta for name, delta in deltas.items()}
    path = Path(folder) / f"{update_name(client, 0, round)}{ENDING}"
    captured = CapturedUpdate(
        task,
        tensors,
        "gradient_mean" if gradient else "delta",
        client=client,
        round=round,
        source=f"{Path(before).name} and {Path(after).name}",
        declared=declared,
    )
    if path.exists() and not _holds(path, captured):
        raise UserError(f"{path} holds another update: choose another folder, or the client and round of this update")
    keep_network(Path(folder), old.state_dict())
    save_captured(path, captured)
    return path


def _holds(path: Path, captured: CapturedUpdate) -> bool:
    """Whether a file holds just this update."""
    try:
        found = load_captured(path)
    except UserError:
        return False
    tensors = captured.tensors
    return replace(found, tensors={}) == replace(captured, tensors={}) and all(
        name in tensors and torch.equal(one, tensors[name]) for name, one in found.tensors.items()
    )


def _network(task: Task, weights: Path) -> nn.Module:
    """The task's network with the weights of a file."""
    per_sample = task.granularity == "sample"
    target = TargetNetwork(task.network, task.num_classes, weights, 0, task.normalization, per_sample)
    return target.fit(*target.build_before_data(), task.image_shape, min(2, task.batch_size))
