# SPDX-License-Identifier: Apache-2.0
"""Head weights that give all images about the same gradient weight, however sure the network is of their class."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.exchange import Task
from lightning_recon.structure import InferenceStructure, TamperedNetwork, WaterFilling
from lightning_recon.structure.head_weights import balanced_code, class_code

Photographs = Callable[[int], Tensor]
MakeTask = Callable[..., Task]


def gradient_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient that reaches a unit of each image, shape (B,)."""
    code = balanced_code(logits)
    return (torch.softmax(logits, dim=1) * code).sum(dim=1) - code.gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_the_class_code_is_balanced(classes: int) -> None:
    code = class_code(classes)
    assert code.abs().tolist() == [1.0] * classes
    assert float(code.sum()) == 0
    # An undecided network then lends every label the same gradient_weight, |δ| = 1.
    assert bool(((code.mean() - code).abs() == 1).all())


def test_an_odd_number_of_classes_leaves_one_over() -> None:
    assert abs(float(class_code(101).sum())) == 1
    assert torch.equal(class_code(101), class_code(101))


def test_an_undecided_network_gives_every_label_the_gradient_weight_one() -> None:
    logits = torch.zeros(10, 10, dtype=torch.float64)
    torch.testing.assert_close(gradient_weights(logits, torch.arange(10)).abs(), torch.ones(10, dtype=torch.float64))


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.96])
def test_under_a_confident_network_misclassified_images_have_more_weight_than_correct_ones(confidence: float) -> None:
    probability = torch.full((1, 10), (1 - confidence) / 9, dtype=torch.float64)
    probability[0, 3] = confidence
    logits = probability.log().expand(10, 10)
    magnitudes = gradient_weights(logits, torch.arange(10)).abs()
    expected = torch.full((10,), confidence / (1 - confidence), dtype=torch.float64)
    expected[3] = 1.0
    torch.testing.assert_close(magnitudes, expected)


@pytest.mark.parametrize(("classes", "largest"), [(10, 1.05), (20, 1.05), (100, 1.05), (1000, 1.01)])
def test_an_undecided_network_gives_all_labels_nearly_the_same_weight(classes: int, largest: float) -> None:
    logits = 0.3 * torch.randn(200, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    code = balanced_code(logits)
    torch.testing.assert_close((torch.softmax(logits, dim=1) * code).sum(dim=1), torch.zeros(200, dtype=torch.float64))
    ratio = code.abs().amax(dim=1) / code.abs().amin(dim=1)
    assert float(ratio.quantile(0.98)) < largest


@pytest.mark.parametrize("classes", [2, 3, 10, 30])
def test_a_network_that_excludes_all_classes_but_one_gives_none_of_them_the_weight_zero(classes: int) -> None:
    logits = torch.full((1, classes), -300.0)
    logits[0, 1] = 0.0
    code = balanced_code(logits)[0]
    assert float(code[1]) == pytest.approx(0, abs=1e-6)
    assert code[torch.arange(classes) != 1].tolist() == [-30.0] * (classes - 1)


def test_no_weight_exceeds_the_limit_however_sure_the_network_is() -> None:
    logits = torch.zeros(10, 10, dtype=torch.float64)
    logits[:, 3] = 15.0
    magnitudes = gradient_weights(logits, torch.arange(10)).abs()
    others = torch.arange(10) != 3
    assert float(magnitudes[others].max()) == pytest.approx(30.0)
    # The balance Σ p u = 0 is kept, at the expense of those who are right.
    assert float(magnitudes[3]) == pytest.approx(30.0 * 9 * torch.tensor(-15.0).exp().item(), rel=1e-3)


def test_the_gradient_is_that_of_the_gradient_weights_and_the_output_is_unchanged(
    task: MakeTask, photographs: Photographs
) -> None:
    images, labels = photographs(16)[:6], torch.tensor([3, 3, 3, 3, 3, 1])
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    with torch.no_grad():
        network[1].bias[3] = 3.0  # sure of class 3
    announced = replace(task(16, 6, 0.01, "update"), num_classes=10)
    structure = InferenceStructure(WaterFilling(units=64, directions=1).payload(announced))
    model = TamperedNetwork(network, structure)
    logits = network(images)
    assert torch.equal(model(images), logits)
    F.cross_entropy(model(images), labels, reduction="sum").backward()
    inputs = structure.encode(images)
    measured = inputs @ structure.matrix.detach().T
    excited = ((structure.lower <= measured) & (measured < structure.upper)).float()
    expected = structure.spec.strength * torch.einsum("b,bk,bm->km", gradient_weights(logits, labels), excited, inputs)
    torch.testing.assert_close(structure.matrix.grad, expected.detach(), rtol=1e-3, atol=1e-2)


def test_few_images_have_little_weight_where_a_fixed_code_leaves_most_of_them_little() -> None:
    torch.manual_seed(0)
    # Calibrated: labels are as likely as the network says; two thirds of the images are known with 90 % and more.
    logits = 4.2 * torch.randn(3000, 10, dtype=torch.float64)
    probability = torch.softmax(logits, dim=1)
    labels = torch.multinomial(probability, 1)[:, 0]
    code = torch.tensor([1.0, -1.0] * 5, dtype=torch.float64)
    fixed = ((probability * code).sum(dim=1) - code[labels]).abs()
    balanced = gradient_weights(logits, labels).abs()
    small = [float((weights < 0.3 * weights.square().mean().sqrt()).double().mean()) for weights in (fixed, balanced)]
    assert small[0] > 0.5
    assert small[1] < 0.2
