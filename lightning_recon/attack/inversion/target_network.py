# SPDX-License-Identifier: Apache-2.0
"""The network that an honest server shipped, and oracle labels: from the client, or from the recorded exchange."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_recon.capture.client import NETWORK, CapturedClient
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, RecordedClient, Task
from lightning_recon.files.digests import describe
from lightning_recon.files.faults import readable
from lightning_recon.files.schema import LABELS
from lightning_recon.files.schema import NETWORK as NETWORK_RECORD
from lightning_recon.files.serialization import (
    read_json,
    read_sealed,
    read_tensors,
    write_json,
    write_sealed,
    write_tensors,
)
from lightning_recon.losses import as_targets
from lightning_recon.networks.construction import copied, is_class_path
from lightning_recon.networks.target_network import TargetNetwork
from lightning_recon.networks.weights_file import load_weights
from lightning_recon.plural import counted

_TARGETS = "targets"  # entry of a file


@runtime_checkable
class KnowsLabels(Protocol):
    """A client that provides its labels, as an oracle."""

    def labels(self, update: int) -> Tensor:
        """The labels of an update's victims, (victims,), int64, or other targets (victims, ...)."""
        ...


def network_of(client: Client, configured: Client, name: str | None = None) -> nn.Module:
    """The target network with the weights that the client was shipped: images in [0, 1] to logits.

    Args:
        client: Answers the server. A `VictimClient` holds the network; otherwise the weights are read from
            `network.safetensors` beside the updates.
        configured: The client of which `client` may be a recording: it knows the architecture.
        name: Of the network, if neither holds it; None: as the task says.

    Raises:
        UserError: The file is missing, or does not fit the network.
    """
    if isinstance(client, nn.Module):
        return client.get_submodule("network")
    path, task = _folder(client) / f"{NETWORK}.safetensors", client.task
    if not path.is_file():
        raise UserError(
            f"{path.parent} holds no {path.name}, without which the update cannot be inverted: put the state dict of "
            "the network that the server shipped there"
        )
    if isinstance(client, RecordedClient):
        _check_unaltered(path)
    if isinstance(configured, nn.Module):
        network = copied(configured.get_submodule("network"))
    elif name is None and is_class_path(task.network):
        raise UserError(
            f"the network is called {task.network!r} in {path.parent}, where nobody may name code to be run: give "
            "--model.network if you trust it"
        )
    else:
        return shipped_network(task, name, path)
    load_weights(network, path)
    return network


def shipped_network(task: Task, name: str | None = None, weights: Path | None = None) -> nn.Module:
    """The network of a task, as its clients build it.

    Args:
        task: The announced training parameters.
        name: Of the network; None: as the task says.
        weights: File of its state dict; None: random weights.

    Raises:
        UserError: There is no such network, its weights do not fit, or it cannot take the images.
    """
    called, per_sample = name or task.network, task.granularity == "sample"
    target = TargetNetwork(called, task.num_classes, weights, 0, task.normalization, per_sample)
    return target.fit(*target.build_before_data(), task.image_shape, min(2, task.batch_size), maps=None)


def keep_network(client: Client, configured: Client, folder: Path, name: str | None = None) -> None:
    """Record the weights of the network that a client was shipped; arguments as in `network_of`."""
    tensors = network_of(client, configured, name).state_dict()
    write_tensors(folder, NETWORK, tensors)
    table = {key: describe(tensor) for key, tensor in tensors.items()}
    write_json(folder / f"{NETWORK}.json", {"format": "network 1", "tensors": table})


def _check_unaltered(path: Path) -> None:
    with readable(path):
        read_tensors(
            path.parent, path.stem, read_json(path.with_suffix(".json"), NETWORK_RECORD, "network 1")["tensors"]
        )


def oracle_labels(client: Client, index: int, folder: Path | None) -> Tensor:
    """An oracle: the labels of the victims of one update, (victims,), int64, or other targets (victims, ...).

    Args:
        client: A client that provides labels, or a recording.
        index: Of the update.
        folder: Where to record them for a replay; None to record nothing.
    """
    if isinstance(client, KnowsLabels):
        labels = client.labels(index)
        if len(labels) != client.task.victims:
            raise UserError(
                f"--model.labels is oracle, but update {index} is of {len(labels)} images, and an honest server "
                f"searches for the {client.task.victims} announced: set --model.labels counted"
            )
        if folder is not None:
            _keep_labels(labels, index, folder)
        return labels
    path = _folder(client) / f"{_labels_name(index)}.json"
    tensors = path.with_suffix(".safetensors")
    if not path.is_file() and not tensors.is_file():
        raise UserError(f"the labels of update {index} are not recorded: set --model.labels counted")
    labels = _recorded_labels(path, client.task) if path.is_file() else _recorded_targets(tensors, client.task)
    if folder is not None:
        _keep_labels(labels, index, folder)
    return labels


def _recorded_labels(path: Path, task: Task) -> Tensor:
    """The class indices in a file."""
    with readable(path):
        labels = torch.tensor(read_json(path, LABELS, "labels 1")["labels"], dtype=torch.int64)
    victims, classes = task.victims, task.num_classes
    if labels.shape != (victims,) or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"{path} holds the labels {labels.tolist()[:20]}, and the update is about "
            f"{counted(victims, 'image')} of classes 0 to {classes - 1}: correct the file"
        )
    return labels


def _recorded_targets(path: Path, task: Task) -> Tensor:
    """The other targets in a file."""
    with readable(path):
        tensors, record = read_sealed(path, _TARGETS)
        if record.get("format") != "targets 1" or set(tensors) != {_TARGETS}:
            raise ValueError("not of the format 'targets 1'")
    targets = tensors[_TARGETS]
    if len(targets) != task.victims or not bool(targets.isfinite().all()):
        raise UserError(
            f"{path} holds {len(targets)} targets, and the update is about {task.victims}: correct the file"
        )
    return as_targets(task.loss, targets, task.num_classes) if targets.is_floating_point() else targets


def _keep_labels(labels: Tensor, index: int, folder: Path) -> None:
    """Record class indices as JSON, other targets as a tensor."""
    path = folder / f"{_labels_name(index)}.json"
    if labels.dim() == 1 and not labels.is_floating_point():
        write_json(path, {"format": "labels 1", "labels": labels.tolist()})
    else:
        write_sealed(path.with_suffix(".safetensors"), {_TARGETS: labels.cpu()}, _TARGETS, {"format": "targets 1"})


def _labels_name(index: int) -> str:
    return f"labels-c{index:03d}"


def _folder(client: Client) -> Path:
    if isinstance(client, RecordedClient):
        return client.folder
    if isinstance(client, CapturedClient):
        return client.path if client.path.is_dir() else client.path.parent
    raise UserError(f"{type(client).__name__} does not hold the network that it was shipped: use a VictimClient")
