# SPDX-License-Identifier: Apache-2.0
"""Gains of each step with which Adam moves the rows of all images equally far."""

import math

import pytest
import torch
from torch import Tensor

from lightning_recon.exchange import LocalTraining
from lightning_recon.exchange.local_training import ADAM
from lightning_recon.structure.coding.equal_movements import equal_movement_gains
from lightning_recon.structure.coding.movement import movements


def training(steps: int, epochs: int, shuffle: bool = False, optimizer: str = ADAM) -> LocalTraining:
    return LocalTraining(epochs=epochs, batch_size=2, shuffle=shuffle, optimizer=optimizer, learning_rates=(1e-3,))


def weakest(local: LocalTraining, images: int, gains: Tensor | None = None) -> float:
    """Movement of the images that move least, by the root mean square."""
    moved = movements(local, images, gains)
    return float(moved.min() / moved.square().mean().sqrt())


def test_gains_enter_the_moments_as_factors_of_the_gradient() -> None:
    first, second = 3.0, -0.7
    moved = movements(training(2, 2), 4, torch.tensor([first, 1.0, second, 1.0], dtype=torch.float64))
    # An image of the first step of both epochs, as Kingma and Ba define Adam.
    mean, square, expected = 0.0, 0.0, 0.0
    for step, gradient in enumerate((first, 0.0, second, 0.0), start=1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        expected += mean / (1 - 0.9**step) / math.sqrt(square / (1 - 0.999**step))
    assert float(moved[0]) == pytest.approx(expected, rel=1e-6)  # sent divided by the learning rate


def test_several_lists_of_gains_are_compared_at_once() -> None:
    local = training(3, 2, shuffle=True)
    lists = torch.tensor([[1, 2, 3, -1, -2, -3], [1, 1, 1, 1, 1, 1]], dtype=torch.float64)
    together = movements(local, 6, lists)
    torch.testing.assert_close(together, torch.stack([movements(local, 6, one) for one in lists]))
    torch.testing.assert_close(together[1], movements(local, 6))


@pytest.mark.parametrize(
    ("steps", "epochs", "shuffle", "least"), [(4, 2, False, 0.98), (4, 2, True, 0.9), (3, 3, True, 0.95)]
)
def test_all_images_move_equally_far(steps: int, epochs: int, shuffle: bool, least: float) -> None:
    local, images = training(steps, epochs, shuffle), 2 * steps
    gains = equal_movement_gains(local, images)
    assert gains is not None
    assert gains.shape == (steps * epochs,)
    assert bool((gains[:steps] > 0).all())
    assert weakest(local, images, gains) > max(least, weakest(local, images) + 0.1)
    # Gradient weights that differ between the visits by 10 % cost little.
    other = torch.cat([gains[:steps], 1.1 * gains[steps:]])
    assert weakest(local, images, other) > 0.96 * least


def test_where_all_images_move_alike_nothing_gets_worse() -> None:
    for local in (training(1, 2), training(3, 2, optimizer="torch.optim.Adagrad")):
        gains = equal_movement_gains(local, 2 * local.steps_of_epoch(6))
        assert gains is None or weakest(local, 6, gains) > 0.99


def test_steps_without_a_learning_rate_do_not_count() -> None:
    local = LocalTraining(epochs=2, batch_size=2, optimizer=ADAM, learning_rates=(0.1, 0.1, 0.1, 0.1, 0.1, 0.0))
    gains = equal_movement_gains(local, 6)
    assert gains is not None
    assert bool(gains.isfinite().all())
    assert weakest(local, 6, gains) > 0.9


def test_one_epoch_and_long_training_have_no_gains() -> None:
    assert equal_movement_gains(training(4, 1), 8) is None
    assert equal_movement_gains(training(100, 2), 200) is None
