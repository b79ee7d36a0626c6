# SPDX-License-Identifier: Apache-2.0
"""The file of a captured update: safetensors with every released number, described by JSON in the header.

Tensors are named like parameters ("structure.weight", "network.<parameter>", as in `ClientUpdate`) and are float32. The
header's entry "captured" is JSON: `format` "captured 1", `task` (the fields of `exchange.Task`), `payload` (digest of
the `ServerPayload` that the server sent; of the empty payload for an honest server), `client`, `round` and `draw` (from
0), `convention` (see `CapturedUpdate`), `source` (the program that made the update) and `declared` (the privacy that it
declares: `epsilon`, `delta` and `sensitivity`, or null); of a sum that clients dropped out of also `contributors`.
Reading a file never executes code.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task, check_task, completed
from lightning_recon.files import schema
from lightning_recon.files.faults import FAULTS, reason_of
from lightning_recon.files.serialization import read_header, read_sealed, validated, write_sealed

FORMAT = "captured 1"
ENTRY = "captured"  # of the safetensors header
ENDING = ".safetensors"

Convention = Literal["gradient_sum", "gradient_mean", "delta"]


@dataclass(frozen=True)
class Declared:
    """The privacy that the program which made an update declares; null where it declares nothing.

    Args:
        epsilon: declared epsilon.
        delta: declared delta, in (0, 1).
        sensitivity: sensitivity from which the noise was computed, in the unit of the update.
    """

    __pydantic_config__: ClassVar[ConfigDict] = schema.STRICT

    epsilon: schema.NotNegative | None = None
    delta: schema.Probability | None = None
    sensitivity: schema.NotNegative | None = None


@dataclass(frozen=True)
class CapturedUpdate:
    """The update of a client of another program, after clipping and noise.

    Args:
        task: the announced task; noise multiplier and clipping norm are those of the program that made the update.
        tensors: float32, by parameter name.
        convention: "gradient_sum": the sum of clipped gradients plus noise; "gradient_mean": the same divided by the
            expected batch size, `task.batch_size`; "delta": new minus old weights, opposite in sign to the gradient,
            clipped and noised as a whole. Under granularity "update", sum and mean are the same.
        payload: digest of what the server sent, see `ServerPayload.digest`. Default: that of the empty payload.
        client: index of the client, from 0.
        round: index of the round, from 0.
        draw: index of the noise realization, from 0; several exist in experiments only.
        source: the program that made the update, and its version.
        declared: the privacy that this program declares; None if it declares nothing.
        contributors: number of clients in a sum that others dropped out of; None: all that were announced.
    """

    task: Task
    tensors: dict[str, Tensor]
    convention: Convention
    payload: str = ServerPayload().digest()
    client: int = 0
    round: int = 0
    draw: int = 0
    source: str = "unknown"
    declared: Declared | None = None
    contributors: int | None = None

    @property
    def place(self) -> tuple[int, int, int]:
        """Indices of client, draw and round."""
        return self.client, self.draw, self.round

    def update(self) -> ClientUpdate:
        """The update in the convention of `ClientUpdate`: the sum of clipped gradients, or the clipped gradient."""
        gradient = as_gradient(self.tensors, self.convention, self.task)
        place = self.client, self.draw, self.round
        return ClientUpdate(*place, gradient=gradient, payload=self.payload, contributors=self.contributors)

    @classmethod
    def from_header(cls, header: Mapping[str, object], tensors: dict[str, Tensor]) -> Self:
        """Build an update from the JSON of a header, without its `format`.

        Raises:
            ValueError: a field is missing, unknown, of another type or out of bounds; the message says which.
        """
        task = header.get("task")
        complete = {**header, "task": completed(task) if isinstance(task, Mapping) else task}
        known = validated(complete, HEADER)
        check_task(known.task)
        return cls(tensors=tensors, **{field.name: getattr(known, field.name) for field in fields(known)})


@dataclass(frozen=True)
class Header:
    """The header of a captured update; fields as in `CapturedUpdate`."""

    __pydantic_config__: ClassVar[ConfigDict] = schema.STRICT

    task: Task
    convention: Convention
    payload: schema.Hash
    client: schema.Index
    round: schema.Index
    draw: schema.Index
    source: schema.Text
    declared: Declared | None
    contributors: schema.Clients | None = None


HEADER = TypeAdapter(Header)


def as_gradient(tensors: Mapping[str, Tensor], convention: Convention, task: Task) -> dict[str, Tensor]:
    """Convert released tensors to the convention of `ClientUpdate`, float32.

    Args:
        tensors: by parameter name, floating point.
        convention: the convention of the tensors, see `CapturedUpdate`.
        task: granularity and expected batch size.

    Returns:
        Granularity "sample": the sum of the clipped gradients plus noise of scale zC; "update": the clipped
        gradient plus such noise.

    Raises:
        ValueError: a delta under granularity "sample", whose scale depends on an unknown learning rate.
    """
    if convention == "delta" and task.granularity == "sample" and task.local.is_plain_step:
        raise ValueError(
            "convention delta needs granularity update, where the delta itself is clipped, or announced local steps; "
            "under sample the noise is added to gradients: divide the delta by minus the learning rate and set "
            "convention gradient_mean"
        )
    factor = -1.0 if convention == "delta" else 1.0
    if convention == "gradient_mean" and task.granularity == "sample":
        factor = float(task.batch_size)
    return {name: factor * tensor.to(torch.float32) for name, tensor in tensors.items()}


def save_captured(path: str | Path, captured: CapturedUpdate) -> None:
    """Write one captured update atomically.

    Args:
        path: file to write, ending in ".safetensors"; missing folders are created.
        captured: the update.

    Raises:
        UserError: the file cannot be written or has another ending, or the update is invalid.
    """
    path = Path(path)
    if path.suffix != ENDING:
        raise UserError(f"a captured update is a {ENDING} file, not {path.name}: name it {path.stem}{ENDING}")
    if not captured.tensors:
        raise UserError(f"nothing was captured for {path}: give the tensors by parameter name")
    header = {field.name: getattr(captured, field.name) for field in fields(captured) if field.name != "tensors"}
    header["task"] = asdict(captured.task)
    header["declared"] = captured.declared and asdict(captured.declared)
    try:
        CapturedUpdate.from_header(header, {})
    except (ValueError, TypeError) as error:
        raise UserError(f"cannot write {path}: {reason_of(error)}") from error
    for name, tensor in captured.tensors.items():
        if not tensor.is_floating_point():
            raise UserError(f"{name} holds {tensor.dtype}, but gradients are floating point: nothing was written")
    tensors = {name: tensor.to(torch.float32) for name, tensor in captured.tensors.items()}
    write_sealed(path, tensors, ENTRY, {"format": FORMAT, **header})


def load_header(path: str | Path) -> CapturedUpdate:
    """Read the header of a captured update, without its tensors; otherwise like `load_captured`."""
    return _load(Path(path), tensors=False)


def load_captured(path: str | Path) -> CapturedUpdate:
    """Read one captured update; `capture.validator` checks its content.

    Args:
        path: a file that `save_captured`, or another program, wrote in this format.

    Raises:
        UserError: the file is missing, damaged, or in another format.
    """
    return _load(Path(path), tensors=True)


def _load(path: Path, tensors: bool) -> CapturedUpdate:
    if not path.is_file():
        raise UserError(f"there is no captured update {path}: give --model.update a file, or a folder of them")
    try:
        found, header = read_sealed(path, ENTRY) if tensors else ({}, read_header(path, ENTRY))
        if not header:
            raise UserError(
                f"{path} has no description in its header, as a captured update has: write it with "
                "lightning_recon.capture.save_captured"
            )
        if header.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        # Other programs write other precisions; values beyond float32 become infinite, which the validator refuses.
        floats = {name: tensor.to(torch.float32) for name, tensor in found.items() if tensor.is_floating_point()}
        return CapturedUpdate.from_header(header, found | floats)
    except SafetensorError as error:
        raise UserError(
            f"{path} is truncated or not a safetensors file ({reason_of(error)}): capture or copy it again"
        ) from error
    except FAULTS as error:
        raise UserError(f"{path} is not a captured update: {reason_of(error)}") from error
