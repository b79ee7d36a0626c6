# SPDX-License-Identifier: Apache-2.0
"""Neighbouring codewords are the nearest ones, and a message is received once although neighbours are tried."""

import itertools

import pytest
import torch
from torch import Tensor

from lightning_recon.image_format import rgb
from lightning_recon.structure.coding import messages
from lightning_recon.structure.coding.channel_code import LADDER, encode, message_bits, parity_groups
from lightning_recon.structure.coding.code_plan import HEADER, digital_plan
from lightning_recon.structure.coding.near_codewords import neighbours
from lightning_recon.structure.detection import remaining_rows
from lightning_recon.structure.detection.remaining_rows import Filter, RemainingRows


def a_message(rung: int, inputs: int) -> Tensor:
    return torch.randint(2, (message_bits(rung, inputs),), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("rung", "inputs"), [(0, 2000), (0, 3000), (4, 2000)])
def test_neighbours_are_the_nearest_pairs_of_bits_of_the_lowest_degree(rung: int, inputs: int) -> None:
    sent = a_message(rung, inputs)
    parities = encode(sent, rung, inputs)[len(sent) :]
    degrees = torch.bincount(parity_groups(rung, inputs).flatten())
    low = torch.nonzero(degrees == min(LADDER[rung].repetitions)).flatten().tolist()
    # Flipping bits adds the codewords of the flipped bits, because the code is linear.
    single = torch.stack([encode(one, rung, inputs)[len(sent) :] for one in torch.eye(len(sent), dtype=torch.int64)])
    distances = {pair: int((single[pair[0]] != single[pair[1]]).sum()) for pair in itertools.combinations(low, 2)}
    expected = sorted(distance for distance in distances.values() if distance < 40)[:32]
    found = list(neighbours(sent, rung, inputs))
    assert all(int((one != sent).sum()) == 2 for one in found)
    assert [int((encode(one, rung, inputs)[len(sent) :] != parities).sum()) for one in found] == expected


def test_there_are_short_codes_with_neighbours() -> None:
    assert sum(len(list(neighbours(a_message(0, inputs), 0, inputs))) for inputs in (2000, 9000, 15_000)) > 0


def test_long_codes_have_no_neighbours_to_try() -> None:
    assert not list(neighbours(a_message(9, 30_000), 9, 30_000))


def test_a_received_victim_is_not_received_again_as_the_neighbour_of_its_neighbour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = digital_plan(0.01, rgb(32), 60_000, False, 0.1)
    assert plan is not None
    rung = plan.fair
    sent, other = a_message(rung, plan.inputs), torch.zeros(message_bits(rung, plan.inputs), dtype=torch.int64)
    near = sent.clone()
    near[:2] ^= 1
    # Both messages have the other one as their neighbour, and only one of them passes its checksum.
    monkeypatch.setattr(messages, "neighbours", lambda bits, rung, inputs: [sent if torch.equal(bits, near) else near])
    monkeypatch.setattr(messages, "image_of", lambda bits, *about: (other, "avif") if torch.equal(bits, sent) else None)
    monkeypatch.setattr(remaining_rows, "decode_batch", lambda beliefs, rung: [sent, near][: len(beliefs)])
    rows = torch.randn(2, HEADER + plan.inputs, generator=torch.Generator().manual_seed(0))
    remaining = RemainingRows(rows, 0.1, torch.zeros(2, dtype=torch.int64), plan, rgb(32))
    same = Filter(torch.tensor([1.0, 0.0], dtype=torch.float64), 1.0, 1.0, rung, 1.0)
    first, second = remaining.receive([same, same])
    assert first is not None
    assert second is None
    assert len(remaining.messages) == 1
    monkeypatch.setattr(remaining_rows, "decode_batch", lambda beliefs, rung: [near])
    fresh = RemainingRows(rows, 0.1, torch.zeros(2, dtype=torch.int64), plan, rgb(32))
    assert fresh.receive([same])[0] is not None
    assert torch.equal(fresh.messages[0], sent)
