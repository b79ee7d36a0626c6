# SPDX-License-Identifier: Apache-2.0
"""Epsilon where the server sees who was sampled."""

import numpy as np
import pytest
from scipy.stats import norm

from lightning_recon.evaluation.results import privacy_record
from lightning_recon.exchange import BatchSampling, Sampling
from lightning_recon.privacy.correlated_noise import sensitivity
from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, mu_of
from lightning_recon.privacy.subsampled_accounting import training_epsilon
from lightning_recon.privacy.visible_sampling import visible_sampling_epsilon

DELTA = 1e-3


def exact(noise: float, rounds: int) -> float:
    found = gaussian_epsilon(mu_of(noise, rounds, "add_remove"), DELTA)
    assert found is not None
    return found


def test_it_lies_between_the_typical_and_the_greatest_number_of_looks() -> None:
    found = visible_sampling_epsilon(1.0, 0.1, 50, DELTA, "add_remove")
    assert found is not None
    assert exact(1.0, 5) < found < exact(1.0, 50)
    hidden = training_epsilon(1.0, 0.1, 50, DELTA, "add_remove")
    assert hidden is not None
    assert hidden < found


def test_delta_is_that_of_simulated_privacy_losses() -> None:
    found = visible_sampling_epsilon(1.0, 0.1, 50, DELTA, "add_remove")
    assert found is not None
    generator = np.random.default_rng(0)
    looks = generator.binomial(50, 0.1, 400_000)
    shift = np.sqrt(looks)
    # The loss of K Gaussian releases under the record is K/2 + sqrt(K) n; delta is the mean of (1 - exp(eps - loss))+.
    loss = looks / 2 + shift * norm.rvs(size=len(looks), random_state=generator)
    assert np.maximum(0, -np.expm1(found - loss)).mean() == pytest.approx(DELTA, rel=0.1)


def test_without_sampling_and_without_noise() -> None:
    assert visible_sampling_epsilon(0.7, 1.0, 9, DELTA, "add_remove") == exact(0.7, 9)
    assert visible_sampling_epsilon(0.0, 0.5, 9, DELTA, "add_remove") is None
    nearly = visible_sampling_epsilon(2e-4, 1 - 1e-5, 1, DELTA, "add_remove")
    assert nearly == pytest.approx(exact(2e-4, 1), rel=1e-3)


@pytest.mark.parametrize("method", ["shuffle", "poisson", "fixed_size"])
def test_the_record_states_both(method: Sampling) -> None:
    record = privacy_record(
        granularity="sample",
        per_layer=False,
        max_grad_norm=1.0,
        noise_multiplier=1.0,
        rounds=50,
        batch_size=10,
        delta=DELTA,
        adjacency="add_remove",
        sampling=BatchSampling(method, 100),
    )
    sampling, accounted = record["sampling"], record["epsilon_accounted"]
    assert isinstance(sampling, dict)
    assert sampling["most_rounds"] == (5 if method == "shuffle" else 50)
    expected = exact(1.0, 5) if method == "shuffle" else visible_sampling_epsilon(1.0, 0.1, 50, DELTA, "add_remove")
    assert accounted == expected
    assert sampling["epsilon_if_hidden"] < expected


def test_correlated_noise_and_local_steps_claim_no_amplification() -> None:
    def record(bands: int, releases: int) -> dict[str, object]:
        return privacy_record(
            granularity="sample", per_layer=False, max_grad_norm=1.0, noise_multiplier=1.0, rounds=50, batch_size=10,
            delta=DELTA, adjacency="add_remove", sampling=BatchSampling("poisson", 100), noise_bands=bands,
            releases_per_round=releases,
        )  # fmt: skip

    correlated, local = record(4, 1), record(1, 3)
    assert correlated["mu"] == pytest.approx(sensitivity(4, 50))
    assert correlated["epsilon_accounted"] == gaussian_epsilon(sensitivity(4, 50), DELTA)
    for found, hidden in ((correlated, None), (local, exact(1.0, 150))):
        sampling = found["sampling"]
        assert isinstance(sampling, dict)
        assert sampling["epsilon_if_hidden"] == hidden


def test_a_client_that_is_clipped_as_a_whole_is_in_every_round() -> None:
    record = privacy_record(
        granularity="update",
        per_layer=False,
        max_grad_norm=1.0,
        noise_multiplier=1.0,
        rounds=50,
        batch_size=10,
        delta=DELTA,
        adjacency="add_remove",
        sampling=BatchSampling("shuffle", 100),
    )
    assert record["epsilon_accounted"] == exact(1.0, 50)
    sampling = record["sampling"]
    assert isinstance(sampling, dict)
    assert (sampling["method"], sampling["images"], sampling["epsilon_if_hidden"]) == ("shuffle", 100, None)
