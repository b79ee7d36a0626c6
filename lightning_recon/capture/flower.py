# SPDX-License-Identifier: Apache-2.0
"""Audit a Flower app: ship our payload by its server, keep what left its client, and say what its LocalDpMod promises.

Flower ships arrays, not architectures: the client app must run the server's model code. It does so here by calling
`FlowerAudit.model`, where it would have built its own network.

What `flwr.clientapp.mod.LocalDpMod` does (1.41 and 1.42, read in its source): all arrays of the one ArrayRecord of a
reply, buffers too, are taken as new minus received; this delta is clipped to `clipping_norm`, by one flat Euclidean
norm; received arrays plus clipped delta plus noise are returned. The noise is Gaussian, of standard deviation
sensitivity · sqrt(2 ln(1.25/delta)) / epsilon, anew each round and whatever the clip is. So

- arrays without dimensions (`num_batches_tracked`, a learned temperature) leave with neither clip nor noise: numpy
  hands them out as scalars, which its in-place operations do not change;
- integer arrays with dimensions stop the client with an error as soon as anything is clipped;
- metrics leave as they are: a reported training loss is not protected.
"""

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from lightning_recon.capture.flower_ldp import DeclaredPrivacy, declared_privacy
from lightning_recon.capture.update_file import ENDING, CapturedUpdate, Declared, save_captured
from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload, Task, update_name
from lightning_recon.structure.base import Structure
from lightning_recon.structure.layer import build_layer
from lightning_recon.structure.server_layer import TamperedNetwork

try:
    import flwr
    from flwr.app import ArrayRecord, Context, Message, MetricRecord
    from flwr.clientapp.mod import LocalDpMod
    from flwr.clientapp.typing import ClientAppCallable
    from flwr.serverapp.strategy import FedAvg
except ImportError as error:
    raise UserError("auditing a Flower app needs flwr: pip install 'lightning_recon[flower]'") from error

# An update may be this much longer than clip and noise together allow, for rounding and chance.
_SLACK = 1.1


@dataclass(frozen=True)
class FlowerAudit:
    """One client app under audit: what both of its sides need to know.

    Args:
        network: the app's own model: images (B, 3, H, W) in [0, 1] to logits (B, classes).
        structure: what the server adds to it; the attack must be configured alike.
        protection: the app's LocalDpMod.
        image_size: side of the images, in pixels.
        num_classes: how many classes the network tells apart.
        batch_size: images in an update: all that the client trains on in a round.
        clients: how many clients take part; their updates are captured each by itself.
        rounds: how many updates each of them gives.
        name: what to call the network.
    """

    network: nn.Module
    structure: Structure
    protection: LocalDpMod
    image_size: int
    num_classes: int
    batch_size: int
    clients: int = 1
    rounds: int = 1
    name: str = "flower"

    @property
    def privacy(self) -> DeclaredPrivacy:
        """What the protection promises, and what it comes to."""
        mod = self.protection
        return declared_privacy(mod.clipping_norm, mod.sensitivity, mod.epsilon, mod.delta, self.rounds)

    @cached_property
    def task(self) -> Task:
        """What a Flower server knows of its training: it set all of this, or the app's code says so."""
        return Task(
            image_shape=(3, self.image_size, self.image_size),
            num_classes=self.num_classes,
            batch_size=self.batch_size,
            clients=self.clients,
            network=self.name,
            granularity="update",
            per_layer=False,
            max_grad_norm=self.protection.clipping_norm,
            noise_multiplier=self.privacy.noise_multiplier,
            rounds=self.rounds,
            parameter_tensors=len(list(self.network.parameters())),
            normalization="none",
        )

    @cached_property
    def names(self) -> list[str]:
        """The parameters of the shipped model, whose changes are what a server can attack."""
        return [name for name, _ in self.model().named_parameters()]

    @cached_property
    def payload(self) -> ServerPayload:
        """What the server adds to the network."""
        return self.structure.payload(self.task)

    def model(self) -> TamperedNetwork:
        """The model that the server ships, in whose place an honest server would have shipped `network`.

        Its state dict holds the network's parameters and buffers, and the structure's parameters: what else the
        structure is made of comes with the code, since LocalDpMod would spoil it (thresholds may be infinite, indices
        are integers).
        """
        structure = build_layer(self.payload)
        for name, buffer in list(structure.named_buffers()):
            structure.register_buffer(name, buffer, persistent=False)
        return TamperedNetwork(deepcopy(self.network), structure)

    def arrays(self) -> ArrayRecord:
        """The payload as Flower ships it: the initial arrays of a strategy."""
        return ArrayRecord({name: tensor.detach().clone() for name, tensor in self.model().state_dict().items()})

    def strategy(self) -> "SameArrays":
        """A strategy that asks `clients` clients (Flower itself wants two at least) and evaluates nothing."""
        return SameArrays(fraction_evaluate=0.0, min_train_nodes=self.clients, min_available_nodes=self.clients)

    def capture(self, folder: str | Path) -> "CaptureMod":
        """A mod that keeps what leaves the client; it goes before the LocalDpMod: `mods=[capture, protection]`."""
        return CaptureMod(Path(folder), self)


class CaptureMod:
    """A client mod that writes each update as it leaves the client, and lets it pass unchanged.

    Mods are called from the outside in, so the first one of a list sees replies last: behind a LocalDpMod that stands
    after it.
    """

    def __init__(self, folder: Path, audit: FlowerAudit) -> None:
        """Remember where to write.

        Args:
            folder: gets a file for each client and round.
            audit: what is audited.
        """
        self.folder, self.audit = folder, audit

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Pass a message on, and keep the answer's arrays minus the message's."""
        # Taken before the call: a client may change the arrays that it was handed.
        received = _tensors(message)
        reply = call_next(message, context)
        sent = {} if reply.has_error() else _tensors(reply)
        if received and sent:
            client, round = _place(message, context)
            path = self.folder / f"{update_name(client, 0, round)}{ENDING}"
            if path.exists():
                raise UserError(
                    f"{path} was captured already: empty the folder before another run, and number the nodes by "
                    "partition-id where there are several"
                )
            save_captured(path, captured_update(self.audit, received, sent, client, round))
        return reply


def captured_update(
    audit: FlowerAudit, received: Mapping[str, Tensor], sent: Mapping[str, Tensor], client: int, round: int
) -> CapturedUpdate:
    """What a client gave away: the arrays that it sent minus those that it received.

    Args:
        audit: what is audited.
        received: arrays of the server's message, by name.
        sent: arrays of the answer as it left, by name.
        client: index of the client, from 0.
        round: index of the round, from 0.

    Returns:
        The parameters' deltas; buffers of batch normalisation are left out, for they are no gradients.

    Raises:
        UserError: the client trained another model, what is seen here was not protected yet, or there are more clients
            or rounds than the audit is of.
    """
    for what, index, count in (("client", client, audit.clients), ("round", round, audit.rounds)):
        if index >= count:
            raise UserError(
                f"{what} number {index + 1} answers, and the audit is of {count}: give FlowerAudit {what}s={index + 1} "
                "or more"
            )
    for arrays in (received, sent):
        if missing := [name for name in audit.names if name not in arrays]:
            raise UserError(
                f"the client's arrays lack {missing[0]}: ship FlowerAudit.arrays(), build the client's model by "
                "FlowerAudit.model(), and answer with ArrayRecord(model.state_dict())"
            )
    delta = {name: (sent[name].double() - received[name].double()).float() for name in audit.names}
    mod, noise = audit.protection, audit.privacy.noise_std
    norm = math.hypot(*(float(tensor.double().norm()) for tensor in delta.values()))
    most = mod.clipping_norm + noise * math.sqrt(sum(tensor.numel() for tensor in delta.values()))
    if norm > _SLACK * most:
        raise UserError(
            f"the update has norm {norm:.4g}, clip and noise allow {most:.4g}: put the capturing mod before the "
            "LocalDpMod, mods=[audit.capture(folder), protection]"
        )
    return CapturedUpdate(
        task=audit.task,
        tensors=delta,
        convention="delta",
        payload=audit.payload.digest(),
        client=client,
        round=round,
        source=f"flwr {flwr.__version__}, LocalDpMod",
        declared=Declared(epsilon=mod.epsilon, delta=mod.delta, sensitivity=mod.sensitivity),
    )


class SameArrays(FedAvg):
    """A strategy that ships the same arrays in every round: a server that wants to hear the same thing again."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Count the replies as FedAvg does, and forget their arrays."""
        _, metrics = super().aggregate_train(server_round, replies)
        return None, metrics


def _tensors(message: Message) -> dict[str, Tensor]:
    """Arrays of a message's one ArrayRecord, by name; none where there is no such record, or more than one."""
    records = list(message.content.array_records.values())
    return dict(records[0].to_torch_state_dict()) if len(records) == 1 else {}


def _place(message: Message, context: Context) -> tuple[int, int]:
    """Which client answers in which round, from 0: as Flower's strategies and simulations number them."""
    configs = [record for record in message.content.config_records.values() if "server-round" in record]
    number = int(str(configs[0]["server-round"])) - 1 if configs else 0
    return int(str(context.node_config.get("partition-id", 0))), number
