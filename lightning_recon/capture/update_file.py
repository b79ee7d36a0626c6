# SPDX-License-Identifier: Apache-2.0
"""A captured update: one safetensors file with every released number, and JSON in its header that says what they are.

Tensors go by parameter name ("structure.weight", "network.<parameter>", as in `ClientUpdate`), float32. The header's
entry "captured" is JSON: `format` "captured 1", `task` (the fields of `exchange.Task`), `payload` (digest of the
`ServerPayload` that the client was shipped; of the empty one for an honest server), `client`, `round` and `draw` (from
0), `convention` (see `CapturedUpdate`), `source` (which program made it) and `declared` (what that program promises:
`epsilon`, `delta` and `sensitivity`, or null). Reading one never executes code.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.storage import write_tensors

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

    epsilon: float | None = None
    delta: float | None = None
    sensitivity: float | None = None


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
    def from_header(cls, header: Mapping[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Build one from the JSON of a header, less its `format`.

        Raises:
            ValueError: something is missing, unknown, or of the wrong kind; the message says what.
        """
        known = {field.name for field in fields(cls)} - {"tensors"}
        content = dict(header)
        _compare(content.keys(), known, "the header")
        optional = {field.name for field in fields(Task) if field.default is not MISSING}
        _compare(dict(content["task"]).keys() | optional, {field.name for field in fields(Task)}, "its task")
        task = Task.from_record(content.pop("task"))
        declared = content.pop("declared")
        if content["convention"] not in get_args(Convention):
            raise ValueError(f"convention is {content['convention']!r}, not one of {', '.join(get_args(Convention))}")
        for name in ("client", "round", "draw"):
            if type(content[name]) is not int or content[name] < 0:
                raise ValueError(f"{name} is {content[name]!r}, not an index from 0")
        check_task(task)
        known_declared = None if declared is None else Declared(**declared)
        return cls(task=task, tensors=tensors, declared=known_declared, **content)


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


def check_task(task: Task) -> None:
    """Refuse a task that describes no training.

    Raises:
        ValueError: what is wrong, in one line.
    """
    whole = {name: getattr(task, name) for name in ("num_classes", "batch_size", "clients", "rounds")}
    whole |= dict(zip(("channels", "height", "width"), task.image_shape, strict=True))
    for name, value in whole.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"task.{name} is {value!r}, not a whole number of at least 1")
    if task.image_shape[0] != 3:
        raise ValueError(f"task.image_shape has {task.image_shape[0]} channels: pictures have 3")
    if task.granularity not in ("sample", "update"):
        raise ValueError(f"task.granularity is {task.granularity!r}, neither sample nor update")
    if not (math.isfinite(task.noise_multiplier) and task.noise_multiplier >= 0):
        raise ValueError(f"task.noise_multiplier is {task.noise_multiplier!r}, not a number of at least 0")
    if task.max_grad_norm is None:
        if task.noise_multiplier > 0:
            raise ValueError(
                f"task.noise_multiplier is {task.noise_multiplier:g} but task.max_grad_norm is null, and noise without "
                "a clip protects nothing: state the clipping norm"
            )
    elif not (math.isfinite(task.max_grad_norm) and task.max_grad_norm > 0):
        raise ValueError(f"task.max_grad_norm is {task.max_grad_norm!r}, neither a number above 0 nor null")


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
    try:
        check_task(captured.task)
    except ValueError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    header = {field.name: getattr(captured, field.name) for field in fields(captured) if field.name != "tensors"}
    header["task"] = asdict(captured.task)
    header["declared"] = captured.declared and asdict(captured.declared)
    text = json.dumps({"format": FORMAT, **header}, allow_nan=False)
    for name, tensor in captured.tensors.items():
        if not tensor.is_floating_point():
            raise UserError(f"{name} holds {tensor.dtype}, and a gradient is floating point: nothing was written")
    tensors = {name: tensor.to(torch.float32) for name, tensor in captured.tensors.items()}
    write_tensors(path.parent, path.stem, tensors, {ENTRY: text})


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
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(ENTRY)
            if text is None:
                raise UserError(
                    f"{path} does not say what it holds: a captured update has its description in the header; write "
                    "it by lightning_recon.capture.save_captured"
                )
            found = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118 - no mapping
        header = json.loads(text)
        if header.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        return CapturedUpdate.from_header(header, found)
    except SafetensorError as error:
        raise UserError(
            f"{path} is truncated or no safetensors file ({_line(error)}): capture again, or copy it again"
        ) from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path} is no captured update: {_line(error)}") from error


def _compare(found: Any, known: set[str], where: str) -> None:  # noqa: ANN401 - any collection of names
    if missing := sorted(known - set(found)):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(set(found) - known):
        raise ValueError(f"{where} has {', '.join(unknown)}, which this version does not know")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
