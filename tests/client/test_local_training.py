# SPDX-License-Identifier: Apache-2.0
"""Local training against formulas, against an ordinary training loop, and its order of images."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.client import LocalOptions, Privacy, VictimClient
from lightning_recon.client.gradients import mean_gradient
from lightning_recon.client.local_training import LocalRound, mean_gradients, randomness_of, trained, weight_change
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.data import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload

IMAGES = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 3, 1, 2, 4, 4, 0])
Step = Callable[[nn.Module], dict[str, Tensor]]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 5)).double()


def rounds(options: LocalOptions, count: int = 7, round: int = 0, seed: int | None = 0) -> LocalRound:
    randomness = randomness_of(NoiseSource(seed), 0, 0, round)
    return LocalRound(options.announced(count), options.new_optimizer, randomness)


def change(options: LocalOptions, model: nn.Module | None = None, count: int = 7, **place: Any) -> dict[str, Tensor]:  # noqa: ANN401 - of `rounds`
    training = rounds(options, count, **place)
    gradients = mean_gradients(training.local.accumulate_grad_batches)
    return weight_change(model or network(), IMAGES[:count], LABELS[:count], training, gradients)


def sgd(**options: Any) -> Callable[..., torch.optim.Optimizer]:  # noqa: ANN401 - options of the optimizer
    return partial(torch.optim.SGD, **{"lr": 0.5, **options})


def by_hand(
    parts: list[list[int]], step: Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Weights before minus after steps on these images; `step` gets weights and gradients, and gives new weights."""
    model = network()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    for part in parts:
        gradient, _ = mean_gradient(model, F.cross_entropy, IMAGES[part], LABELS[part])
        with torch.no_grad():
            new = step({name: one.detach() for name, one in model.named_parameters()}, gradient)
            for name, parameter in model.named_parameters():
                parameter.copy_(new[name])
    return {name: before[name] - one.detach() for name, one in model.named_parameters()}


def equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> bool:
    return found.keys() == expected.keys() and all(
        torch.allclose(found[name], one, rtol=0, atol=tolerance) for name, one in expected.items()
    )


def test_epochs_of_mini_batches_with_a_smaller_last_one() -> None:
    plain = by_hand(2 * [[0, 1, 2], [3, 4, 5], [6]], lambda w, g: {name: w[name] - 0.5 * g[name] for name in w})
    assert equal(change(LocalOptions(2, batch_size=3, optimizer=sgd())), plain)
    dropped = by_hand(2 * [[0, 1, 2], [3, 4, 5]], lambda w, g: {name: w[name] - 0.5 * g[name] for name in w})
    assert equal(change(LocalOptions(2, batch_size=3, drop_last=True, optimizer=sgd())), dropped)
    assert not equal(plain, dropped, 1e-3)


def test_momentum_and_weight_decay_follow_their_formulas() -> None:
    velocity: dict[str, Tensor] = {}

    def step(weights: dict[str, Tensor], gradient: dict[str, Tensor], nesterov: bool) -> dict[str, Tensor]:
        decayed = {name: gradient[name] + 0.1 * weights[name] for name in weights}
        for name, one in decayed.items():
            velocity[name] = 0.9 * velocity[name] + one if name in velocity else one
        moved = {name: decayed[name] + 0.9 * velocity[name] if nesterov else velocity[name] for name in weights}
        return {name: weights[name] - 0.5 * moved[name] for name in weights}

    parts = 2 * [[0, 1, 2, 3], [4, 5, 6]]
    for nesterov in (False, True):
        velocity.clear()
        options = sgd(momentum=0.9, weight_decay=0.1, nesterov=nesterov)
        found = change(LocalOptions(2, batch_size=4, optimizer=options))
        assert equal(found, by_hand(parts, partial(step, nesterov=nesterov)))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_first_step_of_adam_is_almost_a_sign(decay: float) -> None:
    """M = (1 - b1) g and v = (1 - b2) g², which the bias corrections divide by the same factors."""

    def step(weights: dict[str, Tensor], gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {name: one / (one.square().sqrt() + 1e-8) for name, one in gradient.items()}
        return {name: weights[name] * (1 - 0.01 * decay) - 0.01 * moved[name] for name in weights}

    found = change(LocalOptions(optimizer=partial(torch.optim.AdamW, lr=0.01, weight_decay=decay)))
    assert equal(found, by_hand([list(range(7))], step))
    if not decay:
        assert equal(found, change(LocalOptions(optimizer=partial(torch.optim.Adam, lr=0.01))))
        signs = by_hand([list(range(7))], lambda w, g: {name: w[name] - 0.01 * g[name].sign() for name in w})
        assert equal(found, signs, 1e-4)


def test_accumulated_mini_batches_are_one_large_one() -> None:
    whole = change(LocalOptions(2, batch_size=6, optimizer=sgd(momentum=0.9)), count=6)
    parts = change(LocalOptions(2, batch_size=2, accumulate_grad_batches=3, optimizer=sgd(momentum=0.9)), count=6)
    assert equal(parts, whole)


def test_a_step_of_fewer_mini_batches_is_divided_by_the_same_number() -> None:
    def step(weights: dict[str, Tensor], gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: weights[name] - next(rates) * gradient[name] for name in weights}

    rates = iter([0.5] * 4 + [0.25] * 4)  # one for each tensor
    found = change(LocalOptions(batch_size=2, accumulate_grad_batches=2, optimizer=sgd()), count=6)
    assert equal(found, by_hand([[0, 1, 2, 3], [4, 5]], step))


def test_a_schedule_is_announced_by_its_values_and_followed() -> None:
    options = LocalOptions(
        3,
        batch_size=4,
        optimizer=sgd(),
        scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),  # type: ignore[arg-type]
    )
    assert options.announced(7).learning_rates == (0.5, 0.5, 0.25, 0.25, 0.125)
    rates = [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    each = iter([rate for rate in rates for _ in range(4)])
    parts = 3 * [[0, 1, 2, 3], [4, 5, 6]]
    assert equal(change(options), by_hand(parts, lambda w, g: {name: w[name] - next(each) * g[name] for name in w}))


def test_delta_and_gradient_differ_by_the_learning_rate() -> None:
    delta, gradient = (change(LocalOptions(2, optimizer=sgd(), update=update)) for update in ("delta", "gradient"))
    assert equal({name: 0.5 * one for name, one in gradient.items()}, delta)
    assert LocalOptions(2).announced(7).update == "delta"
    assert LocalOptions().announced(7).update == "gradient"
    assert LocalOptions().announced(7).is_plain_step


def test_the_order_is_new_in_every_epoch_and_round_and_follows_from_the_key() -> None:
    options = LocalOptions(2, batch_size=2, shuffle=True, optimizer=sgd())
    randomness = rounds(options).randomness
    orders = [randomness.order(epoch, 7).tolist() for epoch in range(4)]
    assert len({tuple(one) for one in orders}) == 4
    assert all(sorted(one) == list(range(7)) for one in orders)
    parts = [one[first : first + 2] for one in orders[:2] for first in range(0, 7, 2)]
    expected = by_hand(parts, lambda w, g: {name: w[name] - 0.5 * g[name] for name in w})
    assert equal(change(options), expected)
    assert not equal(change(options, round=1), expected, 1e-6)
    assert not equal(change(options, seed=None), expected, 1e-6)


def test_running_statistics_move_and_the_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).double()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    for training, moves in ((True, True), (False, False)):
        model.train(training)
        after = trained(model, IMAGES, LABELS, rounds(LocalOptions(2, batch_size=4)), mean_gradients(1)).state_dict()
        assert torch.equal(after["1.running_mean"], before["1.running_mean"]) != moves
        assert int(after["1.num_batches_tracked"]) == (4 if moves else 0)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 8}, "batch_size is 8, but a client has 7 image"),
        ({"batch_size": 3, "accumulate_grad_batches": 4}, "accumulate_grad_batches is 4, .* has 3 mini-batch"),
        ({"steps": 2}, "steps is 2, which does not divide a batch of 7"),
        ({"steps": 7, "batch_size": 1}, "give one of them"),
        ({"optimizer": torch.optim.LBFGS}, "evaluates the loss several times"),
        ({"optimizer": partial(torch.optim.SGD, lr=-1.0)}, "optimizer cannot be used .*-1.0"),
        ({"optimizer": torch.optim.SparseAdam}, "optimizer cannot be used"),
        ({"epochs": 0}, "epochs is 0"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.0), "update": "gradient"}, "every local step is 0"),
        (
            {
                "epochs": 2,
                "scheduler": partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: epoch),
                "update": "gradient",
            },
            "first learning rate is 0",
        ),
        ({"optimizer": partial(torch.optim.SGD, lr=0.0), "epochs": 2}, "every local step is 0"),
        ({"drop_last": True}, "drop_last needs .*batch_size"),
        ({"scheduler_interval": "step"}, "scheduler_interval needs .*scheduler"),
        ({"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau}, "follows a metric"),
        (
            {
                "epochs": 4,
                "optimizer": sgd(momentum=0.9),
                "scheduler": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=4),
            },
            "changes more than the learning rate",
        ),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LocalOptions(**options).announced(7)


def client_of(batch: ClientBatch, privacy: Privacy, **settings: Any) -> VictimClient:  # noqa: ANN401 - of the client
    client = VictimClient(
        f"{__name__.replace('test_local_training', 'conftest')}.Linear", 5, privacy=privacy, **settings
    )
    client.bind([batch])
    return client


@pytest.mark.parametrize("clip", [1e-3, None])
def test_one_clip_bounds_the_change_of_the_weights(clip: float | None, a_batch: Callable[..., ClientBatch]) -> None:
    local = LocalOptions(2, batch_size=2, optimizer=partial(torch.optim.Adam, lr=1e-2))
    sent = client_of(a_batch(0), Privacy(clip, 0.0), local=local).share(ServerPayload(), 0, 0, 0).gradient
    norm = float(torch.cat([one.flatten() for one in sent.values()]).norm())
    count = sum(one.numel() for one in sent.values())
    assert norm == pytest.approx(clip, rel=1e-5) if clip else 0.01 * math.sqrt(count) < norm < 0.05 * math.sqrt(count)


def test_only_what_is_drawn_anew_differs_between_rounds(a_batch: Callable[..., ClientBatch]) -> None:
    for shuffle in (False, True):
        local = LocalOptions(2, batch_size=1, shuffle=shuffle, optimizer=partial(torch.optim.SGD, lr=0.5))
        client = client_of(a_batch(0), Privacy(1.0, 0.0), local=local, noise_seed=0)
        first, second, again = (client.share(ServerPayload(), 0, 0, round).gradient for round in (0, 1, 0))
        assert equal(first, again, 0.0)
        assert equal(first, second, 0.0) != shuffle
