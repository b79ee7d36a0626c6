# SPDX-License-Identifier: Apache-2.0
"""The client's model with the server's layer in it, and the update that it computes before noise is added."""

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_recon.client.update import Clipped
from lightning_recon.data.sources import ClientBatch
from lightning_recon.exchange import ServerPayload
from lightning_recon.files.digests import describe, digest_of
from lightning_recon.networks.construction import copied
from lightning_recon.networks.torch_internals import version_of, version_of_tensors
from lightning_recon.structure.layer import build_layer
from lightning_recon.structure.server_layer import TamperedNetwork

Key = tuple[str, tuple[tuple[int, int], ...], str, int, tuple[object, ...]]


@dataclass(frozen=True)
class CleanUpdate:
    """A sum of clipped updates before noise, or with that of local steps; it never leaves the client.

    Args:
        key: what it was computed from, see `clean_key`.
        clipped: the sum.
    """

    key: Key
    clipped: Clipped


@dataclass
class Digests:
    """Hashes of what updates are computed from, each computed once, and again after a change in place.

    Changes through `.data` are not seen.

    Args:
        batches: version and hash by the number of the client.
        weights: of the network whose parameters and buffers had this version last.
    """

    batches: dict[int, tuple[int, str]] = field(default_factory=dict)
    weights: tuple[nn.Module, int, str] | None = None

    def of_batch(self, client: int, batch: ClientBatch) -> str:
        """Hash of a client's images and labels."""
        version = version_of_batch(batch)
        if client not in self.batches or self.batches[client][0] != version:
            digest = digest_of({"images": describe(batch.images), "labels": describe(batch.labels)})
            self.batches[client] = version, digest
        return self.batches[client][1]

    def of_weights(self, network: nn.Module) -> str:
        """Hash of a network's parameters and buffers, after every change of one of them anew."""
        version = version_of(network)
        if self.weights is None or self.weights[0] is not network or self.weights[1] != version:
            state = {name: describe(tensor) for name, tensor in network.state_dict().items()}
            self.weights = network, version, digest_of(state)
        return self.weights[2]


def version_of_batch(batch: ClientBatch) -> int:
    """A number that changes whenever images or labels are changed in place."""
    return version_of_tensors(batch.images, batch.labels)


def clean_key(
    digest: str,
    clients: tuple[tuple[int, int], ...],
    network: nn.Module,
    device: torch.device,
    drawn: tuple[object, ...],
) -> Key:
    """Equal for equal updates before noise, different once anything that they depend on has changed.

    Args:
        digest: of the payload.
        clients: whose batches are summed, each with the version of its batch.
        network: the target network; every training step changes its version.
        device: where the update is computed.
        drawn: what the randomness of local training depends on; empty if it has none.
    """
    return digest, clients, str(device), version_of(network), drawn


def tampered_model(network: nn.Module, payload: ServerPayload, device: torch.device) -> nn.Module:
    """The model that a client differentiates: the network with what the server adds to it, in float32.

    Args:
        network: the target network; its parameters are shared with the model, or copied if they are not float32.
        payload: what the server adds; an empty one adds nothing.
        device: where the network is.
    """
    model: nn.Module
    if payload.settings or payload.tensors:
        # Missing gradients are replaced by zeros where they are computed.
        model = TamperedNetwork(network, build_layer(payload).to(device), zeros=False)
    else:
        model = nn.Sequential(OrderedDict(network=network))
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        model = copied(model).float()
    return model


def on_device(batch: ClientBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images in float32 and labels on the device, as copies: tensors made in inference mode cannot be differentiated.

    Args:
        batch: the client's images.
        device: where the network is.
    """
    return batch.images.to(device, torch.float32).clone(), batch.labels.to(device).clone()
