# SPDX-License-Identifier: Apache-2.0
"""A payload's settings become a typed spec, and whatever does not fit is refused in one line."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload, Task
from lightning_recon.structure import (
    CuriousAbandonHonesty,
    Digital,
    Feedback,
    LayerSpec,
    RobbingTheFed,
    SeedPaper,
    Structure,
    WaterFilling,
)
from lightning_recon.structure.layer_spec import layer_spec

STRUCTURES: dict[str, Structure] = {
    "water_filling": WaterFilling(),
    "without cancelling": WaterFilling(cancel=False, head_weights="flattened"),
    "digital": Digital(),
    "feedback": Feedback(),
    "seed paper": SeedPaper(units=8, moments=True, pooling=2),
    "robbing the fed": RobbingTheFed(units=8),
    "trap weights": CuriousAbandonHonesty(units=8),
}


@pytest.fixture
def payload(task: Callable[..., Task]) -> ServerPayload:
    return WaterFilling().payload(task(16, 2, 1e-2))


@pytest.mark.parametrize("name", STRUCTURES)
def test_what_every_structure_ships_is_a_spec(task: Callable[..., Task], name: str) -> None:
    shipped = STRUCTURES[name].payload(task(16, 1, 1e-2))
    spec = LayerSpec.of(shipped)
    for key in ("pixels", "cancel", "strength", "target_scale"):
        assert getattr(spec, key) == shipped.settings[key]
    for key in ("balanced", "detach_logits", "moments", "pooling", "blocks"):
        assert getattr(spec, key) == shipped.settings.get(key, LayerSpec.__dataclass_fields__[key].default)
    assert (spec.digital is not None) == (name == "digital")
    assert (spec.trap is not None) == (name == "trap weights")
    parts = {**(spec.digital.settings() if spec.digital else {}), **(spec.trap.settings() if spec.trap else {})}
    assert parts.items() <= shipped.settings.items()


def test_nothing_and_a_layer_of_another_class_have_no_spec() -> None:
    assert layer_spec(ServerPayload()) is None
    assert layer_spec(ServerPayload({"layer": "own.Layer", "anything": 1})) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detach_logit": True}, "'detach_logit', which the layer does not know: did you mean detach_logits?"),
        ({"colours": 3}, "'colours', which the layer does not know: known are pixels, "),
        ({"cancel": None}, "cancel: Field required"),
        ({"cancel": 1}, "cancel: Input should be a valid boolean, not '1'"),
        ({"strength": "much"}, "strength: Input should be a valid number, not 'much'"),
        ({"strength": 0.0}, "strength: Input should be greater than 0"),
        ({"strength": float("nan")}, "describe no layer"),
        ({"pooling": 0}, "pooling: Input should be greater than or equal to 1"),
        ({"blocks": 3}, "blocks is 3: give a power of two"),
        ({"trap_scaling": 0.9}, "lacks trap_deviation, without which its trap weights are unknown"),
        ({"trap_scaling": 0.9, "trap_deviation": 1.0, "trap_seed": 1}, "say once what its units measure"),
        ({"digital_code": 3}, "lacks digital_inputs, without which its digital code is unknown"),
    ],
)
def test_wrong_settings_are_refused(payload: ServerPayload, change: dict[str, Any], message: str) -> None:
    settings = {key: value for key, value in {**payload.settings, **change}.items() if value is not None}
    with pytest.raises(UserError) as error:
        LayerSpec.of(replace(payload, settings=settings))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("lacking", "extra", "message"),
    [
        ("gain", {}, "lacks the tensor gain"),
        ("directions", {}, "say once what its units measure"),
        ("", {"direction": torch.zeros(1)}, "did you mean directions?"),
        ("", {"digital_amplitudes": torch.zeros(16)}, "lacks digital_code"),
    ],
)
def test_wrong_tensors_are_refused(payload: ServerPayload, lacking: str, extra: dict[str, Any], message: str) -> None:
    tensors = {name: tensor for name, tensor in payload.tensors.items() if name != lacking}
    with pytest.raises(UserError) as error:
        LayerSpec.of(replace(payload, tensors=tensors | extra))
    assert message in str(error.value)
