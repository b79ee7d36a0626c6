# SPDX-License-Identifier: Apache-2.0
"""Arrays that come without names, as from Flower, are named after the model's tensors or refused."""

import numpy as np
import pytest

from lightning_recon.capture import name_arrays
from lightning_recon.errors import UserError

SHAPES = {"conv.weight": (4, 3), "conv.bias": (4,), "norm.running_mean": (5,)}


def test_arrays_get_the_names_of_the_state_dict() -> None:
    arrays = [np.full(shape, index, dtype=np.float32) for index, shape in enumerate(SHAPES.values())]
    named = name_arrays(arrays, SHAPES)
    assert list(named) == list(SHAPES)
    assert all(bool((tensor == index).all()) for index, tensor in enumerate(named.values()))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([1, 0, 2], r"array 0 has shape \(4,\), .* is conv.weight with \(4, 3\); it would fit conv.bias"),
        ([0, 1], r"2 arrays for the model's 3 tensors \(1 of them are buffers of batch normalization\)"),
        ([0, 1, 2, 2], "4 arrays for the model's 3 tensors"),
    ],
)
def test_arrays_out_of_order_are_named(order: list[int], message: str) -> None:
    arrays = [np.zeros(shape, dtype=np.float32) for shape in SHAPES.values()]
    with pytest.raises(UserError, match=message):
        name_arrays([arrays[index] for index in order], SHAPES)


def test_an_array_that_fits_nowhere_is_named() -> None:
    with pytest.raises(UserError, match="it fits no tensor of the model"):
        name_arrays([np.zeros((9, 9), dtype=np.float32)], SHAPES)
