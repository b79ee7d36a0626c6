# SPDX-License-Identifier: Apache-2.0
"""The structure leaves the network's output untouched to the last bit, and its gradient is the image."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torchvision.models import resnet18

from lightning_recon.client.gradients import mean_gradient, per_sample_gradients
from lightning_recon.exchange import ServerPayload, Task
from lightning_recon.networks.construction import ConvNet
from lightning_recon.structure import InferenceStructure, SeedPaper, TamperedNetwork, WaterFilling
from lightning_recon.structure.coding.leaked_moments import moments
from lightning_recon.structure.head_weights import balanced_code

SIZE, BATCH, CLASSES = 32, 4, 10
LABELS = torch.tensor([0, 3, 7, 7])
MakeTask = Callable[..., Task]
NETWORKS = {"resnet18": lambda: resnet18(num_classes=CLASSES), "convnet": lambda: ConvNet(CLASSES)}


def theory(model: TamperedNetwork, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """δ of each picture's own loss, shape (B,), which units it excites, shape (B, K), and its inputs e(x)."""
    structure = model.structure
    inputs = structure.encode(images)
    measured = inputs @ structure.weight.detach().T
    excited = (structure.lower <= measured) & (measured < structure.upper)
    with torch.no_grad():
        logits = model(images)
    share = logits.softmax(dim=1) - F.one_hot(labels, CLASSES)
    code = balanced_code(logits) if structure.spec.balanced else structure.code.to(share)
    return structure.spec.strength * (share * code).sum(dim=1), excited.to(inputs), inputs


def water_filled(task: Task, head_weights: Literal["balanced", "fixed"] = "balanced") -> ServerPayload:
    return WaterFilling(units=24, directions=3, nulls=16, head_weights=head_weights).payload(task)


def with_open_ends(payload: ServerPayload, cancel: bool, strength: float) -> ServerPayload:
    """A small structure whose copy can be left out: the bounds must be finite then."""
    bounds = {name: payload.tensors[name].clamp(-1e3, 1e3) for name in ("lower", "upper")}
    settings = {**payload.settings, "cancel": cancel, "strength": strength}
    return replace(payload, settings=settings, tensors={**payload.tensors, **bounds})


@pytest.fixture
def images(photographs: Callable[[int], Tensor]) -> Tensor:
    return photographs(SIZE)[:BATCH]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_output_changes_by_exactly_nothing(
    task: MakeTask, images: Tensor, network: str, dtype: torch.dtype, training: bool
) -> None:
    target = NETWORKS[network]().to(dtype).train(training)
    model = TamperedNetwork(target, InferenceStructure(water_filled(task(SIZE, BATCH, 1e-3))).to(dtype)).train(training)
    images = images.to(dtype)
    assert float((model(images) - target(images)).detach().abs().max()) == 0
    # Nothing the pictures contain makes a difference, however far from a photograph they are.
    wild = torch.cat([100 * torch.randn_like(images), torch.zeros_like(images), torch.ones_like(images)])
    assert float(model.structure(wild).detach().abs().max()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attached_logits_leave_the_target_network_its_gradient(
    task: MakeTask, images: Tensor, dtype: torch.dtype
) -> None:
    target, payload = NETWORKS["convnet"]().to(dtype), water_filled(task(SIZE, BATCH, 1e-3))
    # As recorded before there was the setting.
    payload = replace(payload, settings={k: v for k, v in payload.settings.items() if k != "detach_logits"})
    model = TamperedNetwork(target, InferenceStructure(payload).to(dtype))
    plain, _ = mean_gradient(target, F.cross_entropy, images.to(dtype), LABELS)
    tampered, _ = mean_gradient(model, F.cross_entropy, images.to(dtype), LABELS)
    assert all(torch.equal(tampered[f"network.{name}"], gradient) for name, gradient in plain.items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
def test_detached_logits_leave_it_exactly_none(task: MakeTask, images: Tensor, network: str, training: bool) -> None:
    target, payload = NETWORKS[network](), water_filled(task(SIZE, BATCH, 1e-3))
    attached = replace(payload, settings={**payload.settings, "detach_logits": False})
    structure, usual = InferenceStructure(payload), InferenceStructure(attached)
    expected, _ = mean_gradient(TamperedNetwork(target, usual).train(training), F.cross_entropy, images, LABELS)
    for zeros in (True, False):
        model = TamperedNetwork(target, structure, zeros).train(training)
        model.zero_grad()
        F.cross_entropy(model(images), LABELS).backward()
        for name, parameter in target.named_parameters():
            # Frameworks may wait for a gradient of every parameter.
            assert (parameter.grad is not None) == zeros, name
            assert parameter.grad is None or not parameter.grad.any()
        assert structure.weight.grad is not None
        assert torch.equal(structure.weight.grad, expected["structure.weight"])
    single = per_sample_gradients(TamperedNetwork(target.eval(), structure).eval(), F.cross_entropy, images, LABELS)
    assert not any(gradient.any() for name, gradient in single.items() if name.startswith("network."))
    assert single["structure.weight"].any()


def test_detached_logits_keep_even_infinite_outputs(task: MakeTask, images: Tensor) -> None:
    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, pictures: Tensor) -> Tensor:
            steps: Tensor = self.scale * torch.linspace(-1, 1, CLASSES).expand(len(pictures), CLASSES)
            return torch.where(steps > 0.9, torch.inf, torch.where(steps < -0.9, -torch.inf, steps))

    payload = water_filled(task(SIZE, BATCH, 1e-3), "fixed")
    target = Overflowing()
    assert torch.equal(TamperedNetwork(target, InferenceStructure(payload))(images), target(images))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("head_weights", ["balanced", "fixed"])
def test_the_weight_gradient_is_delta_times_the_inputs(
    task: MakeTask, images: Tensor, network: str, training: bool, head_weights: Literal["balanced", "fixed"]
) -> None:
    target = NETWORKS[network]().double().train(training)
    structure = InferenceStructure(water_filled(task(SIZE, BATCH, 1e-3), head_weights)).double()
    model = TamperedNetwork(target, structure).train(training)
    images = images.double()
    delta, excited, inputs = theory(model, images, LABELS)
    assert float(delta.abs().min()) > (0.8 if head_weights == "balanced" else 0.05) * structure.spec.strength
    assert excited.sum(dim=1).tolist() == [3.0] * BATCH
    found, _ = mean_gradient(model, F.cross_entropy, images, LABELS)
    expected = torch.einsum("b,bk,bm->km", delta, excited, inputs) / BATCH
    torch.testing.assert_close(found["structure.weight"], expected, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_per_sample_gradients_under_torch_func(task: MakeTask, images: Tensor, dtype: torch.dtype) -> None:
    model = TamperedNetwork(
        NETWORKS["convnet"]().to(dtype), InferenceStructure(water_filled(task(SIZE, BATCH, 1e-3))).to(dtype)
    )
    images = images.to(dtype)
    delta, excited, inputs = theory(model, images, LABELS)
    found = per_sample_gradients(model, F.cross_entropy, images, LABELS)["structure.weight"]
    expected = torch.einsum("b,bk,bm->bkm", delta, excited, inputs)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    parameters = {name: parameter.detach() for name, parameter in model.structure.named_parameters()}
    silent = vmap(lambda image: functional_call(model.structure, parameters, (image[None],)))(images)
    assert float(silent.abs().max()) == 0


def test_an_undecided_network_gives_every_victim_the_same_gradient_weight(task: MakeTask, images: Tensor) -> None:
    class Undecided(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), CLASSES)

    model = TamperedNetwork(Undecided(), InferenceStructure(water_filled(task(SIZE, BATCH, 1e-3))))
    delta, _, _ = theory(model, images, LABELS)
    torch.testing.assert_close(delta.abs(), torch.full((BATCH,), model.structure.spec.strength))


def test_inputs_are_scaled_coefficients_then_pilot_then_nulls(task: MakeTask, images: Tensor) -> None:
    structure = InferenceStructure(water_filled(task(SIZE, BATCH, 1e-2)))
    inputs = structure.encode(images)
    assert torch.equal(inputs[:, -16:], torch.zeros(BATCH, 16))
    assert inputs[:, -17].tolist() == pytest.approx([math.sqrt(0.08)] * BATCH)
    # Designed for norm 1 on average; photographs scatter around it.
    assert 0.5 < float(inputs.square().sum(dim=1).mean()) < 2


def test_the_pilot_and_the_nulls_are_not_measured(task: MakeTask) -> None:
    structure = InferenceStructure(water_filled(task(SIZE, BATCH, 1e-2)))
    assert not bool(structure.weight[:, -17:].any())


def test_without_a_copy_autograd_agrees_with_finite_differences(task: MakeTask, images: Tensor) -> None:
    payload = WaterFilling(units=4, directions=1, nulls=1).payload(task(8, 2, 0.3))
    structure = InferenceStructure(with_open_ends(payload, cancel=False, strength=0.5)).double()
    small = F.avg_pool2d(images[:2].double(), 4)

    def loss(weight: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(structure, {"weight": weight}, (small,)), LABELS[:2])

    weight = structure.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (weight,), eps=1e-7, atol=1e-6)
    assert bool(torch.autograd.grad(loss(weight), weight)[0].any())


def test_the_copy_takes_nothing_from_the_gradient_but_its_effect_on_the_output(task: MakeTask, images: Tensor) -> None:
    gradients = []
    for cancel in (True, False):
        payload = with_open_ends(water_filled(task(SIZE, BATCH, 1e-2)), cancel, strength=1e-9)
        model = TamperedNetwork(NETWORKS["convnet"]().double(), InferenceStructure(payload).double())
        torch.manual_seed(1)
        for parameter in model.network.parameters():
            nn.init.normal_(parameter, std=0.05)
        gradients.append(mean_gradient(model, F.cross_entropy, images.double(), LABELS)[0]["structure.weight"])
    # At this strength even the structure without a copy hardly moves the logits.
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-16)


@pytest.mark.parametrize(("with_moments", "pooling"), [(False, 1), (True, 1), (True, 2)])
def test_the_seed_papers_gradient_is_its_theory_and_not_zero(
    task: MakeTask, images: Tensor, with_moments: bool, pooling: int
) -> None:
    payload = SeedPaper(units=64, moments=with_moments, pooling=pooling).payload(task(SIZE, BATCH, 1e-3))
    model = TamperedNetwork(NETWORKS["convnet"]().double(), InferenceStructure(payload).double())
    assert model.structure.bias is not None
    images = images.double()
    delta, excited, inputs = theory(model, images, LABELS)
    assert excited.sum(dim=1).tolist() == [1.0] * BATCH
    assert float(delta.abs().min()) > 0.3
    found, _ = mean_gradient(model, F.cross_entropy, images, LABELS)
    rows = torch.einsum("b,bk->kb", delta, excited) / BATCH
    torch.testing.assert_close(found["structure.weight"], rows @ inputs, rtol=1e-10, atol=1e-12)
    copies = (torch.arange(500) < 100).double()
    torch.testing.assert_close(found["structure.bias"], rows.sum(dim=1)[:, None] * copies, rtol=1e-10, atol=1e-12)
    # The target network is silenced, the zero channels' gradients are exactly zero, all else is the image.
    assert not any(bool(gradient.any()) for name, gradient in found.items() if name.startswith("network."))
    pixels = 3 * (SIZE // pooling) ** 2
    assert not bool(found["structure.weight"][:, -pixels:].any())
    assert torch.equal(inputs[:, :pixels], F.avg_pool2d(images, pooling).flatten(1))
    if with_moments:
        assert torch.equal(inputs[:, pixels:-pixels], moments(images).flatten(1))


def test_moments_are_those_of_each_channel() -> None:
    image = torch.zeros(1, 3, 4, 4)
    image[0, 1, :, 2:] = 1.0
    found = moments(image)[0]
    assert found[0].tolist() == pytest.approx([0, 0.5, 0])
    assert found[1].tolist() == pytest.approx([0, 10 * 4 / 15, 0])
    # One edge of height 1 crosses four rows.
    assert found[2].tolist() == pytest.approx([0, 1e-3 * 4, 0])
