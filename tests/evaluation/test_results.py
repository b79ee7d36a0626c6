# SPDX-License-Identifier: Apache-2.0
"""The sections of `results.json` about the protection and its bounds."""

from statistics import NormalDist
from typing import Any

import pytest
import torch

from lightning_recon.evaluation.results import Record, bounds_record, privacy_record
from lightning_recon.exchange import BatchSampling, LocalTraining, Task
from lightning_recon.structure.local_weights import local_weights


def paper(**changes: object) -> Record:
    settings: dict[str, object] = {
        "granularity": "update",
        "per_layer": False,
        "max_grad_norm": 10.0,
        "noise_multiplier": 2e-4,
        "rounds": 1,
        "batch_size": 16,
        "delta": 1e-5,
        "adjacency": "add_remove",
    }
    return privacy_record(**(settings | changes))  # type: ignore[arg-type]


def test_the_paper_s_protection_as_documented() -> None:
    record = paper()
    assert record["epsilon_nominal"] == pytest.approx(10.0)
    assert record["epsilon_accounted"] == pytest.approx(1.25e7, rel=3e-3)
    assert record["mu"] == pytest.approx(5000.0)
    assert record["rero_gamma"] == {"0.1": 1.0}
    assert record["epsilon_by_adjacency"] == pytest.approx({"add_remove": 1.25e7, "replace_one": 5.0e7}, rel=3e-3)
    assert record["accountant"] == "gaussian-exact"


def test_the_robustness_bound_does_not_depend_on_the_stated_adjacency() -> None:
    one, other = paper(noise_multiplier=0.6), paper(noise_multiplier=0.6, adjacency="replace_one")
    assert one["rero_gamma"] == other["rero_gamma"]
    assert other["mu"] == pytest.approx(2 / 0.6)
    assert one["epsilon_by_adjacency"] == other["epsilon_by_adjacency"]
    for record in (one, other):
        assert record["epsilon_accounted"] == record["epsilon_by_adjacency"][record["adjacency"]]  # type: ignore[index]


@pytest.mark.parametrize("changes", [{"noise_multiplier": 0.0}, {"max_grad_norm": None}])
def test_no_epsilon_without_noise_or_clip(changes: dict[str, object]) -> None:
    record = paper(**changes)
    assert [record[key] for key in ("epsilon_nominal", "epsilon_accounted", "mu")] == [None, None, None]
    assert record["rero_gamma"] == {"0.1": None}
    assert (record["membership_advantage"], record["membership_tpr"]) == (1.0, {"0.01": 1.0, "0.001": 1.0})


def test_risks_of_membership_are_of_all_rounds_and_the_stated_adjacency() -> None:
    record = paper(noise_multiplier=2.0, rounds=4)
    assert record["membership_advantage"] == pytest.approx(2 * NormalDist().cdf(0.5) - 1)
    found = NormalDist().cdf(NormalDist().inv_cdf(0.01) + 1.0)
    assert record["membership_tpr"] == pytest.approx({"0.01": found, "0.001": 0.018298}, rel=1e-3)
    assert paper(noise_multiplier=4.0, rounds=4, adjacency="replace_one")["membership_tpr"] == record["membership_tpr"]


def test_the_epsilon_of_a_sum_and_of_each_client() -> None:
    alone, louder, quieter = (paper(noise_multiplier=z)["epsilon_accounted"] for z in (0.6, 1.2, 0.3))
    full, shared = (paper(noise_multiplier=0.6, aggregated=4, noise_share=share) for share in ("local", "distributed"))
    assert full["epsilon_accounted"] == shared["epsilon_accounted"] == alone
    assert (full["epsilon_of_one_client"], full["epsilon_of_sum"]) == (alone, louder)
    assert (shared["epsilon_of_one_client"], shared["epsilon_of_sum"]) == (quieter, alone)
    own = paper(noise_multiplier=0.6, adjacency="replace_one")
    assert own["epsilon_of_one_client"] == own["epsilon_of_sum"] == own["epsilon_accounted"] != alone


def test_the_epsilon_of_sums_counts_clients_that_drop_out() -> None:
    def of(share: str, **changes: object) -> dict[str, object]:
        return paper(noise_multiplier=1.0, aggregated=8, noise_share=share, client_dropout=0.1, **changes)

    shared, local = of("distributed"), of("local")
    assert (shared["epsilon_accounted"], shared["mu"]) == (pytest.approx(4.940, abs=1e-3), None)
    assert shared["epsilon_of_sum"] == shared["epsilon_accounted"]
    assert shared["accountant"] == "incomplete-sums"
    complete = paper(noise_multiplier=1.0, aggregated=8, noise_share="distributed")
    assert shared["epsilon_of_one_client"] == complete["epsilon_of_one_client"]
    # Local noise does not depend on the others, but that of the sum does.
    assert local["epsilon_accounted"] == complete["epsilon_accounted"]
    full = paper(noise_multiplier=1.0, aggregated=8)
    assert full["epsilon_of_sum"] < local["epsilon_of_sum"] < local["epsilon_accounted"]  # type: ignore[operator]
    for unknown in (of("distributed", noise_bands=2, rounds=2), of("distributed", mechanism="skellam")):
        assert (unknown["epsilon_accounted"], unknown["epsilon_nominal"]) == (None, None)
        assert (unknown["rero_gamma"], unknown["membership_advantage"]) == ({"0.1": None}, 1.0)


class Batch:
    """Three pictures of 16 x 16 whose subject is the middle half."""

    def __init__(self, seed: int) -> None:
        self.photographs = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        self.masks = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
        self.masks[..., 4:12, :] = True
        self.images = self.photographs * self.masks


@pytest.mark.parametrize(("rounds", "nats"), [(14, 70.0), (16, 80.0), (3, 50.0)])
def test_bounds_of_sampled_images_are_of_the_expected_rounds_which_are_no_whole_number(
    rounds: int, nats: float
) -> None:
    """Each round carries 50 nats; an image that is drawn at all is in one round at least."""
    sampling = BatchSampling("fixed_size", 10)
    task = Task((3, 16, 16), 10, 1, 1, "none", "sample", False, 1.0, 0.1, rounds, 3, sampling=sampling)
    found = bounds_record(
        [], noise_multiplier=0.1, granularity="sample", per_layer=False, rounds=task.expected_rounds, batch_size=1
    )
    assert found["channel_nats"] == pytest.approx(nats)


def test_the_noise_law_counts_the_noise_of_mini_batches_that_do_not_hold_an_image() -> None:
    """Of 6 epochs of DP-SGD in 3 mini-batches an image is in 6 sums, and its row has the noise of 18."""
    local = LocalTraining(epochs=6, batch_size=2, update="delta")
    task = Task((3, 16, 16), 10, 6, 1, "none", "sample", False, 1.0, 0.1, 1, 3, local=local)
    weights = local_weights(task)
    averaged = (weights.signal / weights.noise) ** 2
    assert averaged == pytest.approx(6 / 3)
    arguments: dict[str, Any] = {"noise_multiplier": 0.1, "granularity": "sample", "per_layer": False}
    found = bounds_record([Batch(0)], rounds=6, averaged=averaged, **arguments)  # type: ignore[list-item]
    two, six = (bounds_record([Batch(0)], rounds=count, **arguments) for count in (2, 6))  # type: ignore[list-item]
    for name in ("noise_law_psnr", "noise_law_psnr_p95"):
        assert found[name] == pytest.approx(two[name])
    for name in ("channel_nats", "unbiased_psnr", "gaussian_reference_psnr"):  # of all releases
        assert found[name] == six[name]
    nonlinear = bounds_record([Batch(0)], rounds=1, linear=False, **arguments)  # type: ignore[list-item]
    assert nonlinear["noise_law_psnr"] is None
    assert nonlinear["noise_law_psnr_p95"] is None


def test_no_noise_law_is_invented_for_per_layer_clipping() -> None:
    arguments = {"noise_multiplier": 0.1, "granularity": "sample", "rounds": 1}
    per_layer = bounds_record([Batch(0)], per_layer=True, **arguments)  # type: ignore[arg-type]
    whole = bounds_record([Batch(0)], per_layer=False, **arguments)  # type: ignore[arg-type]
    assert per_layer["noise_law_psnr"] is None
    assert per_layer["gaussian_reference_psnr"] == whole["gaussian_reference_psnr"]
    assert per_layer["channel_nats"] == whole["channel_nats"] == pytest.approx(50.0)
