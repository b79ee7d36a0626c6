# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals agree with scipy's, and cover the true mean as often as they say."""

import numpy as np
import pytest
from scipy import stats

from lightning_recon.evaluation.uncertainty import bootstrap_interval


def test_the_interval_is_that_of_the_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).gamma(2.0, 5.0, size=30)
    low, high = bootstrap_interval({number: [value] for number, value in enumerate(values)})
    reference = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, vectorized=True)
    assert low == pytest.approx(reference.confidence_interval.low, rel=0.02)
    assert high == pytest.approx(reference.confidence_interval.high, rel=0.02)


def test_it_covers_the_mean() -> None:
    samples = np.random.default_rng(2).normal(10.0, 3.0, size=(200, 40))
    covered = 0
    for sample in samples:
        low, high = bootstrap_interval(dict(enumerate(sample[:, None])))
        assert low is not None
        assert high is not None
        covered += low < 10.0 < high
    assert 0.88 * len(samples) <= covered <= 0.99 * len(samples)


def test_draws_of_one_image_count_once() -> None:
    once = bootstrap_interval({0: [1.0], 1: [2.0], 2: [6.0]})
    assert bootstrap_interval({0: [0.5, 1.5], 1: [2.0, 2.0], 2: [6.0]}) == once
    assert once == bootstrap_interval({0: [1.0], 1: [2.0], 2: [6.0]})


def test_one_image_has_no_interval_and_equal_images_an_empty_one() -> None:
    assert bootstrap_interval({0: [1.0, 2.0]}) == (None, None)
    assert bootstrap_interval({0: [3.0], 1: [3.0]}) == (3.0, 3.0)
