# SPDX-License-Identifier: Apache-2.0
"""Audit a Flower app: send our payload through its server, capture its updates, and account for its LocalDpMod.

Flower sends arrays, not architectures, so the client app must run the server's model code. Here it calls
`FlowerAudit.model` instead of building its own network.

`flwr.clientapp.mod.LocalDpMod` (read in the source of 1.41 and 1.42) computes the delta, new minus received, of all
arrays in the reply's only ArrayRecord, buffers included. It clips the delta to `clipping_norm` by one flat Euclidean
norm, and returns received arrays plus clipped delta plus noise. The noise is Gaussian with standard deviation
sensitivity · sqrt(2 ln(1.25/delta)) / epsilon, fresh in each round and independent of the clipping norm. Therefore

- arrays without dimensions (`num_batches_tracked`, a learned temperature) are neither clipped nor noised, because NumPy
  returns them as scalars, which its in-place operations do not change;
- integer arrays with dimensions stop the client with an error as soon as anything is clipped;
- metrics are unchanged: a reported training loss is not protected.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from lightning_recon.capture.flower_ldp import DeclaredPrivacy, declared_privacy
from lightning_recon.capture.flower_protection import Protected, Protection, protected_by
from lightning_recon.capture.image_shape import image_shape
from lightning_recon.capture.served_model import served_model
from lightning_recon.capture.update_file import ENDING, CapturedUpdate, save_captured
from lightning_recon.errors import UserError
from lightning_recon.exchange import LocalTraining, Quantization, ServerPayload, Task, update_name
from lightning_recon.losses import LossName
from lightning_recon.structure.base import Structure
from lightning_recon.structure.server_layer import TamperedNetwork

try:
    import flwr
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
    from flwr.clientapp.mod import LocalDpMod
    from flwr.clientapp.typing import ClientAppCallable
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg, Strategy
except ImportError as error:
    raise UserError("auditing a Flower app needs flwr: pip install 'lightning_recon[flower]'") from error

# Tolerance of an update's norm beyond clipping norm and noise, for rounding and chance.
_SLACK = 1.1


@dataclass(frozen=True)
class FlowerAudit:
    """A Flower app under audit: what its server and its clients need.

    Args:
        network: the app's own model: images (B, C, H, W) in [0, 1] to logits (B, classes).
        structure: what the server adds to it; configure the attack with the same structure.
        protection: what protects the updates: the app's LocalDpMod; its strategy for central differential privacy,
            `DifferentialPrivacyClientSideFixedClipping` for example; a `Privacy` that describes a mod of its own; None.
            See `capture.flower_protection`.
        image_size: side of the images, or their height and width, in pixels.
        num_classes: number of classes of the network.
        batch_size: images in an update: all images that the client trains on in a round.
        clients: number of clients; each update is captured in its own file.
        rounds: number of updates of each client.
        name: name of the network in the captured files.
        local: the clients' local training, which the server knows from the app's code or its own configuration; see
            `exchange.training_by`. Flower sends the weights, so `update` is "delta".
        secure_aggregation: the app's SecAgg+ workflow, by which the server gets only the sum of all clients, see
            `capture.flower_secagg`; None: it gets every client's arrays.
        channels: number of channels of the images.
        loss: name of the loss by which clients train, see `losses`.
    """

    network: nn.Module
    structure: Structure
    protection: Protection
    image_size: int | Sequence[int]
    num_classes: int
    batch_size: int
    clients: int = 1
    rounds: int = 1
    name: str = "flower"
    local: LocalTraining = LocalTraining()  # noqa: RUF009 - frozen
    secure_aggregation: SecAggPlusWorkflow | None = None
    channels: int = 3
    loss: LossName = "cross_entropy"

    @cached_property
    def protected(self) -> Protected:
        """How the updates are protected when they reach the server."""
        return protected_by(self.protection, self.rounds)

    @property
    def privacy(self) -> DeclaredPrivacy:
        """The declared and the exact privacy of a LocalDpMod.

        Raises:
            UserError: the app has another protection.
        """
        mod = self.protection
        if not isinstance(mod, LocalDpMod):
            raise UserError(f"{self.protected.name} declares no privacy of an update to the server")
        return declared_privacy(mod.clipping_norm, mod.sensitivity, mod.epsilon, mod.delta, self.rounds)

    @cached_property
    def task(self) -> Task:
        """What a Flower server knows about the training, by its own configuration or from the app's code."""
        return Task(
            image_shape=image_shape(self.channels, self.image_size),
            num_classes=self.num_classes,
            batch_size=self.batch_size,
            clients=self.clients,
            network=self.name,
            granularity="update",
            per_layer=False,
            max_grad_norm=self.protected.clipping_norm,
            noise_multiplier=self.protected.noise_multiplier,
            rounds=self.rounds,
            parameter_tensors=len(list(self.network.parameters())),
            parameters=sum(parameter.numel() for parameter in self.network.parameters()),
            normalization="none",
            local=self.local,
            aggregated=1 if self.secure_aggregation is None else self.clients,
            quantization=self.quantization,
            loss=self.loss,
        )

    @property
    def quantization(self) -> Quantization | None:
        """How SecAgg+ turns a client's arrays into integers; None without it."""
        workflow = self.secure_aggregation
        if workflow is None:
            return None
        levels = workflow.quantization_range
        weight = round(self.batch_size / workflow.max_weight * levels) / levels  # as the client's mod rounds it
        return Quantization(workflow.clipping_range, levels, workflow.modulus_range, weight)

    @cached_property
    def names(self) -> list[str]:
        """Names of the parameters of the model that the server sends; their changes are attacked."""
        return [name for name, _ in self.model().named_parameters()]

    @cached_property
    def payload(self) -> ServerPayload:
        """What the server adds to the network."""
        return self.structure.payload(self.task)

    def model(self) -> TamperedNetwork:
        """The model that the malicious server sends in place of `network`, see `served_model`."""
        return served_model(self.network, self.payload)

    def arrays(self) -> ArrayRecord:
        """The payload as Flower sends it: the initial arrays of a strategy."""
        return ArrayRecord({name: tensor.detach().clone() for name, tensor in self.model().state_dict().items()})

    def strategy(self, strategy: Strategy | None = None) -> "SameArrays":
        """A strategy that sends the same arrays in every round.

        Args:
            strategy: the app's own, for what it sends beside the arrays and which clients it asks. None: FedAvg that
                asks `clients` clients (Flower's default is at least two) and skips evaluation.
        """
        if strategy is None:
            strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=self.clients, min_available_nodes=self.clients)
        return SameArrays(strategy)

    def capture(self, folder: str | Path) -> "CaptureMod":
        """A mod that captures the client's updates; list it before the LocalDpMod: `mods=[capture, protection]`."""
        return CaptureMod(Path(folder), self)


class CaptureMod:
    """A client mod that writes every update to a file and forwards it unchanged.

    Flower calls mods from the outside in: the first mod of the list receives replies last, after the LocalDpMod that
    follows it.
    """

    def __init__(self, folder: Path, audit: FlowerAudit) -> None:
        """Store the arguments.

        Args:
            folder: folder for one file per client and round.
            audit: the app under audit.
        """
        self.folder, self.audit = folder, audit

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Forward a message, and capture the reply's arrays minus the message's."""
        # Copied before the call: a client may change the arrays that it received.
        received = _tensors(message)
        reply = call_next(message, context)
        sent = {} if reply.has_error() else _tensors(reply)
        if received and sent:
            client, round = _place(message, context)
            path = self.folder / f"{update_name(client, 0, round)}{ENDING}"
            if path.exists():
                raise UserError(
                    f"{path} was captured already: empty the folder before another run; if there are several clients, "
                    "number the nodes by partition-id"
                )
            save_captured(path, captured_update(self.audit, received, sent, client, round))
        return reply


def captured_update(
    audit: FlowerAudit, received: Mapping[str, Tensor], sent: Mapping[str, Tensor], client: int, round: int
) -> CapturedUpdate:
    """The update of a client: the arrays that it sent minus those that it received.

    Args:
        audit: the app under audit.
        received: arrays of the server's message, by name.
        sent: arrays of the client's reply, by name.
        client: index of the client, from 0.
        round: index of the round, from 0.

    Returns:
        The parameters' deltas, without buffers of batch normalization, which are not gradients.

    Raises:
        UserError: the client trained another model, the arrays are not protected yet, or there are more clients or
            rounds than the audit announces.
    """
    for what, index, count in (("client", client, audit.clients), ("round", round, audit.rounds)):
        if index >= count:
            raise UserError(
                f"{what} number {index + 1} sent an update, but the audit announces {count}: set FlowerAudit "
                f"{what}s={index + 1} or more"
            )
    for arrays in (received, sent):
        if missing := [name for name in audit.names if name not in arrays]:
            raise UserError(
                f"the client's arrays lack {missing[0]}: send FlowerAudit.arrays(), build the client's model with "
                "FlowerAudit.model(), and reply with ArrayRecord(model.state_dict())"
            )
    delta = {name: (sent[name].double() - received[name].double()).float() for name in audit.names}
    norm = math.hypot(*(float(tensor.double().norm()) for tensor in delta.values()))
    most = bound_on_norm(audit, sum(tensor.numel() for tensor in delta.values()), 1)
    if norm > most:
        raise UserError(
            f"the update has norm {norm:.4g}, but clipping and noise allow {most:.4g}: list the capturing mod before "
            f"{audit.protected.name}, mods=[audit.capture(folder), protection]"
        )
    return CapturedUpdate(
        task=audit.task,
        tensors=delta,
        convention="delta",
        payload=audit.payload.digest(),
        client=client,
        round=round,
        source=source_of(audit),
        declared=audit.protected.declared,
    )


def bound_on_norm(audit: FlowerAudit, count: int, clients: int) -> float:
    """The largest norm that an update of so many numbers, or the sum of several clients', may have, with tolerance."""
    rounding = 0.0 if audit.quantization is None else audit.quantization.rounding_noise(clients)
    return _SLACK * audit.protected.bound(count, clients, rounding)


def source_of(audit: FlowerAudit) -> str:
    """The program that made an update, and its protection."""
    return f"flwr {flwr.__version__}, {audit.protected.name}"


class SameArrays(Strategy):
    """A strategy that sends the same arrays in every round, so that the rounds' updates can be averaged."""

    def __init__(self, strategy: Strategy) -> None:
        """Store the strategy that chooses the clients.

        Args:
            strategy: any strategy, also one with differential privacy; what it aggregates of the arrays is discarded.
        """
        self.strategy = strategy

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy does."""
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the metrics as the strategy does, and discard the arrays."""
        _, metrics = self.strategy.aggregate_train(server_round, replies)
        return None, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy does."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the strategy does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """As the strategy does."""
        self.strategy.summary()


def _tensors(message: Message) -> dict[str, Tensor]:
    """Arrays of a message's only ArrayRecord, by name; empty if it has none.

    Raises:
        UserError: it has several.
    """
    records = message.content.array_records
    if len(records) > 1:
        raise UserError(
            f"the message has the array records {', '.join(records)}: audit an app that sends its model in one of them"
        )
    return dict(next(iter(records.values())).to_torch_state_dict()) if records else {}


def _place(message: Message, context: Context) -> tuple[int, int]:
    """Index of client and round, from 0, as Flower's strategies and simulations number them."""
    configs = [record for record in message.content.config_records.values() if "server-round" in record]
    number = int(str(configs[0]["server-round"])) - 1 if configs else 0
    return int(str(context.node_config.get("partition-id", 0))), number
