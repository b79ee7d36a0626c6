# SPDX-License-Identifier: Apache-2.0
"""Each exhibit of the museum is found and named, and correct clients raise no alarm."""

import pytest
import torch
from torch import nn

from lightning_recon.api import verify
from lightning_recon.verification.report import Verification
from tests.verification.museum import (
    EXHIBITS,
    SHAPE,
    SUM,
    UPDATE,
    Correct,
    Exhibit,
    Net,
    correct_claims,
    dp_sgd,
    local_dp,
)

CLAIMS = correct_claims()


@pytest.fixture(autouse=True)
def reproducible() -> None:
    """The clients of the museum draw their noise from torch's generator."""
    torch.manual_seed(1)


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_every_exhibit_is_found_and_named(exhibit: Exhibit) -> None:
    found = verify(exhibit.client(), exhibit.network(), exhibit.claims, SHAPE, second_client=exhibit.client, releases=8)
    refuted = {line.check.name: line.check.remark for line in found.refuted}
    assert set(exhibit.refuted) <= refuted.keys()
    assert exhibit.remark in refuted[exhibit.refuted[0]]


def verified(number: int, releases: int) -> Verification:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    deep = nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.Tanh(), nn.Linear(20, 3))
    claims = CLAIMS[number]
    client = Correct(claims)
    network = (Net(), linear, deep)[number % 3]
    return verify(client, network, claims, SHAPE, second_client=lambda: client, releases=releases)


@pytest.mark.parametrize("number", [0, 4, 9, 11, 26])
def test_correct_clients_raise_no_alarm(number: int) -> None:
    assert verified(number, 8).refuted == ()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(50))
def test_fifty_correct_clients_raise_no_alarm(number: int) -> None:
    assert verified(number, 16).refuted == ()


def test_the_correct_parts_of_the_museum_are_correct() -> None:
    assert verify(dp_sgd, Net(), SUM, SHAPE, releases=8).holds
    assert verify(local_dp, Net(), UPDATE, SHAPE, releases=8).holds
