# SPDX-License-Identifier: Apache-2.0
"""The bound on identification is of the accounted mechanism, as `rero_gamma` is, and no attack exceeds it."""

import math
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from lightning_recon.audit.run import recorded_epsilon
from lightning_recon.callbacks.identification import success_bound
from lightning_recon.evaluation.results import privacy_record
from lightning_recon.exchange import NoiseShare, Task
from lightning_recon.privacy.adaptive_clipping import AdaptiveClip
from lightning_recon.privacy.risk import gaussian_true_positive_rate

COMPLETE = Task((3, 16, 16), 10, 1, 8, "none", "sample", False, 1.0, 1.0, 1, 3, 8, "distributed")
DROPPING = replace(COMPLETE, client_dropout=0.8)


def test_no_attack_on_sums_that_clients_drop_out_of_exceeds_the_bound() -> None:
    # The most powerful test at a false-positive rate of 0.001; the server sees k of the 8 clients.
    chances = [0.2 * float(stats.binom.pmf(others, 7, 0.2)) for others in range(8)]
    chances[0] += 0.8**8 / 8
    powers = [gaussian_true_positive_rate(0.001, math.sqrt(8 / (others + 1))) for others in range(8)]
    attack = sum(chance * power for chance, power in zip(chances, powers, strict=True)) + (1 - sum(chances)) * 0.001
    assert attack == pytest.approx(0.041, abs=1e-3)
    bound, complete = success_bound(DROPPING, 0.001), success_bound(COMPLETE, 0.001)
    assert bound is not None
    assert complete is not None
    assert complete < attack < bound < 2 * attack


@pytest.mark.parametrize(
    "changes",
    [{"mechanism": "skellam"}, {"noise_bands": 2, "rounds": 2}, {"adaptive_clip": AdaptiveClip(), "rounds": 2}],
)
def test_no_bound_is_stated_where_none_is_known(changes: dict[str, Any]) -> None:
    assert success_bound(replace(DROPPING, **changes), 0.1) is None
    assert success_bound(replace(DROPPING, **changes), 1.0) == 1.0


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("share", ["local", "distributed"])
@pytest.mark.parametrize("bands", [1, 2])
def test_bound_and_record_are_of_the_same_mechanism(share: NoiseShare, rounds: int, dropout: float, bands: int) -> None:
    task = replace(DROPPING, noise_share=share, rounds=rounds, noise_bands=bands, client_dropout=dropout)
    names = ("granularity", "per_layer", "max_grad_norm", "noise_multiplier", "rounds", "batch_size", "aggregated")
    settings: dict[str, Any] = {name: getattr(task, name) for name in names}
    settings |= {"noise_share": share, "noise_bands": bands, "client_dropout": dropout}
    record = privacy_record(**settings, delta=1e-5, adjacency="add_remove")
    bound = success_bound(task, 0.1)
    assert record["rero_gamma"] == {"0.1": bound}
    known = bands == 1 or rounds == 1 or share == "local" or dropout == 0
    assert (bound is not None) is known
    assert (record["epsilon_accounted"] is not None) is known
    assert recorded_epsilon(record, 1.0, rounds, "add_remove") == record["epsilon_accounted"]
