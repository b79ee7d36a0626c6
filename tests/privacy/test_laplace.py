# SPDX-License-Identifier: Apache-2.0
"""The Laplace mechanism: noise against theory, epsilon against closed forms and brute force, clip in the L1 norm."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from scipy import stats

from lightning_recon.client import VictimClient
from lightning_recon.client.accountant import Accountant
from lightning_recon.client.noise import CHUNK, add_noise
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.data.sources import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload
from lightning_recon.privacy.clipping import Clip, tensor_norms
from lightning_recon.privacy.laplace import Laplace
from lightning_recon.privacy.mechanism import Mechanism
from lightning_recon.privacy.parameters import Privacy

LAPLACE, GENERATORS = Laplace(), NoiseSource(0).generators(0, 0, 0)


def test_noise_follows_the_laplace_distribution() -> None:
    noise = add_noise({"a": torch.zeros(200_000)}, 0.5, GENERATORS, LAPLACE)["a"].double()
    assert stats.kstest(noise.numpy(), stats.laplace(scale=0.5).cdf).pvalue > 0.01
    assert float(noise.std()) == pytest.approx(0.5 * LAPLACE.noise_std, rel=0.02)
    assert stats.kurtosis(noise.numpy()) == pytest.approx(LAPLACE.excess_kurtosis, abs=0.3)
    likelihood = LAPLACE.log_likelihood(noise[:9] / 0.5) - LAPLACE.log_likelihood(noise[1:10] / 0.5)
    expected = stats.laplace(scale=0.5).logpdf(noise[:9]) - stats.laplace(scale=0.5).logpdf(noise[1:10])
    assert likelihood.numpy() == pytest.approx(expected)


def test_noise_is_drawn_chunk_by_chunk() -> None:
    whole = add_noise({"a": torch.zeros(CHUNK + 9)}, 1.0, GENERATORS, LAPLACE)["a"]
    generator = GENERATORS("a")
    chunks = [LAPLACE.sample(count, generator).float() for count in (CHUNK, 9)]
    assert torch.equal(whole, torch.cat(chunks))


def test_clip_bounds_the_l1_norm() -> None:
    gradients = {"a": torch.full((3,), -2.0), "b": torch.full((4,), 1.0)}  # L1 norms 6 and 4
    assert tensor_norms(gradients, 1) == {"a": 6.0, "b": 4.0}
    assert Clip(5.0, order=1).factors({"a": 6.0, "b": 4.0}) == {"a": 0.5, "b": 0.5}
    assert Clip(10.0, order=1).factors({"a": 6.0, "b": 4.0}) == {"a": 1.0, "b": 1.0}
    assert Clip(10.0, per_layer=True, order=1).factors({"a": 6.0, "b": 4.0}) == {"a": 5 / 6, "b": 1.0}
    clipped = Clip(5.0, order=1)(gradients)
    assert sum(tensor_norms(clipped, 1).values()) == pytest.approx(5.0)


def test_one_release_is_exact() -> None:
    for z, adjacency, shift in ((0.5, "add_remove", 2.0), (0.5, "replace_one", 4.0), (0.1, "add_remove", 10.0)):
        epsilon = LAPLACE.epsilon(z, 1, 0.01, adjacency)  # type: ignore[arg-type]
        assert epsilon is not None
        assert epsilon <= shift  # pure differential privacy
        # delta at epsilon, integrated over the outputs where the loss exceeds it
        outputs = np.linspace(-40, 40 + shift, 4_000_001)
        density, moved = stats.laplace.pdf(outputs), stats.laplace.pdf(outputs, shift)
        delta = np.trapezoid(np.maximum(density - math.exp(epsilon) * moved, 0), outputs)
        assert delta == pytest.approx(0.01, rel=1e-3)
    assert LAPLACE.epsilon(0.0, 1, 1e-5, "add_remove") is None
    assert LAPLACE.epsilon(1e9, 1, 1e-5, "add_remove") == 0.0


@pytest.mark.parametrize(("z", "rounds"), [(1.0, 2), (2.0, 16), (0.2, 4)])
def test_composition_is_a_tight_upper_bound(z: float, rounds: int) -> None:
    delta, shift = 1e-3, 1 / z
    reached = LAPLACE.epsilon(z, rounds, delta, "add_remove")
    assert reached is not None
    # Monte Carlo over the privacy losses of all rounds.
    generator = np.random.default_rng(0)
    outputs = generator.laplace(size=(400_000, rounds))
    losses = (np.abs(outputs - shift) - np.abs(outputs)).sum(1)

    def delta_at(epsilon: float) -> float:
        return float(np.maximum(0, 1 - np.exp(epsilon - losses)).mean())

    assert delta_at(reached) <= delta * 1.1
    assert delta_at(reached - 0.05 * max(1.0, reached)) > delta
    assert reached <= rounds * shift
    more = [LAPLACE.epsilon(z, rounds, delta, adjacency) or 0.0 for adjacency in ("add_remove", "replace_one")]
    assert more[1] > more[0]


def test_a_neighbour_that_moves_several_numbers_is_covered() -> None:
    # The same L1 distance, spread over 1, 2 and 5 numbers: the hockey-stick divergence falls.
    generator, whole = np.random.default_rng(1), 2.0
    for epsilon in (0.2, 1.0, 1.8):
        deltas = []
        for count in (1, 2, 5):
            outputs = generator.laplace(size=(400_000, count))
            losses = (np.abs(outputs - whole / count) - np.abs(outputs)).sum(1)
            deltas.append(np.maximum(0, 1 - np.exp(epsilon - losses)).mean())
        assert all(later <= earlier + 2e-3 for earlier, later in pairwise(deltas))


def test_sampling_amplifies() -> None:
    whole = LAPLACE.training_epsilon(1.0, 1.0, 10, 1e-5, "add_remove")
    sampled = LAPLACE.training_epsilon(1.0, 0.01, 10, 1e-5, "add_remove")
    assert whole is not None
    assert sampled == pytest.approx(10 * math.log1p(0.01 * math.expm1(1)), rel=1e-9)
    assert sampled < whole
    assert LAPLACE.training_epsilon(1.0, 0.01, 0, 1e-5, "add_remove") == 0.0
    assert LAPLACE.training_epsilon(0.0, 0.01, 5, 1e-5, "add_remove") is None


@pytest.mark.parametrize("rounds", [1, 3])
def test_noise_multiplier_for_epsilon(rounds: int) -> None:
    z = LAPLACE.noise_multiplier_for(4.0, 1e-5, rounds, "replace_one")
    assert LAPLACE.epsilon(z, rounds, 1e-5, "replace_one") == pytest.approx(4.0, rel=1e-3)


def test_information_and_robustness() -> None:
    nats = LAPLACE.mutual_information(0.5, 3)
    outputs = np.linspace(-60, 60, 2_000_001)
    density, moved = stats.laplace.pdf(outputs), stats.laplace.pdf(outputs, 2.0)
    assert nats == pytest.approx(3 * np.trapezoid(density * np.log(density / moved), outputs), rel=1e-5)
    assert LAPLACE.mutual_information(0.0, 1) == math.inf
    assert LAPLACE.reconstruction_robustness(0.1, 1.0, 1) == pytest.approx(0.1 * math.e)
    assert LAPLACE.reconstruction_robustness(0.1, 1e-6, 1) == 1.0
    assert LAPLACE.mu(1.0, 1, "add_remove") is None


def a_client(**settings: object) -> VictimClient:
    privacy = Privacy(max_grad_norm=0.5, noise_multiplier=1e-3, mechanism="laplace")
    client = VictimClient(network="convnet", num_classes=10, privacy=privacy, **settings, noise_seed=0)  # type: ignore[arg-type]
    images = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masks, names = torch.ones(4, 1, 32, 32, dtype=torch.bool), tuple("abcd")
    client.bind([ClientBatch(one, one, masks, torch.arange(4), names) for one in images])
    return client


def test_a_client_clips_and_draws_by_it() -> None:
    client = a_client()
    clean = client.under_noise(0.0).share(ServerPayload(), 0, 0, 0).gradient
    noisy = client.share(ServerPayload(), 0, 0, 0).gradient
    assert sum(tensor_norms(clean, 1).values()) == pytest.approx(0.5, rel=1e-4)
    noise = torch.cat([(noisy[name] - clean[name]).flatten() for name in clean]).double()
    assert stats.kstest(noise.numpy(), stats.laplace(scale=0.5e-3).cdf).pvalue > 0.01
    assert client.task.update_noise == pytest.approx(1e-3 * math.sqrt(2))


def test_its_noise_cannot_be_shared() -> None:
    with pytest.raises(UserError, match="sum of laplace noises"):
        a_client(aggregated=2, noise_share="distributed")
    assert a_client(aggregated=2).task.update_noise == pytest.approx(2e-3)


class _Incomplete(Mechanism):
    """Lacks the attributes that records need."""

    def sample(self, count: int, generator: np.random.Generator) -> torch.Tensor:
        return torch.zeros(count)

    def log_likelihood(self, noise: torch.Tensor) -> torch.Tensor:
        return noise

    def epsilon(self, noise_multiplier: float, rounds: int, delta: float, adjacency: str) -> float | None:
        return None


@pytest.mark.parametrize(
    ("name", "reason"), [("..x", "cannot be imported"), (f"{__name__}._Incomplete", "defines no name")]
)
def test_a_class_path_that_cannot_be_used_is_refused(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Privacy(mechanism=name)


def test_training_is_not_resumed_from_a_checkpoint_that_names_no_mechanism() -> None:
    accountant = Accountant(Privacy(1.0, 1.0, mechanism="laplace"))
    accountant.load_state_dict({"granularity": "update", "noise_multiplier": 1.0, "sample_rate": 1.0})
    with pytest.raises(UserError, match="mechanism is laplace, but the checkpoint was trained with gaussian"):
        accountant.on_train_start(Trainer(logger=False, enable_checkpointing=False), LightningModule())
