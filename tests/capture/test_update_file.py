# SPDX-License-Identifier: Apache-2.0
"""The file of a captured update: it is read as it was written, and refused in one line otherwise."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_recon.capture import CapturedUpdate, Declared, load_captured, save_captured
from lightning_recon.capture.update_file import ENTRY, as_gradient, load_header
from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload, Task

TASK = Task((3, 8, 8), 10, 4, 1, "convnet", "sample", False, 2.0, 0.5, 1, 2)
TENSORS = {"network.a": torch.arange(6.0).view(2, 3), "structure.weight": torch.ones(2, 2)}
FULL = CapturedUpdate(TASK, TENSORS, "gradient_mean", "ab" * 32, 1, 2, 3, "opacus 1.6.0", Declared(8.0, 1e-5, 2.0))


def written(path: Path, header: dict[str, Any] | None, drop: str = "", **changes: Any) -> Path:  # noqa: ANN401
    """A file whose header says something else than `save_captured` would."""
    save_captured(path, FULL)
    if header is None:
        save_file(TENSORS, path)
        return path
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()[ENTRY])
    del content["sha256"]
    content |= header
    content["task"] |= changes
    content.pop(drop, None)
    save_file(TENSORS, path, metadata={ENTRY: json.dumps(content)})
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "update.safetensors"
    save_captured(path, FULL)
    found = load_captured(path)
    assert replace(found, tensors={}) == replace(FULL, tensors={}) == load_header(path)
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], TENSORS[name]) for name in TENSORS)
    save_captured(path, CapturedUpdate(TASK, TENSORS, "delta"))
    assert load_header(path).declared is None
    assert load_header(path).payload == ServerPayload().digest()


@pytest.mark.parametrize(
    ("convention", "granularity", "factor"),
    [
        ("gradient_sum", "sample", 1.0),
        ("gradient_mean", "sample", 4.0),
        ("gradient_sum", "update", 1.0),
        ("gradient_mean", "update", 1.0),
        ("delta", "update", -1.0),
    ],
)
def test_every_convention_becomes_ours(convention: Any, granularity: Any, factor: float) -> None:  # noqa: ANN401
    found = as_gradient(TENSORS, convention, replace(TASK, granularity=granularity))
    assert all(torch.equal(found[name], factor * TENSORS[name]) for name in TENSORS)


def test_a_delta_of_dp_sgd_has_no_scale() -> None:
    with pytest.raises(ValueError, match="divide the delta by minus the learning rate"):
        as_gradient(TENSORS, "delta", TASK)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p, "there is no captured update"),
        (lambda p: p.write_bytes(b"PK\x03\x04 something else entirely") and p, "truncated or not a safetensors file"),
        (lambda p: written(p, None), "has no description in its header.*save_captured"),
        (lambda p: written(p, {"format": "captured 9"}), "format is not 'captured 1'"),
        (lambda p: written(p, {}, drop="convention"), "convention: Field required"),
        (lambda p: written(p, {"mood": "good"}), "mood: Unexpected keyword argument"),
        (
            lambda p: written(p, {"convention": "weights"}),
            "convention: Input should be .* not 'weights'",
        ),
        (lambda p: written(p, {"round": -1}), "round: Input should be greater than or equal to 0, not '-1'"),
        (lambda p: written(p, {"declared": {"budget": 1}}), "budget"),
        (lambda p: written(p, {"task": {"network": "convnet"}}), "task.image_shape: Field required"),
        (lambda p: written(p, {}, colour="blue"), "task.colour: Unexpected keyword argument"),
        (lambda p: written(p, {}, max_grad_norm=None), "noise without a clip protects nothing"),
        (lambda p: written(p, {}, max_grad_norm=0), "max_grad_norm: Input should be greater than 0, not '0'"),
        (
            lambda p: written(p, {}, noise_multiplier=-1),
            "noise_multiplier: Input should be greater",
        ),
        (
            lambda p: written(p, {}, noise_multiplier="much"),
            "noise_multiplier: Input should be a valid number",
        ),
        (lambda p: written(p, {}, batch_size=0), "batch_size: Input should be greater than or equal to 1"),
        (lambda p: written(p, {}, image_shape=[0, 8, 8]), "greater than or equal to 1"),
        (lambda p: written(p, {}, image_shape=[8, 8]), "not a captured update"),
        (
            lambda p: written(p, {}, granularity="layer"),
            "granularity: Input should be .*, not 'layer'",
        ),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path / "update.safetensors")
    with pytest.raises(UserError, match=message) as refusal:
        load_captured(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "update.safetensors"
    save_captured(path, FULL)
    whole = path.read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="truncated or not a safetensors file"):
            load_captured(path)


@pytest.mark.parametrize(
    ("captured", "name", "message"),
    [
        (replace(FULL, tensors={}), "a.safetensors", "nothing was captured"),
        (replace(FULL, tensors={"a": torch.arange(3)}), "a.safetensors", "a holds torch.int64"),
        (
            replace(FULL, task=replace(TASK, rounds=0)),
            "a.safetensors",
            "task.rounds: Input should be",
        ),
        (FULL, "a.pt", "name it a.safetensors"),
    ],
)
def test_what_is_no_update_is_not_written(tmp_path: Path, captured: CapturedUpdate, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        save_captured(tmp_path / name, captured)
    assert not list(tmp_path.iterdir())
