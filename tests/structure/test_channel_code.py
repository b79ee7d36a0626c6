# SPDX-License-Identifier: Apache-2.0
"""The channel code: nothing is lost above its stated need, nothing gets through below capacity, and ranks hold."""

import hashlib
import math

import pytest
import torch
from torch import Tensor

from lightning_recon.structure.coding import belief_propagation
from lightning_recon.structure.coding.channel_code import (
    LADDER,
    _groups,
    binary_capacity,
    decode,
    decode_batch,
    encode,
    message_bits,
    needed_snr,
)

INPUTS = 12_000
# Digests of codewords of rungs 0 and 9, as version 3 of the code sends them.
CODEWORDS = ["0bf116978eeb4994", "8d3c83f6eb4d07a1"]


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


def test_a_short_message_is_not_taken_for_its_complement() -> None:
    # Parities of two bits do not tell them apart, and belief propagation took two of these codewords for it.
    generator = torch.Generator().manual_seed(7)
    sent = torch.randint(2, (50, message_bits(0, 2400)), generator=generator)
    codewords = torch.stack([1.0 - 2.0 * encode(one, 0, 2400) for one in sent])
    parities = encode(sent[0], 0, 2400)[sent.shape[1] :]
    assert torch.equal(encode(1 - sent[0], 0, 2400)[sent.shape[1] :], parities)
    snr = needed_snr(0, 2400)
    received = codewords + torch.randn(codewords.shape, generator=generator) / math.sqrt(snr)
    found = decode_batch(2 * snr * received, 0)
    assert all(one is not None and torch.equal(one, other) for one, other in zip(found, sent, strict=True))


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
    monkeypatch.setattr(belief_propagation, "_PATIENCE", 300)
    assert early == [decode(beliefs, rung) is not None for beliefs in channels]
    assert early[-1]


def test_the_hopeless_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    beliefs, sweeps = detected(message(5), 5, 10 ** (LADDER[5].capacity_db / 10 - 0.1)), []
    sweep = belief_propagation._State.sweep
    monkeypatch.setattr(
        belief_propagation._State, "sweep", lambda *about, **how: (sweeps.append(how), sweep(*about, **how))[1]
    )
    assert decode(beliefs, 5) is None
    assert 25 <= len(sweeps) <= 140


def test_damped_sweeps_end_oscillations(monkeypatch: pytest.MonkeyPatch) -> None:
    rung, inputs, channels = 2, 4000, []
    snr = needed_snr(rung, inputs)
    # Among these are messages that only damping brings to an end, on the machine where they were chosen.
    for seed in (135, 210, 300, *range(400, 412)):
        generator = torch.Generator().manual_seed(seed)
        sent = torch.randint(2, (message_bits(rung, inputs),), generator=generator)
        received = 1 - 2 * encode(sent, rung, inputs) + torch.randn(inputs, generator=generator) / math.sqrt(snr)
        channels.append((sent, 2 * snr * received))

    def lost() -> int:
        decoded = [(sent, decode(beliefs, rung)) for sent, beliefs in channels]
        return sum(found is None or not torch.equal(found, sent) for sent, found in decoded)

    damped = lost()
    monkeypatch.setattr(belief_propagation, "_DAMPING", 0.0)
    assert damped < lost()


def plain_decode(beliefs: Tensor, rung: int) -> Tensor | None:
    """Belief propagation as textbooks have it, by flooding: slow, but independent of layers, views and theorems."""
    groups = _groups(rung, len(beliefs)).long()
    parities = groups.shape[0] * groups.shape[2]
    messages = len(beliefs) - parities
    sums = torch.arange(messages, len(beliefs))
    # Every parity holds its group, its running sum, and the one before; the first has none, for which a sure 0 stands.
    before = torch.cat([torch.tensor([len(beliefs)]), sums[:-1]])
    edges = torch.cat([groups.permute(2, 0, 1).reshape(parities, -1), sums[:, None], before[:, None]], dim=1)
    own = torch.cat([beliefs, torch.tensor([100.0])]).double()
    sent = torch.zeros(edges.shape, dtype=torch.float64)
    for _ in range(150):
        total = own.index_add(0, edges.flatten(), sent.flatten())
        bits = (total < 0).long()
        if not bool((bits[edges].sum(dim=1) % 2).any()):
            return bits[:messages]
        factors = ((total[edges] - sent) / 2).tanh()
        factors = torch.where(factors.abs() < 1e-12, 1e-12, factors)
        others = factors.prod(dim=1, keepdim=True) / factors
        sent = 2 * others.clamp(-1 + 1e-12, 1 - 1e-12).atanh()
    return None


@pytest.mark.parametrize("rung", [0, 2, 7, 12, 15])
def test_what_arrives_is_what_plain_belief_propagation_decodes(rung: int) -> None:
    sent, arrived = message(rung), []
    # Far below capacity, around what half of such codewords need, and above what nearly all need.
    for gain in (0.7, 1.0, 1.1):
        beliefs = detected(sent, rung, gain * needed_snr(rung, INPUTS))
        plain, ours = plain_decode(beliefs, rung), decode(beliefs, rung)
        assert (plain is None) == (ours is None)
        arrived.append(ours is not None)
        assert ours is None or torch.equal(ours, sent)
    assert (arrived[0], arrived[-1]) == (False, True)


@pytest.mark.parametrize("rung", range(len(LADDER)))
def test_a_batch_is_decoded_as_its_codewords_alone(rung: int) -> None:
    gains, sent = (1.3, 0.7, 1.06, 1.15), message(rung)
    beliefs = torch.stack([detected(sent, rung, gain * needed_snr(rung, INPUTS)) for gain in gains])
    beliefs[2, ::97] = 0.0  # inputs that did not arrive
    together = decode_batch(beliefs, rung)
    for one, gain, alone in zip(together, gains, beliefs, strict=True):
        single = decode(alone, rung)
        assert (one is None) == (single is None) == (gain < 1)
        assert one is None or torch.equal(one, sent)


def test_codewords_stay_as_they_are() -> None:
    codewords = [encode(message(rung), rung, INPUTS).to(torch.uint8).numpy() for rung in (0, 9)]
    assert [hashlib.sha256(one).hexdigest()[:16] for one in codewords] == CODEWORDS


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
