# SPDX-License-Identifier: Apache-2.0
"""The channel code: nothing is lost above its stated need, nothing gets through below capacity, and ranks hold."""

import math

import pytest
import torch
from torch import Tensor

from lightning_recon.structure.coding import channel_code
from lightning_recon.structure.coding.channel_code import (
    LADDER,
    _groups,
    binary_capacity,
    decode,
    encode,
    message_bits,
    needed_snr,
)

INPUTS = 12_000


def detected(bits: Tensor, rung: int, snr: float) -> Tensor:
    """Beliefs about the codeword of a message after a channel of this signal-to-noise ratio."""
    noise = torch.randn(INPUTS, generator=torch.Generator().manual_seed(rung))
    received = math.sqrt(snr) * (1.0 - 2.0 * encode(bits, rung, INPUTS)) + noise
    return 2 * math.sqrt(snr) * received


def message(rung: int) -> Tensor:
    return torch.randint(0, 2, (message_bits(rung, INPUTS),), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rung", [0, 3, 7, 12, 15])
def test_a_message_gets_through_at_the_stated_need_and_not_below_capacity(rung: int) -> None:
    sent = message(rung)
    # A quarter of a decibel more than is needed nearly always.
    through = decode(detected(sent, rung, 1.06 * needed_snr(rung, INPUTS)), rung)
    assert through is not None
    assert torch.equal(through, sent)
    below = 10 ** ((LADDER[rung].capacity_db - 0.3) / 10)
    assert decode(detected(sent, rung, below), rung, iterations=50) is None


def test_capacities_are_those_of_binary_inputs() -> None:
    # Mutual information of ±1 in Gaussian noise, by Gauss-Hermite quadrature of E log2(1 + exp(-L)).
    points = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    density = torch.exp(-(points**2) / 2) / math.sqrt(2 * math.pi) * (points[1] - points[0])
    for rung in LADDER:
        snr = 10 ** (rung.capacity_db / 10)
        belief = 2 * snr + 2 * math.sqrt(snr) * points
        information = 1 - float((density * torch.nn.functional.softplus(-belief)).sum()) / math.log(2)
        assert information == pytest.approx(rung.rate, abs=0.004)
        assert binary_capacity(snr) == pytest.approx(information, abs=1e-6)
    assert (binary_capacity(0.0), binary_capacity(1e9)) == (0.0, 1.0)


@pytest.mark.parametrize("rung", [4, 11])
def test_giving_up_early_loses_no_message(rung: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = message(rung)
    # Around what half of such short codewords need: some get through, some do not.
    channels = [detected(sent, rung, gain * needed_snr(rung, INPUTS)) for gain in (0.9, 1.0)]
    early = [decode(beliefs, rung) is not None for beliefs in channels]
    monkeypatch.setattr(channel_code, "_PATIENCE", 200)
    assert early == [decode(beliefs, rung) is not None for beliefs in channels]
    assert early[-1]


def test_the_hopeless_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    beliefs, sweeps = detected(message(5), 5, 10 ** (LADDER[5].capacity_db / 10 - 0.1)), []
    ahead = channel_code._before
    monkeypatch.setattr(channel_code, "_before", lambda *about: (sweeps.append(about[2]), ahead(*about))[1])
    assert decode(beliefs, 5) is None
    assert sweeps.count(0) <= 100


@pytest.mark.parametrize("rung", range(len(LADDER)))
def test_groups_repeat_every_bit_and_hold_none_twice(rung: int) -> None:
    groups = _groups(rung, INPUTS)
    layers, size, lanes = groups.shape
    assert (layers * lanes, size) == (INPUTS - message_bits(rung, INPUTS), LADDER[rung].group)
    times = torch.bincount(groups.flatten(), minlength=message_bits(rung, INPUTS))
    assert int(times.min()) >= 3
    ordered = groups.sort(dim=1).values
    assert not bool((ordered[:, 1:] == ordered[:, :-1]).any())


def test_higher_rungs_carry_more_and_need_more() -> None:
    bits = [message_bits(rung, INPUTS) for rung in range(len(LADDER))]
    needs = [needed_snr(rung, INPUTS) for rung in range(len(LADDER))]
    assert bits == sorted(set(bits))
    assert needs == sorted(set(needs))
    assert needed_snr(3, 100 * INPUTS) < needed_snr(3, INPUTS)
