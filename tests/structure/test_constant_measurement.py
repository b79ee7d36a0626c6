# SPDX-License-Identifier: Apache-2.0
"""However a client trains, the structure outputs exactly zero, and each image keeps its own rows."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import lightning_recon.capture.opacus  # noqa: F401 - registers the gradient of the structure
from lightning_recon.client.gradients import mean_gradient
from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload, Task
from lightning_recon.structure import InferenceStructure, TamperedNetwork, WaterFilling

SIZE, BATCH, CLASSES = 16, 4, 10
LABELS = torch.tensor([0, 3, 7, 7])
MakeTask = Callable[..., Task]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}


class Undecided(nn.Module):
    """A network that a structure with attached logits can train, too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIZE**2, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


@pytest.fixture
def images(photographs: Callable[[int], Tensor]) -> Tensor:
    return photographs(SIZE)[:BATCH]


def payload_of(task: Task, zero: bool = True, detach: bool = True) -> ServerPayload:
    payload = WaterFilling(units=24, directions=3, nulls=8).payload(task)
    return replace(payload, settings={**payload.settings, "zero_weight": zero, "detach_logits": detach})


def variants(task: MakeTask) -> dict[str, ServerPayload]:
    """Structures with one tensor and with several, with offsets, and with a second weight over constants."""
    plain = payload_of(task(SIZE, BATCH, 1e-3))
    units, inputs = len(plain.tensors["lower"]), plain.tensors["directions"].shape[1]
    offset = 0.1 * torch.randn(units, inputs, generator=torch.Generator().manual_seed(1))
    return {
        "whole": plain,
        "blocks": payload_of(task(SIZE, BATCH, 1e-3, per_layer=True)),
        "offset": replace(plain, tensors={**plain.tensors, "offset": offset}),
        "bias": replace(plain, tensors={**plain.tensors, "bias_constants": torch.ones(4)}),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_output_is_exactly_zero_at_every_local_step(
    task: MakeTask, images: Tensor, optimizer: str, dtype: torch.dtype
) -> None:
    for name, payload in variants(task).items():
        attached = replace(payload, settings={**payload.settings, "detach_logits": False})
        structure = InferenceStructure(attached).to(dtype)
        model = TamperedNetwork(Undecided().to(dtype), structure)
        steps, pictures = OPTIMIZERS[optimizer](model.parameters()), images.to(dtype)
        for _ in range(4):
            steps.zero_grad()
            F.cross_entropy(model(pictures), LABELS).backward()
            steps.step()
            assert bool(structure.matrix.any()), name
            assert not structure(torch.cat([pictures, 100 * pictures])).any(), name
            assert torch.equal(model(pictures), model.network(pictures)), name


def test_images_keep_their_rows_while_the_weight_is_trained(task: MakeTask, images: Tensor) -> None:
    # Also where the weight does not start at zero. A structure that measures with its trained weight fails here.
    for name, payload in variants(task).items():
        for zero in (True, False):
            shipped = replace(payload, settings={**payload.settings, "zero_weight": zero})
            model = TamperedNetwork(Undecided(), InferenceStructure(shipped)).double()
            before, _ = mean_gradient(model, F.cross_entropy, images.double(), LABELS)
            for parameter in model.structure.parameters():
                parameter.data.add_(torch.randn_like(parameter) * 1e3)
            after, _ = mean_gradient(model, F.cross_entropy, images.double(), LABELS)
            for key, gradient in before.items():
                assert torch.equal(gradient, after[key]), (name, key)


def test_the_gradient_does_not_depend_on_where_the_weight_starts(task: MakeTask, images: Tensor) -> None:
    gradients = []
    for zero in (True, False):
        structure = InferenceStructure(payload_of(task(SIZE, BATCH, 1e-3), zero))
        assert bool(structure.weight.any()) != zero
        torch.manual_seed(0)
        gradients.append(mean_gradient(TamperedNetwork(Undecided(), structure), F.cross_entropy, images, LABELS)[0])
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


def test_weight_decay_does_nothing_to_a_row_that_no_image_reaches(task: MakeTask, images: Tensor) -> None:
    structure = InferenceStructure(payload_of(task(SIZE, BATCH, 1e-3)))
    model = TamperedNetwork(Undecided(), structure)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images), LABELS).backward()
        optimizer.step()
    reached = structure.weight.grad.any(dim=1)
    assert 0 < int(reached.sum()) < len(reached)
    assert not structure.weight[~reached].any()


def test_several_steps_add_up_to_the_sum_of_their_gradients(task: MakeTask, images: Tensor) -> None:
    model = TamperedNetwork(Undecided(), InferenceStructure(payload_of(task(SIZE, BATCH, 1e-3)))).double()
    images, total = images.double(), 0.0
    for picture, label in zip(images.split(1), LABELS.split(1), strict=True):
        total = total + mean_gradient(model, F.cross_entropy, picture, label)[0]["structure.weight"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for picture, label in zip(images.split(1), LABELS.split(1), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(picture), label).backward()
        optimizer.step()
    torch.testing.assert_close(-model.structure.weight / 0.1, total, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_opacus_and_torch_func_take_the_layer_while_it_is_trained(task: MakeTask, images: Tensor) -> None:
    model = TamperedNetwork(Undecided(), InferenceStructure(payload_of(task(SIZE, BATCH, 1e-3))))
    model.structure.weight.data.add_(torch.randn_like(model.structure.weight))
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    expected = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, LABELS)["structure.weight"]
    wrapped = GradSampleModule(model, strict=False)
    F.cross_entropy(wrapped(images), LABELS).backward()
    torch.testing.assert_close(model.structure.weight.grad_sample, expected)


def test_a_weight_that_measures_cannot_start_at_zero(task: MakeTask) -> None:
    payload = payload_of(task(SIZE, BATCH, 1e-3))
    with pytest.raises(UserError, match="zero_weight needs cancel"):
        InferenceStructure(replace(payload, settings={**payload.settings, "cancel": False}))
