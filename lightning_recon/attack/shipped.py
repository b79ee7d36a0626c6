# SPDX-License-Identifier: Apache-2.0
"""What an honest server shipped, and what an oracle told it: from the client itself, or from where it was kept."""

from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_recon.capture import CapturedClient
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, RecordedClient
from lightning_recon.networks import build_network, load_weights, without_batch_norm
from lightning_recon.storage import read_json, readable, write_json, write_tensors

NETWORK = "network"  # file of the weights, beside the updates that answer them


def network_of(client: Client) -> nn.Module:
    """The target network with the weights that the client was shipped: pictures in [0, 1] to logits.

    Args:
        client: One that runs it; else the weights are read from `network.safetensors` beside the updates.

    Raises:
        UserError: There is no such file, or it does not fit the network that the task names.
    """
    if isinstance(client, nn.Module):
        network: nn.Module = client.get_submodule("network")
        return network
    folder = _folder(client)
    if not (folder / f"{NETWORK}.safetensors").is_file():
        raise UserError(
            f"{folder} holds no {NETWORK}.safetensors, without which the update cannot be inverted: put the state dict "
            "of the network that the server shipped there"
        )
    network = build_network(client.task.network, client.task.num_classes)
    if client.task.granularity == "sample":
        network = without_batch_norm(network)
    load_weights(network, folder / f"{NETWORK}.safetensors")
    return network


def keep_network(client: Client, folder: Path) -> None:
    """Write the weights of the network that a client was shipped."""
    write_tensors(folder, NETWORK, network_of(client).state_dict())


def told_labels(client: Client, index: int, folder: Path | None) -> Tensor:
    """An oracle: the labels of the victims of one update, (victims,), int64.

    Args:
        client: Who knows them, or where they were kept.
        index: Of the update.
        folder: Where to keep them for a replay; None to keep nothing.
    """
    if isinstance(client, nn.Module) and hasattr(client, "labels"):
        labels: Tensor = client.labels(index)
        if folder is not None:
            write_json(folder / f"{_labels_name(index)}.json", {"format": "labels 1", "labels": labels.tolist()})
        return labels
    path = _folder(client) / f"{_labels_name(index)}.json"
    if not path.is_file():
        raise UserError(f"nobody tells the labels of update {index}: set --model.labels counted")
    with readable(path):
        return torch.tensor(read_json(path, "labels 1")["labels"], dtype=torch.int64)


def _labels_name(index: int) -> str:
    return f"labels-c{index:03d}"


def _folder(client: Client) -> Path:
    if isinstance(client, RecordedClient):
        return client.folder
    if isinstance(client, CapturedClient):
        return client.path if client.path.is_dir() else client.path.parent
    raise UserError(f"{type(client).__name__} does not say which network it was shipped: use a VictimClient")
