# SPDX-License-Identifier: Apache-2.0
"""Privacy settings, and clipping against closed forms."""

import math
from typing import Any

import pytest
import torch

from lightning_recon.errors import UserError
from lightning_recon.privacy.clipping import Clip, tensor_norms
from lightning_recon.privacy.parameters import Privacy


def gradients() -> dict[str, torch.Tensor]:
    return {"a": torch.full((2, 2), 3.0), "b": torch.full((4,), 4.0)}  # norms 6 and 8, together 10


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"max_grad_norm": None, "noise_multiplier": 0.1}, "max_grad_norm"),
        ({"max_grad_norm": math.inf, "noise_multiplier": 0.1}, "max_grad_norm"),
        ({"noise_multiplier": -0.1}, "noise_multiplier"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"max_grad_norm": math.nan}, "max_grad_norm"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"rounds": 0}, "rounds"),
        ({"per_layer": "no"}, "per_layer"),
    ],
)
def test_bad_settings_name_their_argument_and_their_option(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named) as raised:
        Privacy(**flags)
    assert "--" not in str(raised.value)
    assert f"--model.client.privacy.{named} " in raised.value.for_command_line
    assert "\n" not in raised.value.for_command_line


def test_infinite_clip_is_no_clip() -> None:
    assert Privacy(max_grad_norm=math.inf) == Privacy(max_grad_norm=None)
    assert Privacy(max_grad_norm=None).noise_std == 0.0
    assert Privacy(max_grad_norm=10.0, noise_multiplier=2e-4).noise_std == pytest.approx(2e-3)


def test_clip_factor_in_closed_form() -> None:
    assert Clip(5.0, per_layer=False).factors(tensor_norms(gradients())) == pytest.approx({"a": 0.5, "b": 0.5})
    assert Clip(10.0, per_layer=False).factors(tensor_norms(gradients())) == {"a": 1.0, "b": 1.0}
    assert Clip(None, per_layer=True).factors(tensor_norms(gradients())) == {"a": 1.0, "b": 1.0}
    bound = 9.0 / math.sqrt(2)  # between the two norms: only "b" is shrunk
    assert Clip(9.0, per_layer=True).factors(tensor_norms(gradients())) == pytest.approx({"a": 1.0, "b": bound / 8})
    zero = {"a": torch.zeros(3)}
    assert Clip(1.0, per_layer=False).factors(tensor_norms(zero)) == {"a": 1.0}


def test_clip_bounds_norms_and_keeps_directions() -> None:
    clipped = Clip(5.0, per_layer=False)(gradients())
    assert math.hypot(*tensor_norms(clipped).values()) == pytest.approx(5.0)
    assert torch.allclose(clipped["b"], torch.full((4,), 2.0))
    each = tensor_norms(Clip(5.0, per_layer=True)(gradients()))
    assert list(each.values()) == pytest.approx([5.0 / math.sqrt(2)] * 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_refused(bad: float) -> None:
    broken = gradients()
    broken["b"][1] = bad
    with pytest.raises(UserError, match="gradient of b holds NaN"):
        Clip(5.0, per_layer=False)(broken)


def test_norm_of_many_numbers_is_exact() -> None:
    # A running float32 sum of ones stops growing at 2^24 = 16 777 216.
    ones = torch.ones(1).expand(20_000_000)
    assert tensor_norms({"a": ones})["a"] == pytest.approx(math.sqrt(20_000_000), rel=1e-7)
