# SPDX-License-Identifier: Apache-2.0
"""A captured update: one safetensors file with every released number, and JSON in its header that says what they are.

Tensors go by parameter name ("structure.weight", "network.<parameter>", as in `ClientUpdate`), float32. The header's
entry "captured" is JSON: `format` "captured 1", `task` (the fields of `exchange.Task`), `payload` (digest of the
`ServerPayload` that the client was shipped; of the empty one for an honest server), `client`, `round` and `draw` (from
0), `convention` (see `CapturedUpdate`), `source` (which program made it) and `declared` (what that program promises:
`epsilon`, `delta` and `sensitivity`, or null). Reading one never executes code.
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
    """What the program that made an update promises about it; null where it says nothing.

    Args:
        epsilon: privacy parameter, as declared.
        delta: privacy parameter, in (0, 1).
        sensitivity: the sensitivity that its noise was computed from, in the unit of the update.
    """

    __pydantic_config__: ClassVar[ConfigDict] = schema.STRICT

    epsilon: schema.NotNegative | None = None
    delta: schema.Probability | None = None
    sensitivity: schema.NotNegative | None = None


@dataclass(frozen=True)
class CapturedUpdate:
    """What left a client of another program, after clipping and noise.

    Args:
        task: what was announced; its noise multiplier and clipping norm are those of the program that made the update.
        tensors: float32, by parameter name.
        convention: "gradient_sum", the sum of clipped gradients plus noise; "gradient_mean", the same divided by the
            expected batch size, `task.batch_size`; "delta", new weights minus old ones, which point against the
            gradient, clipped and noised as a whole. Under granularity "update" sum and mean are the same thing.
        payload: digest of what the client was shipped; see `ServerPayload.digest`. Default: of the empty payload.
        client: index of the client, from 0.
        round: index of the round, from 0.
        draw: index of the noise realisation, from 0; more than one exists in experiments only.
        source: the program that made it, and its version.
        declared: what that program promises; None if nothing.
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

    @property
    def place(self) -> tuple[int, int, int]:
        """Client, draw and round that it belongs to."""
        return self.client, self.draw, self.round

    def update(self) -> ClientUpdate:
        """The same in the convention of `ClientUpdate`: the sum of clipped gradients, or the clipped gradient."""
        gradient = as_gradient(self.tensors, self.convention, self.task)
        return ClientUpdate(self.client, self.draw, self.round, gradient=gradient, payload=self.payload)

    @classmethod
    def from_header(cls, header: Mapping[str, object], tensors: dict[str, Tensor]) -> Self:
        """Build one from the JSON of a header, less its `format`.

        Raises:
            ValueError: something is missing, unknown, of the wrong kind or out of bounds; the message says what.
        """
        task = header.get("task")
        complete = {**header, "task": completed(task) if isinstance(task, Mapping) else task}
        known = validated(complete, HEADER)
        check_task(known.task)
        return cls(tensors=tensors, **{field.name: getattr(known, field.name) for field in fields(known)})


@dataclass(frozen=True)
class Header:
    """What the header of a captured update says; fields as in `CapturedUpdate`."""

    __pydantic_config__: ClassVar[ConfigDict] = schema.STRICT

    task: Task
    convention: Convention
    payload: schema.Hash
    client: schema.Index
    round: schema.Index
    draw: schema.Index
    source: schema.Text
    declared: Declared | None


HEADER = TypeAdapter(Header)


def as_gradient(tensors: Mapping[str, Tensor], convention: Convention, task: Task) -> dict[str, Tensor]:
    """Turn released numbers into the convention of `ClientUpdate`, float32.

    Args:
        tensors: by parameter name, floating point.
        convention: what they are, see `CapturedUpdate`.
        task: granularity and expected batch size.

    Returns:
        Granularity "sample": the sum of the clipped gradients plus noise of standard deviation zC; "update": the
        clipped gradient plus such noise.

    Raises:
        ValueError: a delta under granularity "sample", whose scale depends on an unknown learning rate.
    """
    if convention == "delta" and task.granularity == "sample":
        raise ValueError(
            "convention delta goes with granularity update, where the delta itself is clipped; under sample the noise "
            "was added to gradients: divide the delta by minus the learning rate and call it gradient_mean"
        )
    factor = -1.0 if convention == "delta" else 1.0
    if convention == "gradient_mean" and task.granularity == "sample":
        factor = float(task.batch_size)
    return {name: factor * tensor.to(torch.float32) for name, tensor in tensors.items()}


def save_captured(path: str | Path, captured: CapturedUpdate) -> None:
    """Write one captured update, whole or not at all.

    Args:
        path: file to write, ending in ".safetensors"; its folder is made where it is missing.
        captured: what to write.

    Raises:
        UserError: the file cannot be written, or is not named so, or the update is none.
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
            raise UserError(f"{name} holds {tensor.dtype}, and a gradient is floating point: nothing was written")
    tensors = {name: tensor.to(torch.float32) for name, tensor in captured.tensors.items()}
    write_sealed(path, tensors, ENTRY, {"format": FORMAT, **header})


def load_header(path: str | Path) -> CapturedUpdate:
    """Read what a captured update says of itself, without its tensors; otherwise as `load_captured`."""
    return _load(Path(path), tensors=False)


def load_captured(path: str | Path) -> CapturedUpdate:
    """Read one captured update as it is; `capture.validator` says whether its numbers make sense.

    Args:
        path: file that `save_captured` wrote, or another program in its format.

    Raises:
        UserError: it is missing, damaged, or not in the format.
    """
    return _load(Path(path), tensors=True)


def _load(path: Path, tensors: bool) -> CapturedUpdate:
    if not path.is_file():
        raise UserError(f"there is no captured update {path}: give --model.update a file, or a folder of them")
    try:
        found, header = read_sealed(path, ENTRY) if tensors else ({}, read_header(path, ENTRY))
        if not header:
            raise UserError(
                f"{path} does not say what it holds: a captured update has its description in the header; write "
                "it by lightning_recon.capture.save_captured"
            )
        if header.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        # Other programs write other precisions; what float32 cannot hold becomes infinite, which the validator refuses.
        floats = {name: tensor.to(torch.float32) for name, tensor in found.items() if tensor.is_floating_point()}
        return CapturedUpdate.from_header(header, found | floats)
    except SafetensorError as error:
        raise UserError(
            f"{path} is truncated or no safetensors file ({reason_of(error)}): capture again, or copy it again"
        ) from error
    except FAULTS as error:
        raise UserError(f"{path} is no captured update: {reason_of(error)}") from error
