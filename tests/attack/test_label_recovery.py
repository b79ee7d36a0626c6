# SPDX-License-Identifier: Apache-2.0
"""Labels from the last layer's gradient: exact where theory says so, and better than chance under noise."""

import pytest
import torch
from torch import Tensor

from lightning_recon.attack.inversion.label_recovery import label_counts
from lightning_recon.evaluation.assignment import label_share

CLASSES, CLIP = 20, 1.0


def bias_gradient(labels: Tensor, factor: float, spread: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The gradient of a batch whose predictions scatter around what the server expects, and that expectation."""
    generator = torch.Generator().manual_seed(seed)
    expected = torch.randn(CLASSES, generator=generator).mul(0.3).softmax(0)
    logits = expected.log() + spread * torch.randn(len(labels), CLASSES, generator=generator)
    errors = logits.softmax(1) - torch.nn.functional.one_hot(labels, CLASSES)
    return factor * errors.mean(0), expected


@pytest.mark.parametrize("label", [0, 7, 19])
@pytest.mark.parametrize("factor", [1e-4, 1.0])
def test_one_picture_pulls_its_own_class_down(label: int, factor: float) -> None:
    gradient, expected = bias_gradient(torch.tensor([label]), factor, spread=2.0)
    assert (gradient < 0).sum() == 1
    assert label_counts(gradient, 1, expected, 0.0).tolist() == [label]


@pytest.mark.parametrize("factor", [1e-3, 0.2, 5.0], ids=["clipped hard", "clipped", "a sum"])
@pytest.mark.parametrize("labels", [[3, 3, 3, 3], [0, 1, 2, 3], [5, 5, 5, 9, 9, 14, 17, 17]])
def test_counts_of_a_batch_are_exact_whatever_the_clip(labels: list[int], factor: float) -> None:
    gradient, expected = bias_gradient(torch.tensor(labels), factor)
    assert label_counts(gradient, len(labels), expected, 0.0).tolist() == labels


def test_scattered_predictions_and_noise_leave_most_labels_right() -> None:
    exact, noisy, blind = [], [], []
    for seed in range(30):
        generator = torch.Generator().manual_seed(100 + seed)
        labels = torch.randint(CLASSES, (8,), generator=generator)
        gradient, expected = bias_gradient(labels, 0.3, spread=0.3, seed=seed)
        for shares, std in ((exact, 0.0), (noisy, 0.01), (blind, 10.0)):
            seen = gradient + std * torch.randn(CLASSES, generator=generator)
            shares.append(label_share(label_counts(seen, 8, expected, std), labels))
    means = [sum(shares) / len(shares) for shares in (exact, noisy, blind)]
    assert means[0] > 0.95
    assert means[1] > 0.7
    assert means[2] < 0.45  # eight guesses of twenty classes meet a third of eight labels by chance


@pytest.mark.parametrize(
    ("guessed", "labels", "share"),
    [([0, 1, 2], [2, 1, 0], 1.0), ([0, 0, 0], [0, 0, 7], 2 / 3), ([4, 4], [0, 1], 0.0), ([1, 2], [1, 1], 0.5)],
)
def test_labels_are_compared_as_multisets(guessed: list[int], labels: list[int], share: float) -> None:
    assert label_share(torch.tensor(guessed), torch.tensor(labels)) == pytest.approx(share)
