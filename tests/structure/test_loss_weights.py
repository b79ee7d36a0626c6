# SPDX-License-Identifier: Apache-2.0
"""Whatever the loss and the targets, a sample's gradient reaches the structure, and the output stays as it is."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.losses import DICE_SMOOTHING, LossName, as_targets, loss_named
from lightning_recon.structure import InferenceStructure, TamperedNetwork, WaterFilling
from lightning_recon.structure.loss_weights import fixed_code, loss_code

MakeTask = Callable[..., Task]
SIDE = 6
MAPS: tuple[LossName, ...] = ("cross_entropy", "binary_cross_entropy", "dice", "dice_bce", "mean_squared_error")
VECTORS: tuple[LossName, ...] = ("binary_cross_entropy", "mean_squared_error")


def gradient_weights(loss: LossName, outputs: Tensor, targets: Tensor, signs: Tensor | None = None) -> Tensor:
    """dL/ds of each sample for outputs + s · code, by autograd, shape (B,)."""
    code, found = loss_code(loss, outputs, signs), []
    for one, weights, target in zip(outputs, code, targets, strict=True):
        step = torch.zeros((), dtype=outputs.dtype, requires_grad=True)
        value = loss_named(loss)((one + step * weights)[None], target[None])
        found.append(torch.autograd.grad(value, step)[0])
    return torch.stack(found)


def random_targets(loss: LossName, outputs: Tensor) -> Tensor:
    if loss == "cross_entropy":
        return torch.randint(outputs.shape[1], (len(outputs), *outputs.shape[2:]))
    if loss == "mean_squared_error":
        return torch.randn_like(outputs)
    return (torch.rand_like(outputs) < 0.3).to(outputs)


def random_outputs(shape: tuple[int, ...], scale: float) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64)


# --- the derived gradient weights ---


def test_of_several_labels_it_is_the_sum_of_errors_of_the_chosen_ones() -> None:
    outputs = random_outputs((50, 14), 2.0)
    targets = random_targets("binary_cross_entropy", outputs)
    code = loss_code("binary_cross_entropy", outputs)
    expected = (code * (outputs.sigmoid() - targets)).sum(1) / 14
    torch.testing.assert_close(gradient_weights("binary_cross_entropy", outputs, targets), expected)


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_a_single_label_has_the_same_weight_whether_it_is_true_or_not(target: float, scale: float) -> None:
    outputs = random_outputs((100, 9), scale)
    outputs[:, 4] = 0.0  # one label of which the network is not sure
    targets = torch.full_like(outputs, target)
    found = gradient_weights("binary_cross_entropy", outputs, targets).abs()
    torch.testing.assert_close(found, torch.ones_like(found))


def test_labels_that_are_all_unlikely_are_taken_together() -> None:
    outputs = torch.full((14, 14), -2.0, dtype=torch.float64)
    found = gradient_weights("binary_cross_entropy", outputs, torch.eye(14, dtype=torch.float64)).abs()
    none = gradient_weights("binary_cross_entropy", outputs, torch.zeros_like(outputs)).abs()
    assert 0.8 < float(torch.cat([found, none]).min()) <= float(torch.cat([found, none]).max()) < 1.3


def test_a_sure_network_leaves_a_wrong_label_at_most_thirty_times_the_weight() -> None:
    outputs = torch.full((1, 1), -9.0, dtype=torch.float64)
    right = gradient_weights("binary_cross_entropy", outputs, torch.zeros_like(outputs))
    wrong = gradient_weights("binary_cross_entropy", outputs, torch.ones_like(outputs))
    assert float(wrong.abs()) == pytest.approx(30.0)
    assert float(right.abs()) == pytest.approx(30 * torch.tensor(-9.0).exp().item(), rel=1e-3)


def test_of_values_it_is_twice_the_mean_residual() -> None:
    outputs = random_outputs((20, 3), 1.0)
    targets = random_targets("mean_squared_error", outputs)
    found = gradient_weights("mean_squared_error", outputs, targets)
    torch.testing.assert_close(found, 2 * (outputs - targets).mean(1))


@pytest.mark.parametrize("classes", [2, 21])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_of_the_class_of_every_pixel_it_is_that_of_one_pixel(classes: int, scale: float) -> None:
    outputs = random_outputs((30, classes, SIDE, SIDE), scale)
    found = gradient_weights("cross_entropy", outputs, random_targets("cross_entropy", outputs)).abs()
    assert 0.5 < float(found.min()) <= float(found.max()) < 10


def test_of_dice_it_is_the_derivative_at_one_pixel() -> None:
    outputs = random_outputs((20, 2, SIDE, SIDE), 1.0)
    targets = random_targets("dice", outputs)
    p, y = outputs.sigmoid(), targets
    whole = (2, 3)
    both = (2 * (p * y).sum(whole, keepdim=True) + DICE_SMOOTHING) / 2  # of two channels, the mean
    each = p.sum(whole, keepdim=True) + y.sum(whole, keepdim=True) + DICE_SMOOTHING
    derivative = p * (1 - p) * (2 * both - 2 * y * each) / each.square() / 2
    expected = (loss_code("dice", outputs) * derivative).sum((1, 2, 3))
    torch.testing.assert_close(gradient_weights("dice", outputs, targets), expected)
    assert bool(((loss_code("dice", outputs) != 0).sum((1, 2, 3)) == 1).all())


@pytest.mark.parametrize("loss", ["dice", "dice_bce"])
@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_masks_of_any_size_leave_a_weight_of_about_one(loss: LossName, scale: float) -> None:
    outputs = random_outputs((200, 1, SIDE, SIDE), scale)
    area = torch.linspace(0.06, 1, 200, dtype=torch.float64)
    targets = (torch.rand_like(outputs) < area[:, None, None, None]).to(outputs)
    targets[:, :, 0, 0] = 1.0  # none of them is empty
    found = gradient_weights(loss, outputs, targets).abs()
    assert 0.02 < float(found.min()) <= float(found.max()) < 10


def test_an_empty_mask_has_a_weight_because_of_the_smoothing_alone() -> None:
    outputs = random_outputs((5, 1, SIDE, SIDE), 1.0)
    empty = torch.zeros_like(outputs)
    area = outputs.sigmoid().sum((1, 2, 3)) + DICE_SMOOTHING
    expected = DICE_SMOOTHING * (area - DICE_SMOOTHING) / area.square()
    found = gradient_weights("dice", outputs, empty)
    torch.testing.assert_close(found, expected)
    assert float(found.max()) < 1e-5
    # The binary cross-entropy beside it has no such case.
    assert float(gradient_weights("dice_bce", outputs, empty).abs().min()) > 0.3


@pytest.mark.parametrize("loss", MAPS)
@pytest.mark.parametrize("scale", [0.0, 3.0, 30.0])
def test_no_weight_vanishes_or_overflows(loss: LossName, scale: float) -> None:
    outputs = random_outputs((30, 2, SIDE, SIDE), scale).float()
    found = gradient_weights(loss, outputs, random_targets(loss, outputs)).abs()
    assert bool(found.isfinite().all())
    assert float(found.min()) > 0


@pytest.mark.parametrize("loss", [name for name in MAPS if name != "mean_squared_error"])
def test_with_given_signs_an_image_keeps_the_sign_while_its_outputs_change(loss: LossName) -> None:
    first = random_outputs((40, 2, SIDE, SIDE), 2.0)
    targets, signs = random_targets(loss, first), torch.tensor([1.0, -1.0])
    weights = [gradient_weights(loss, outputs, targets, signs) for outputs in (first, random_outputs(first.shape, 2.0))]
    assert torch.equal(weights[0].sign(), weights[1].sign())
    assert bool((weights[0] != 0).all())


@pytest.mark.parametrize("loss", VECTORS)
def test_a_silent_network_leaves_every_target_a_weight(loss: LossName) -> None:
    outputs = torch.zeros(16, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)[1:]
    gradient = torch.autograd.grad(16 * loss_named(loss)(outputs[1:], targets), outputs)[0][1:]
    assert float((gradient @ fixed_code(loss, 4).double()).abs().min()) > 0.1


# --- in the layer ---


class Pixels(nn.Module):
    """Outputs for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(images)
        return outputs


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize(("loss", "maps"), [*((one, False) for one in VECTORS), *((one, True) for one in MAPS)])
def test_the_output_is_unchanged_and_the_gradient_is_the_image(
    task: MakeTask, photographs: Callable[[int], Tensor], loss: LossName, maps: bool, detached: bool
) -> None:
    images = photographs(16)[:4].double()
    network = (Pixels() if maps else nn.Sequential(nn.Flatten(), nn.Linear(768, 5))).double()
    announced = replace(task(16, 4, 0.01, "update"), num_classes=2 if maps else 5, loss=loss)
    payload = WaterFilling(units=64, directions=1, detach_logits=detached).payload(announced)
    structure = InferenceStructure(payload).double()
    model, outputs = TamperedNetwork(network, structure), network(images)
    assert torch.equal(model(images), outputs)
    targets = random_targets(loss, outputs.detach())
    torch.autograd.backward(4 * loss_named(loss)(model(images), targets))
    inputs = structure.encode(images)
    measured = inputs @ structure.matrix.detach().T
    excited = ((structure.lower <= measured) & (measured < structure.upper)).double()
    weights = structure.spec.strength * gradient_weights(loss, outputs.detach(), targets)
    expected = torch.einsum("b,bk,bm->km", weights, excited, inputs)
    assert structure.matrix.grad is not None
    torch.testing.assert_close(structure.matrix.grad, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_the_payload_of_the_cross_entropy_is_that_of_earlier_versions(task: MakeTask) -> None:
    assert "loss" not in WaterFilling().payload(task(16, 4, 0.01)).settings


# --- targets ---


def test_class_indices_become_the_targets_that_a_loss_needs() -> None:
    labels = torch.tensor([2, 0])
    assert as_targets("cross_entropy", labels, 3) is labels
    assert as_targets("mean_squared_error", labels, 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    masks = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert as_targets("cross_entropy", masks, 2).tolist() == [[[0, 1]]]
    assert as_targets("dice", masks, 1) is masks


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(4, 3), "3 targets for an image, and the network 2 outputs: set num_classes 3"),
        (torch.zeros(4), "1 target for an image, and the network 2 outputs: set num_classes 1"),
        (
            torch.zeros(4, 1, 8, 8),
            "targets of 1 channel for an image, and the network 2 outputs: set num_classes 1",
        ),
    ],
)
def test_the_network_has_an_output_for_every_target_or_channel_of_a_mask(labels: Tensor, words: str) -> None:
    with pytest.raises(UserError, match=f"^the data have {words}$"):
        as_targets("binary_cross_entropy", labels, 2)


def test_masks_need_an_axis_of_channels() -> None:
    with pytest.raises(UserError, match=r"make them \(4, 1, 8, 8\)$"):
        as_targets("dice", torch.zeros(4, 8, 8), 1)
