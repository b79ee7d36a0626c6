# SPDX-License-Identifier: Apache-2.0
"""The classifier is found by what it does, and labels are read from it or declined, wherever it is registered."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.attack.inversion.classifier_head import Head, find_head
from lightning_recon.attack.inversion.classifier_labels import (
    counted_labels,
    expected_accuracy,
    public_images,
    public_predictions,
)
from lightning_recon.attack.inversion.forward_model import client_update
from lightning_recon.attack.inversion.functional_model import FunctionalModel, functionalize
from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.priors.image_statistics import public_statistics

CLASSES, SIZE = 6, 16
LABELS = torch.tensor([1, 4, 4, 5])


class Tail(nn.Module):
    """Eight features and what a network does with them."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(32, CLASSES, bias=bias)  # first, as the last layer often is not
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.aux = nn.Linear(32, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Non-negative features (B, 32)."""
        return F.adaptive_avg_pool2d(torch.sigmoid(3 * self.conv(images - 0.5)), 2).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


class TwoHeads(Tail):
    def forward(self, images: Tensor) -> Tensor:
        self.extra = self.aux(self.features(images))
        return super().forward(images)


class Attention(Tail):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def features(self, images: Tensor) -> Tensor:
        steps = super().features(images).view(len(images), 4, 8)
        return self.attend(steps, steps, steps)[0].flatten(1)  # type: ignore[no-any-return]


class Maps(Tail):
    """Class maps that are rectified and averaged, as in SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = F.relu(self.classify(torch.sigmoid(self.conv(images))) + 0.3).mean((2, 3))
        return logits


class Probabilities(Tail):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(-1)


class SignedFeatures(Tail):
    """Without a bias, and with features whose signs differ from picture to picture."""

    def __init__(self) -> None:
        super().__init__(bias=False)

    def features(self, images: Tensor) -> Tensor:
        found = super().features(images)
        return 30 * (found - found.mean(1, keepdim=True)) * torch.sin(1e4 * images.mean((1, 2, 3)))[:, None]


def seen_by(network: nn.Module, labels: Tensor) -> tuple[FunctionalModel, dict[str, Tensor], Task, Tensor]:
    """The network, and what a client sends of photographs with these labels."""
    task = Task((3, SIZE, SIZE), CLASSES, len(labels), 1, "x", "update", False, 1.0, 0.0, 1, 1)
    model = functionalize(network, batch_statistics=True)
    statistics = public_statistics(SIZE, SIZE, False, None)
    update, _ = client_update(model, public_images(statistics, 7, len(labels)), labels, task)
    return model, update, task, public_images(statistics, 0)


def build(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize(
    ("make", "bias"),
    [(TwoHeads, "head.bias"), (Attention, "head.bias"), (Maps, "classify.bias"), (lambda: Tail(bias=False), None)],
    ids=["two heads", "attention after the head", "class maps", "no bias"],
)
@pytest.mark.parametrize("labels", [LABELS, LABELS[:1]], ids=["batch", "one"])
def test_labels_are_read_wherever_they_are(make: Callable[[], nn.Module], bias: str | None, labels: Tensor) -> None:
    model, update, task, images = seen_by(build(make), labels)
    head = find_head(model, images[:4])
    assert head is not None
    assert head.bias == bias
    predictions = public_predictions(model, images, len(labels))
    assert torch.equal(counted_labels(update, head, task, predictions), labels)
    assert expected_accuracy(update, head, task, predictions) > 0.9
    noisy = replace(task, noise_multiplier=1.0)
    assert expected_accuracy(update, head, noisy, predictions) < 0.75
    nothing = {name: torch.zeros_like(tensor) for name, tensor in update.items()}
    assert counted_labels(nothing, head, task, predictions).tolist() == []


@pytest.mark.parametrize(("labels", "said"), [(LABELS, "does not show the labels of 4 images"), (LABELS[:1], None)])
def test_without_a_bias_signed_features_show_one_label_alone(labels: Tensor, said: str | None) -> None:
    model, update, task, images = seen_by(build(SignedFeatures), labels)
    head = find_head(model, images[:4])
    assert head is not None
    assert not head.of_batches
    predictions = public_predictions(model, images, len(labels))
    if said is None:
        assert torch.equal(counted_labels(update, head, task, predictions), labels)
    else:
        with pytest.raises(UserError, match=said):
            counted_labels(update, head, task, predictions)


def test_where_nothing_is_softmax_minus_one_hot_it_is_said() -> None:
    model, update, task, images = seen_by(build(Probabilities), LABELS)
    assert find_head(model, images[:4]) is None
    with pytest.raises(UserError, match=r"set labels joint"):
        counted_labels(update, None, task, public_predictions(model, images, 4))


def test_predictions_are_of_batches_as_large_as_the_clients() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(784, CLASSES))
    images = public_images(public_statistics(SIZE, SIZE, False, None), 0, 8)
    model = functionalize(network, batch_statistics=True)
    expected = torch.cat([model.network(part).softmax(-1) for part in images.split(2)])
    assert torch.equal(public_predictions(model, images, 2), expected)
    still = functionalize(network, batch_statistics=False)
    assert torch.equal(public_predictions(still, images, 2), still.network(images).softmax(-1))


def test_a_head_divides_by_what_each_class_counts() -> None:
    head = Head(None, "b", None, torch.tensor([1.0, 0.5]))
    errors, noise = head.errors({"b": torch.tensor([2.0, 2.0])}, 3.0)
    assert (errors.tolist(), noise) == ([2.0, 4.0], 6.0)
