# SPDX-License-Identifier: Apache-2.0
"""The messages between server and client: payloads, updates and the training's announced parameters.

The server ships a `ServerPayload`, the client answers with a privatised `ClientUpdate`; both are plain data, kept as
safetensors + JSON, so that reading them never executes code. A recorded exchange answers in the client's place
(`RecordedClient`), so a run can be replayed after the images were deleted.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.files import schema
from lightning_recon.files.schema import Fingerprint
from lightning_recon.files.serialization import (
    describe,
    read_json,
    read_tensors,
    readable,
    sha256,
    validated,
    write_json,
    write_tensors,
)
from lightning_recon.networks.normalization import ChannelStatistics, Normalization

NoiseShare = Literal["local", "distributed"]
ROWS = "#rows"  # "NAME#rows" holds the indices of the rows that were kept of tensor NAME
# The most numbers that the images of one update, or the logits of them, may be: 8 GiB in float32.
MOST_NUMBERS = 1 << 31


@dataclass(frozen=True)
class Task:
    """What the server knows because it runs the training; these parameters are announced, not estimated.

    Args:
        image_shape: channels, height and width of one image, in pixels.
        num_classes: how many classes the network distinguishes.
        batch_size: images in one client's batch (B).
        clients: how many clients take part.
        network: name of the target network.
        granularity: what is clipped: each sample's gradient, or the client's whole update.
        per_layer: whether each of the L tensors is clipped on its own, to C/sqrt(L).
        max_grad_norm: clipping norm C; None if nothing is clipped.
        noise_multiplier: noise standard deviation divided by C (z): of each client's own update, or of the sum, as
            `noise_share` says.
        rounds: how often every client answers (T).
        parameter_tensors: how many parameter tensors the network has, without what the server adds to it.
        aggregated: how many clients' updates reach the server as their sum alone, by secure aggregation (N); 1: each
            by itself.
        noise_share: what each of them adds: "local", noise of zC, so that the sum has zC sqrt(N); "distributed",
            zC / sqrt(N), so that the sum has zC.
        batch_norm: whether clients normalise by their batch's statistics ("train") or by the running ones ("eval").
        local_steps: plain gradient steps that a client takes, each on an equal part of its batch, before it sends what
            they took from the weights, divided by the learning rate: with one step the gradient itself.
        local_lr: their learning rate.
        local_epochs: local passes over the batch.
        normalization: of the images, as the network does it: "none", "imagenet", or mean and standard deviation;
            "auto" as `networks.build_network` resolves it from the name. Records from before there was a choice do not
            have it, and mean "imagenet".
    """

    # Applied to what is read from disk, together with the bounds below.
    __pydantic_config__: ClassVar[ConfigDict] = schema.STRICT

    image_shape: tuple[schema.Side, schema.Side, schema.Side]
    num_classes: schema.Classes
    batch_size: schema.Batch
    clients: schema.Clients
    network: schema.Name
    granularity: Literal["sample", "update"]
    per_layer: bool
    max_grad_norm: schema.Positive | None
    noise_multiplier: schema.NotNegative
    rounds: schema.Rounds
    parameter_tensors: schema.Rounds
    aggregated: schema.Clients = 1
    noise_share: NoiseShare = "local"
    batch_norm: Literal["train", "eval"] = "train"
    local_steps: schema.Batch = 1
    local_lr: schema.Positive = 0.1
    local_epochs: schema.Rounds = 1
    normalization: Normalization = "auto"

    @property
    def updates(self) -> int:
        """How many updates reach the server in a round: one of each client, or of each group of clients."""
        return self.clients // self.aggregated

    @property
    def victims(self) -> int:
        """How many images are in one of these updates."""
        return self.aggregated * self.batch_size

    @property
    def sharers(self) -> int:
        """How many of them share one clip: each client's batch, or none."""
        return self.batch_size if self.granularity == "update" else 1

    @property
    def update_noise(self) -> float:
        """Noise standard deviation of one of these updates, divided by C."""
        return summed_noise(self.noise_multiplier, self.aggregated, self.noise_share)

    def save(self, folder: Path) -> None:
        """Write `task.json` into the folder."""
        write_json(folder / "task.json", {"format": "task 2", **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> "Task":
        """Read `task.json` from the folder; a missing or damaged file is a `UserError`."""
        path = folder / "task.json"
        with readable(path):
            content = read_json(path, _RECORD, "task 2")
            return cls.from_record(content)

    @classmethod
    def from_record(cls, content: Mapping[str, Any]) -> "Task":
        """The task that `asdict` of one, read back from JSON, describes.

        Raises:
            ValueError: a field is missing, unknown, of another type or out of bounds, or they contradict each other.
        """
        return check_task(validated(completed(content), TASK))


TASK = TypeAdapter(Task)
_RECORD = TypeAdapter(dict[str, Any])  # what `completed` makes a task of


def completed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the record of a task up to date.

    Records without `normalization` mean ImageNet's. Earlier versions wrote `local_rate`, and other values of
    `noise_share`.
    """
    current = {"normalization": "imagenet", **record}
    if "local_rate" in current and "local_lr" not in current:
        current["local_lr"] = current.pop("local_rate")
    if "noise_share" in current:
        current["noise_share"] = current_noise_share(current["noise_share"])
    return current


def current_noise_share(value: Any) -> Any:  # noqa: ANN401 - unchecked content of a file
    """Translate the values of `noise_share` that earlier versions wrote; any other value stays as it is."""
    return {"full": "local", "shared": "distributed"}.get(value, value) if isinstance(value, str) else value


@dataclass(frozen=True)
class ServerPayload:
    """The server's message of one round: how to build the layer that it adds to the network.

    Args:
        settings: plain values; empty (with no tensors) means that nothing is added to the network.
        tensors: arrays by name, of any shape and dtype.
    """

    settings: dict[str, bool | int | float | str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def digest(self) -> str:
        """Hash (sha256, hexadecimal) over settings and tensors: equal payloads, equal digests."""
        return _digest(self.settings, {name: describe(tensor) for name, tensor in self.tensors.items()})

    def save(self, folder: Path, name: str, like: str | None = None) -> None:
        """Write `NAME.json` and, if anything is left to store, `NAME.safetensors`.

        Args:
            folder: where to write; created if missing.
            name: file name without ending, see `payload_name`.
            like: name of a payload saved there before; tensors equal to that payload's are referred to, not stored.
        """
        table: dict[str, dict[str, Any]] = {key: describe(tensor) for key, tensor in self.tensors.items()}
        digest = _digest(self.settings, table)
        earlier: schema.PayloadRecord | None = None
        if like is not None:
            with readable(folder / f"{like}.json"):
                earlier = read_json(folder / f"{like}.json", schema.PAYLOAD, "payload 1")
        for key, entry in table.items():
            known: Mapping[str, Any] = earlier["tensors"].get(key, {}) if earlier else {}
            same = all(known.get(part) == value for part, value in entry.items())
            entry["stored_in"] = known["stored_in"] if same else name
        write_tensors(folder, name, {k: t for k, t in self.tensors.items() if table[k]["stored_in"] == name})
        same_as = {"same_as": like} if earlier and earlier["digest"] == digest else {}
        content = {"format": "payload 1", "digest": digest, **same_as, "settings": self.settings, "tensors": table}
        write_json(folder / f"{name}.json", content)

    @classmethod
    def load(cls, folder: Path, name: str) -> Self:
        """Read what `save` wrote; a missing, truncated or altered file is a `UserError`."""
        path = folder / f"{name}.json"
        with readable(path):
            content = read_json(path, schema.PAYLOAD, "payload 1")
            tensors: dict[str, Tensor] = {}
            for key, entry in content["tensors"].items():
                mark = {part: value for part, value in entry.items() if part != "stored_in"}
                tensors[key] = read_tensors(folder, entry["stored_in"], {key: mark})[key]
                if tensors[key].is_floating_point() and bool(tensors[key].isnan().any()):
                    raise ValueError(f"NaN in {key}")
            if _digest(content["settings"], content["tensors"]) != content["digest"]:
                raise ValueError("its settings do not belong to its digest")
            return cls(settings=content["settings"], tensors=tensors)


@dataclass(frozen=True)
class ClientUpdate:
    """A client's answer after clipping and noise: the only client data that an attack may use.

    Args:
        client: index of the client, from 0; under secure aggregation of the group of clients whose sum it is.
        draw: index of the noise realisation, from 0.
        round: index of the round, from 0.
        gradient: privatised gradients, float32, by parameter name ("structure.weight", "network.<parameter>", ...).
            In an update read from disk, rows that were not kept are NaN.
        omitted: shape and hash of the tensors that were not kept on disk; empty as the client sends it.
        payload: digest of the payload that this update answers.
    """

    client: int
    draw: int
    round: int
    gradient: dict[str, Tensor]
    omitted: dict[str, Fingerprint] = field(default_factory=dict)
    payload: str = ""

    def save(self, folder: Path, name: str, keep: Mapping[str, Tensor | None]) -> None:
        """Write `NAME.json` and `NAME.safetensors` with the part of the update that is to be kept.

        Args:
            folder: where to write; created if missing.
            name: file name without ending, see `update_name`.
            keep: for each tensor to keep, the indices of its rows (int64, along dimension 0), or None for all rows.
                For all other tensors only shape and hash are recorded.
        """
        if unknown := sorted(keep.keys() - self.gradient.keys()):
            raise KeyError(f"the update has no tensor {unknown[0]!r}")
        tensors: dict[str, Tensor] = {}
        whole: dict[str, Fingerprint] = {}
        omitted = dict(self.omitted)
        for key, tensor in self.gradient.items():
            mark: Fingerprint = {"shape": list(tensor.shape), "sha256": sha256(tensor)}
            if key not in keep:
                omitted[key] = mark
                continue
            whole[key] = mark
            rows = keep[key]
            tensors[key] = tensor if rows is None else tensor[rows.to(tensor.device)]
            if rows is not None:
                tensors[key + ROWS] = rows
        write_tensors(folder, name, tensors)
        content = {"format": "update 1", "client": self.client, "draw": self.draw, "round": self.round}
        content |= {"payload": self.payload, "whole": whole, "omitted": omitted}
        write_json(folder / f"{name}.json", content | {"tensors": {k: describe(t) for k, t in tensors.items()}})

    @classmethod
    def load(cls, folder: Path, name: str) -> Self:
        """Read what `save` wrote; a missing, truncated or altered file, or NaN in it, is a `UserError`."""
        path = folder / f"{name}.json"
        with readable(path):
            content = read_json(path, schema.UPDATE, "update 1")
            stored = read_tensors(folder, name, content["tensors"]) if content["tensors"] else {}
            gradient = {}
            for key, mark in content["whole"].items():
                if not bool(stored[key].isfinite().all()):
                    raise ValueError(f"NaN or infinity in {key}")
                gradient[key] = _spread(stored[key], stored.get(key + ROWS), mark["shape"])
            place = content["client"], content["draw"], content["round"]
            return cls(*place, gradient=gradient, omitted=content["omitted"], payload=content["payload"])


@runtime_checkable
class Client(Protocol):
    """Answers a server's payload: a simulated client with images, or a recorded exchange."""

    @property
    def task(self) -> Task:
        """What the server knows of the training."""
        ...

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """Answer one round's payload with a privatised update."""
        ...


class RecordedClient:
    """Answers from a saved exchange, without images or a network."""

    def __init__(self, folder: str | Path) -> None:
        """Open a recording.

        Args:
            folder: the `exchange/` folder of an earlier run.

        Raises:
            UserError: the folder holds no readable `task.json`.
        """
        self.folder = Path(folder)
        self._task = Task.load(self.folder)

    @property
    def task(self) -> Task:
        """What the server knows of the training, as recorded."""
        return self._task

    def require(self, rounds: int) -> None:
        """Check, before anything is written, that the folder holds what the task announces.

        Args:
            rounds: how many rounds every client answers before the server learns anything.

        Raises:
            UserError: a round's payload, or a client's update, is missing.
        """
        for number in range(rounds):
            names = [payload_name(number), *(update_name(client, 0, number) for client in range(self.task.updates))]
            for name in names:
                if not (self.folder / f"{name}.json").is_file():
                    raise UserError(
                        f"{self.folder} lacks {name}.json, and its task.json announces {self.task.updates} update(s) "
                        f"in {self.task.rounds} round(s): restore the exchange folder of the run"
                    )

    def payload(self, round: int, client: int | None = None, draw: int | None = None) -> ServerPayload:
        """What the server shipped in this round, as recorded: to all, or to this client in this noise draw."""
        return ServerPayload.load(self.folder, payload_name(round, client, draw))

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """The recorded update of this client, draw and round, if the payload is the recorded one."""
        update = ClientUpdate.load(self.folder, update_name(client, draw, round))
        if (update.client, update.draw, update.round) != (client, draw, round):
            wrong = update_name(update.client, update.draw, update.round)
            raise UserError(f"{self.folder / update_name(client, draw, round)}.json holds {wrong}: restore the files")
        if update.payload != (digest := payload.digest()):
            raise UserError(
                f"this run recorded a different payload: round {round} of {self.folder} answers {update.payload[:12]}, "
                f"the server now ships {digest[:12]}: replay with the config.yaml of the same run"
            )
        return update


def check_task(task: Task) -> Task:
    """Refuse a task whose fields contradict each other, or that together need more memory than any real training.

    Returns:
        The task.

    Raises:
        ValueError: what is wrong, in one line.
    """
    if isinstance(task.normalization, ChannelStatistics):
        task.normalization.check()
    if task.image_shape[0] != 3:
        raise ValueError(f"task.image_shape has {task.image_shape[0]} channels: pictures have 3")
    if task.max_grad_norm is None and task.noise_multiplier > 0:
        raise ValueError(
            f"task.noise_multiplier is {task.noise_multiplier:g} but task.max_grad_norm is null, and noise without "
            "a clip protects nothing: state the clipping norm"
        )
    if task.clients % task.aggregated:
        raise ValueError(f"task.aggregated is {task.aggregated}, which does not divide task.clients, {task.clients}")
    if task.batch_size % task.local_steps:
        raise ValueError(f"task.local_steps is {task.local_steps}, which does not divide task.batch_size")
    for size, what in ((math.prod(task.image_shape), "pixels"), (task.num_classes, "logits")):
        if task.victims * size > MOST_NUMBERS:
            raise ValueError(f"one update is about {task.victims} pictures with {size} {what} each: too many")
    return task


def summed_noise(noise_multiplier: float, aggregated: int, noise_share: NoiseShare) -> float:
    """Noise of a sum of clients' updates, as `Task` describes it, divided by the clipping norm."""
    return noise_multiplier * (math.sqrt(aggregated) if noise_share == "local" else 1.0)


def payload_name(round: int, client: int | None = None, draw: int | None = None) -> str:
    """File name, without ending, of a round's payload: for all, or for one client in one noise draw."""
    if client is None or draw is None:
        return f"payload-r{round:04d}"
    return f"payload-c{client:03d}-d{draw:03d}-r{round:04d}"


def update_name(client: int, draw: int, round: int) -> str:
    """File name, without ending, of one update."""
    return f"update-c{client:03d}-d{draw:03d}-r{round:04d}"


def _digest(settings: Mapping[str, Any], table: Mapping[str, Mapping[str, Any]]) -> str:
    marks = {name: [entry["shape"], entry["dtype"], entry["sha256"]] for name, entry in table.items()}
    return hashlib.sha256(json.dumps([settings, marks], sort_keys=True, allow_nan=False).encode()).hexdigest()


def _spread(kept: Tensor, rows: Tensor | None, shape: list[int]) -> Tensor:
    """The whole tensor again: kept rows in their places, NaN elsewhere."""
    if list(kept.shape) != ([len(rows), *shape[1:]] if rows is not None else shape):
        raise ValueError(f"stored as {tuple(kept.shape)}, recorded as {tuple(shape)}")
    if rows is None:
        return kept
    whole = torch.full(shape, torch.nan, dtype=kept.dtype)
    whole[rows] = kept
    return whole
