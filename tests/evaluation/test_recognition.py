# SPDX-License-Identifier: Apache-2.0
"""Recognition: full for the originals themselves, near chance for noise, and by the classifier's own predictions."""

import pytest
import torch
from torch import Tensor, nn

from lightning_recon.evaluation.recognition import Recognition, recognition

SIDE, CLASSES = 8, 20


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def classifier() -> nn.Module:
    """Logits of zero mean over images, so that its predictions spread over the classes."""
    linear = nn.Linear(3 * SIDE * SIDE, CLASSES, bias=False)
    weight = torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(0))
    linear.weight.data = weight - weight.mean(dim=1, keepdim=True)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.9), linear)


def test_identical_images_agree_fully(classifier: nn.Module) -> None:
    assert recognition(images(100, 1), images(100, 1), classifier, SIDE) == Recognition(1.0, 1.0)


def test_noise_agrees_by_chance(classifier: nn.Module) -> None:
    found = recognition(images(400, 2), images(400, 1), classifier, SIDE)
    assert found.top1 == pytest.approx(1 / CLASSES, abs=0.05)
    assert found.top5 == pytest.approx(5 / CLASSES, abs=0.1)


def test_each_reconstruction_is_compared_with_its_own_original() -> None:
    class Brightest(nn.Module):
        """The logit of a class is the brightness of its row."""

        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.mean(dim=(1, 3))

    rows = torch.zeros(4, 3, SIDE, SIDE)
    for place in range(4):
        rows[place, :, place] = 1
    found = rows.clone()
    found[1, :, 1] = 0.4  # its original's class is the second of its classes
    found[1, :, 7] = 0.5
    found[2, :, 2] = 0  # and here the sixth
    found[2, :, [0, 1, 3, 4, 5]] = 0.5
    assert recognition(found, rows, Brightest(), SIDE) == Recognition(0.5, 0.75)


def test_the_classifier_keeps_its_mode(classifier: nn.Module) -> None:
    classifier.train()
    classifier[2].eval()  # a frozen part
    recognition(images(2, 1), images(2, 1), classifier, SIDE)
    assert [module.training for module in classifier.modules()] == [True, True, True, False]


@pytest.mark.parametrize("count", [0, 3])
def test_images_must_belong_together(classifier: nn.Module, count: int) -> None:
    with pytest.raises(ValueError, match="reconstructions for"):
        recognition(images(count, 1), images(0 if count == 0 else 2, 1), classifier, SIDE)


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 classes"):
        recognition(images(1, 1), images(1, 1), nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2)), SIDE)
