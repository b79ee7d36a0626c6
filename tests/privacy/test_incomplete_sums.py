# SPDX-License-Identifier: Apache-2.0
"""The guarantee of sums that clients drop out of with their noise: never below that of what the server sees."""

import itertools
import math

import pytest
from scipy.stats import binom

from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.gaussian_accounting import gaussian_delta, gaussian_epsilon, mu_of
from lightning_recon.privacy.incomplete_sums import IncompleteSums
from lightning_recon.privacy.integer_noise import Skellam
from lightning_recon.privacy.mechanism import ADJACENCIES, Adjacency
from lightning_recon.privacy.risk import gaussian_advantage, gaussian_true_positive_rate

GAUSSIAN = Gaussian()


def patterns(clients: int, dropout: float) -> list[tuple[float, float]]:
    """Probability, and N/k of a client that is in a sum of k; 0 where it is not."""
    inside = [
        ((1 - dropout) * float(binom.pmf(others, clients - 1, 1 - dropout)), clients / (others + 1))
        for others in range(clients)
    ]
    return [*inside, (dropout**clients / clients, float(clients)), (dropout - dropout**clients / clients, 0.0)]


def test_one_round_is_exact_for_a_server_that_sees_who_is_in_a_sum() -> None:
    found = IncompleteSums(GAUSSIAN, 8, 0.1).epsilon(1.0, 1, 1e-5, "add_remove")
    assert found == pytest.approx(4.940, abs=1e-3)  # 4.377 of complete sums
    delta = sum(chance * gaussian_delta(found, math.sqrt(part)) for chance, part in patterns(8, 0.1) if part)
    assert delta == pytest.approx(1e-5, rel=1e-6)


def hidden_delta(epsilon: float) -> float:
    """Delta of one round of 8 clients, z = 1, for a server that sees how many are in a sum, and not who is."""
    # Of k clients any may be absent with probability 1 - k/8: a sample, which amplifies the privacy of its sum.
    inside = [(chance, part) for chance, part in patterns(8, 0.1) if part]
    return sum(
        chance * gaussian_delta(math.log1p(math.expm1(epsilon) * part), math.sqrt(part)) for chance, part in inside
    )


def test_one_round_is_bounded_for_a_server_that_sees_their_number_alone() -> None:
    assert hidden_delta(4.630) == pytest.approx(1e-5, rel=5e-3)
    found = IncompleteSums(GAUSSIAN, 8, 0.1).epsilon(1.0, 1, 1e-5, "add_remove")
    assert found is not None
    assert hidden_delta(found) < 0.4e-5


@pytest.mark.parametrize("dropout", [1e-4, 0.1, 0.5])
@pytest.mark.parametrize("rounds", [2, 100])
def test_sums_of_many_clients_are_accounted(rounds: int, dropout: float) -> None:
    found = IncompleteSums(GAUSSIAN, 1000, dropout).epsilon(1.0, rounds, 1e-5, "add_remove")
    assert found is not None
    assert (GAUSSIAN.epsilon(1.0, rounds, 1e-5, "add_remove") or 0) < found < rounds * 10


@pytest.mark.parametrize("adjacency", ADJACENCIES)
@pytest.mark.parametrize("dropout", [1e-9, 0.1, 0.6])
@pytest.mark.parametrize("z", [0.05, 1.0, 20.0])
def test_several_rounds_are_bounded(z: float, dropout: float, adjacency: Adjacency) -> None:
    found = IncompleteSums(GAUSSIAN, 5, dropout).epsilon(z, 3, 1e-5, adjacency)
    assert found is not None
    delta = sum(
        math.prod(chance for chance, _ in rounds)
        * gaussian_delta(found, (mu_of(z, 1, adjacency) or 0) * math.sqrt(sum(part for _, part in rounds)))
        for rounds in itertools.product(patterns(5, dropout), repeat=3)
        if any(part for _, part in rounds)
    )
    assert delta <= 1e-5
    assert found <= (gaussian_epsilon(mu_of(z / math.sqrt(5), 3, adjacency), 1e-5) or 0) * 1.3


def test_without_dropouts_it_is_nearly_that_of_complete_sums() -> None:
    sums = IncompleteSums(GAUSSIAN, 4, 1e-12)
    assert sums.epsilon(0.7, 1, 1e-5, "replace_one") == pytest.approx(GAUSSIAN.epsilon(0.7, 1, 1e-5, "replace_one"))
    complete = GAUSSIAN.epsilon(0.7, 20, 1e-5, "add_remove")
    assert complete is not None
    assert complete < (sums.epsilon(0.7, 20, 1e-5, "add_remove") or 0) < 1.1 * complete


def test_the_sums_of_a_round_lack_the_same_clients() -> None:
    epochs = IncompleteSums(GAUSSIAN, 8, 0.1, releases=4).epsilon(2.0, 4, 1e-5, "add_remove")
    assert epochs == IncompleteSums(GAUSSIAN, 8, 0.1).epsilon(1.0, 1, 1e-5, "add_remove")


def test_risks_follow_and_what_is_not_known_is_not_stated() -> None:
    sums = IncompleteSums(GAUSSIAN, 8, 0.3)
    assert sums.mu(1.0, 2, "add_remove") is None
    parts = patterns(8, 0.3)
    attack = sum(chance * gaussian_true_positive_rate(0.1, math.sqrt(part)) for chance, part in parts)
    gamma = sums.reconstruction_robustness(0.1, 1.0, 1)
    assert gamma is not None
    assert attack <= gamma < attack + 0.1
    apart = sum(chance * gaussian_advantage(math.sqrt(part)) for chance, part in parts)
    assert apart <= sums.membership_advantage(1.0, 1, "add_remove") < apart + 0.05
    for unknown in (IncompleteSums(Skellam(), 8, 0.3), IncompleteSums(GAUSSIAN, 8, 0.3, independent=False)):
        assert unknown.epsilon(1.0, 1, 1e-5, "add_remove") is None
        assert unknown.reconstruction_robustness(0.1, 1.0, 1) is None
        assert unknown.membership_advantage(1.0, 1, "add_remove") == 1.0
    assert sums.epsilon(0.0, 1, 1e-5, "add_remove") is None
