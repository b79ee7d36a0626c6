# SPDX-License-Identifier: Apache-2.0
"""Faults of a captured update are reported before it is attacked, with the likely cause."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_recon.callbacks.capture_check import known_network
from lightning_recon.capture import CapturedUpdate, Declared, load_captured
from lightning_recon.capture.sensitivity import remarks_of
from lightning_recon.capture.validator import check_update
from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload, Task
from lightning_recon.structure import WaterFilling

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def good(single: Path) -> CapturedUpdate:
    return load_captured(single / "update-d0.safetensors")


@pytest.fixture(scope="module")
def shapes(task: Task) -> dict[str, tuple[int, ...]]:
    network = known_network(task)
    assert network is not None
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


def without(tensors: Tensors, name: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key != name}


def with_nan(tensors: Tensors) -> Tensors:
    spoilt = tensors["structure.weight"].clone()
    spoilt[3, 5] = torch.nan
    return tensors | {"structure.weight": spoilt}


BIAS = "network.classifier.bias"


def test_a_good_update_passes(good: CapturedUpdate, payload: ServerPayload, shapes: dict[str, tuple[int, ...]]) -> None:
    assert check_update(good, payload, shapes).gradient.keys() == good.tensors.keys()
    assert check_update(good, payload, None).gradient.keys() == good.tensors.keys()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: without(t, BIAS), r"lacks network.classifier.bias, shape \(16,\): it has 8 of 9 parameter tensors"),
        (lambda t: without(t, "structure.weight"), "holds no structure tensors.*named_parameters|server's model"),
        (lambda t: {f"_module.{name}": tensor for name, tensor in t.items()}, "wrapper's prefix such as _module."),
        (lambda t: t | {BIAS: torch.zeros(7)}, r"has shape \(7,\) in the update and \(16,\)"),
        (lambda t: t | {"structure.weight": t["structure.weight"].T}, "trained another model"),
        (lambda t: t | {"network.extra": torch.zeros(2)}, "has network.extra, which is not in the server's model"),
        (lambda t: t | {"network.bn.running_mean": torch.zeros(2)}, "is a buffer of batch normalization"),
        (with_nan, "structure.weight holds NaN or infinity"),
        (lambda t: t | {BIAS: torch.full((16,), torch.inf)}, "bias holds NaN or infinity"),
        (lambda t: t | {BIAS: torch.zeros(16, dtype=torch.int8)}, "holds int8, but gradients are floating point"),
    ],
)
def test_wrong_tensors_are_named(
    good: CapturedUpdate,
    payload: ServerPayload,
    shapes: dict[str, tuple[int, ...]],
    spoil: Callable[[Tensors], Tensors],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        check_update(replace(good, tensors=spoil(good.tensors)), payload, shapes)


def test_of_an_unknown_network_only_the_structure_is_checked(good: CapturedUpdate, payload: ServerPayload) -> None:
    check_update(replace(good, tensors=without(good.tensors, BIAS)), payload, None)
    with pytest.raises(UserError, match="holds no structure tensors"):
        check_update(replace(good, tensors=without(good.tensors, "structure.weight")), payload, None)


@pytest.mark.parametrize("name", ["os.system", "no_such_network"])
def test_a_name_in_a_file_runs_no_code(task: Task, name: str) -> None:
    assert known_network(replace(task, network=name)) is None


def test_another_payload_is_refused(good: CapturedUpdate, task: Task) -> None:
    other = WaterFilling(pilot_power=0.3).payload(task)
    with pytest.raises(UserError, match="to the settings with which the payload was made"):
        check_update(good, other, None)


def test_a_wrong_number_of_parameter_tensors_is_refused(
    good: CapturedUpdate, payload: ServerPayload, shapes: dict[str, tuple[int, ...]]
) -> None:
    wrong = replace(good, task=replace(good.task, parameter_tensors=5))
    with pytest.raises(UserError, match="parameter_tensors is 5, but the network has 8"):
        check_update(wrong, payload, shapes)


def scaled(good: CapturedUpdate, factor: float, **changes: Any) -> CapturedUpdate:  # noqa: ANN401
    return replace(good, tensors={name: factor * tensor for name, tensor in good.tensors.items()}, **changes)


@pytest.mark.parametrize(
    ("factor", "changes", "message"),
    [
        (1.0, {"convention": "gradient_sum"}, "z = 0.0025.*batch size 4, so the convention is likely gradient_mean"),
        (4.0, {}, "z = 0.04.*batch size 4, so the convention is likely gradient_sum"),
        (2.294, {}, "z = 0.023.*likely a momentum buffer"),
        (0.1, {}, "likely a running mean with weight 0.1"),
        (1.5, {}, "z = 0.015.*another clipping norm, a learning rate, or momentum"),
        (0.3, {"declared": Declared(sensitivity=3.0)}, "the noise is scaled by the sensitivity 3, not the clip 10"),
        (0.0, {}, "standard deviation 0, but z.C = 0.1 is announced"),
    ],
)
def test_noise_that_is_not_the_announced_one_is_explained(
    good: CapturedUpdate, payload: ServerPayload, factor: float, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_update(scaled(good, factor, **changes), payload, None)


def test_noise_within_five_percent_passes_and_the_sign_cannot_be_told(
    good: CapturedUpdate, payload: ServerPayload
) -> None:
    check_update(scaled(good, 1.03), payload, None)
    check_update(scaled(good, -1.0), payload, None)
    with pytest.raises(UserError, match="is announced"):
        check_update(scaled(good, 1.08), payload, None)


def test_noise_that_was_not_announced_is_refused(good: CapturedUpdate, payload: ServerPayload) -> None:
    silent = replace(good, task=replace(good.task, noise_multiplier=0.0))
    with pytest.raises(UserError, match="announce the noise multiplier that the client really used"):
        check_update(silent, payload, None)


@pytest.mark.parametrize(("field", "message"), [("rounds", "over 4 rounds"), ("clients", "over 4 clients")])
def test_an_average_is_recognised(good: CapturedUpdate, payload: ServerPayload, field: str, message: str) -> None:
    mean = scaled(good, 0.5, task=replace(good.task, **{field: 4}))
    with pytest.raises(UserError, match=message):
        check_update(mean, payload, None)


def test_a_sensitivity_that_does_not_fit_is_remarked_on(good: CapturedUpdate) -> None:
    assert remarks_of(replace(good, declared=None)) == []
    assert remarks_of(replace(good, declared=Declared(epsilon=8.0))) == []
    # Two updates clipped to 10 differ by up to 20: local differential privacy takes that, and no more.
    for sensitivity, parts in {20.0: [], 10.0: ["needs sensitivity 20"], 5.0: ["2 times too small", "20"]}.items():
        remarks = remarks_of(replace(good, declared=Declared(sensitivity=sensitivity)))
        assert len(remarks) == len(parts)
        assert all(part in remark for part, remark in zip(parts, remarks, strict=True))
