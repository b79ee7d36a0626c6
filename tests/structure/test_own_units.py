# SPDX-License-Identifier: Apache-2.0
"""Each image of a client gets a unit of its own, in every mini-batch and every epoch."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.structure import Digital
from lightning_recon.structure.coding.own_units import own_units
from lightning_recon.structure.layer import InferenceStructure
from lightning_recon.structure.layer_spec import LayerSpec
from tests.structure.test_signs import CLASSES, SIDE, adam, announced

Photographs = Callable[[int], Tensor]


def test_no_two_images_share_a_unit() -> None:
    measured = torch.tensor([0.3, -1.0, 0.31, 0.29, 5.0])
    owners = torch.full((6,), torch.nan)
    units = own_units(measured, torch.tensor([5, 2, 5, 5, 2]), owners)
    assert sorted(units.tolist()) == [0, 1, 2, 3, 5]
    assert units[1] == 2  # the first in the order of measurements keeps the unit that it wants
    assert units[3] == 5
    torch.testing.assert_close(owners[units], measured)


def test_an_image_comes_back_to_its_unit_whatever_else_is_in_the_mini_batch() -> None:
    owners = torch.full((4,), torch.nan)
    first = own_units(torch.tensor([1.0, 2.0]), torch.tensor([3, 3]), owners)
    second = own_units(torch.tensor([3.0, 2.0 + 1e-6]), torch.tensor([3, 3]), owners)
    assert first.tolist() == [3, 0]
    assert second.tolist() == [1, 0]


def test_a_table_that_is_full_shares_units() -> None:
    owners = torch.full((1,), torch.nan)
    assert own_units(torch.tensor([1.0, 2.0]), torch.tensor([0, 0]), owners).tolist() == [0, 0]


@pytest.fixture
def layer() -> InferenceStructure:
    return InferenceStructure(Digital(upload_limit=3_000_000).payload(announced(4, 1e-4, local=adam())))


def excited(layer: InferenceStructure, images: Tensor) -> Tensor:
    layer.zero_grad()
    F.cross_entropy(layer(images, torch.zeros(len(images), CLASSES)), torch.arange(len(images)) % CLASSES).backward()  # type: ignore[no-untyped-call]
    gradient = layer.matrix.grad
    assert gradient is not None
    return (gradient != 0).any(dim=1)


def test_images_that_measure_alike_have_rows_of_their_own(layer: InferenceStructure, photographs: Photographs) -> None:
    image = photographs(SIDE)[0]
    alike = torch.stack([image, image.roll(1, dims=2), image.flip(1), image.flip(2)])
    layer.lower.fill_(-torch.inf)  # all images would excite all units
    assert int(excited(layer.eval(), alike).sum()) == 4
    assert bool(layer.owners.isnan().all())  # nothing is remembered in evaluation mode
    rows = excited(layer.train(), alike[:2]) | excited(layer, alike[2:])
    assert int(rows.sum()) == 4
    assert torch.equal(rows, excited(layer, alike.flip(0)))


@pytest.mark.parametrize("change", [{"granularity": "sample"}, {"clients": 2, "aggregated": 2}])
def test_a_layer_that_sees_other_images_than_the_update_holds_gives_no_units(change: dict[str, object]) -> None:
    task: Task = replace(announced(4, 1e-5, local=adam()), **change)  # type: ignore[arg-type]
    assert not LayerSpec.of(Digital(upload_limit=3_000_000).payload(task)).own_units


def test_units_of_several_directions_are_refused() -> None:
    payload = Digital(upload_limit=3_000_000).payload(announced(4, 1e-4, local=adam()))
    directions = payload.tensors["directions"].repeat(2, 1)
    units = torch.arange(len(payload.tensors["unit_direction"])) % 2
    tensors = {**payload.tensors, "directions": directions, "unit_direction": units}
    with pytest.raises(UserError, match="own_units needs cancel, and units that measure one direction"):
        LayerSpec.of(replace(payload, tensors=tensors))
