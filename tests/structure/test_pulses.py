# SPDX-License-Identifier: Apache-2.0
"""Pulses: codewords whose places carry bits, for updates of which only the largest entries arrive."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_recon.exchange import Compression
from lightning_recon.image_format import rgb
from lightning_recon.structure import Digital
from lightning_recon.structure.coding.channel_code import message_bits
from lightning_recon.structure.coding.code_plan import HEADER
from lightning_recon.structure.coding.pulses import pulse_beliefs, pulse_capacity, pulses, pulses_of
from lightning_recon.structure.coding.sign_channel import SignChannel
from lightning_recon.structure.coding.sign_plan import sign_layout
from lightning_recon.structure.detection.pulse_decoding import _amplitude_and_noise
from lightning_recon.structure.layer_spec import LayerSpec
from tests.structure.test_signs import announced, exact, trained

Photographs = Callable[[int], Tensor]


def bits_of_kept_entries(kept: int, entries: int) -> float:
    """Bits that the choice and the signs of the kept entries carry at most."""
    choose = math.lgamma(entries + 1) - math.lgamma(kept + 1) - math.lgamma(entries - kept + 1)
    return choose / math.log(2) + kept


@pytest.mark.parametrize("positions", [1, 2, 16])
def test_one_input_of_each_pulse_is_a_sign_and_all_bits_come_back(positions: int) -> None:
    codeword = torch.randint(2, (101,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    sent = pulses(codeword, positions)
    assert len(sent) == pulses_of(101, positions) * positions
    assert bool((sent.view(-1, positions).abs().sum(dim=1) == 1).all())
    for amplitude in (3.0, -3.0):
        beliefs = pulse_beliefs(amplitude * sent, amplitude, 0.5, 1.0, positions, 101)
        assert torch.equal(beliefs.sign(), codeword)


def test_beliefs_are_calibrated_where_pulses_and_noise_fall_below_the_threshold() -> None:
    generator, positions, threshold = torch.Generator().manual_seed(0), 4, 1.5
    codeword = torch.randint(2, (30_000,), generator=generator) * 2.0 - 1
    received = 2.0 * pulses(codeword, positions)
    received += torch.randn(len(received), generator=generator)
    received = torch.where(received.abs() >= threshold, received, 0.0)
    beliefs = pulse_beliefs(received, 2.0, 1.0, threshold, positions, len(codeword))
    for low, high in ((-4.0, -2.0), (-0.5, 0.5), (1.0, 3.0)):
        inside = (beliefs >= low) & (beliefs < high)
        expected = float(torch.sigmoid(beliefs[inside]).mean())
        assert float((codeword[inside] > 0).double().mean()) == pytest.approx(expected, abs=0.02)


def test_places_carry_more_than_signs_and_less_than_there_is() -> None:
    assert pulse_capacity(8.0, 2.5, 16) > 0.99
    assert pulse_capacity(2.0, 2.5, 16) < pulse_capacity(3.0, 2.5, 16) < pulse_capacity(4.0, 2.5, 16)
    entries, pixels, room = 11_200_000, 64 * 64, 30_750_000
    channel = SignChannel(2e-4, 16, method="largest", share=0.01, entries=entries)
    signs = sign_layout(channel, 16, rgb(64), room, 320, 0.2)
    layout = sign_layout(channel, 16, rgb(64), room, 320, 0.2, apart=True)
    assert signs is not None
    assert layout is not None
    assert layout.plan is not None
    assert layout.plan.positions > 1
    assert layout.quality > signs.quality + 30
    kept = (entries + layout.units * layout.inputs) // 100
    capacity = bits_of_kept_entries(kept, layout.units * layout.inputs)
    assert 16 * message_bits(layout.plan.fair, layout.plan.inputs) < capacity
    assert kept < 16 * 13.3 * pixels  # their signs alone carry no lossless files of the usual size


def test_files_survive_when_one_entry_of_a_hundred_arrives(photographs: Photographs) -> None:
    images = (photographs(16)[:4] * 255).round() / 255
    task = announced(4, 1e-4, compression=Compression("top_k", share=0.02))
    structure = Digital(upload_limit=6_000_000)
    payload = structure.payload(task)
    plan = LayerSpec.of(payload).digital
    assert plan is not None
    assert plan.positions > 1
    update = trained(payload, task, images)
    decoded = structure.decode(payload, task, update)
    assert exact(images, decoded.images) == 4
    lost = {name: torch.where(torch.rand(tensor.shape) < 0.3, tensor, 0) for name, tensor in update.gradient.items()}
    nothing = structure.decode(payload, task, type(update)(**{**vars(update), "gradient": lost}))
    assert exact(images, nothing.images) == 0


def test_amplitude_and_noise_of_what_exceeds_a_threshold() -> None:
    """The mean of what arrived would be too large, and its spread too small."""
    generator, amplitude, noise, threshold = torch.Generator().manual_seed(3), 5.6e-4, 2e-4, 4.2e-4
    codeword = torch.randint(2, (30_000,), generator=generator) * 2.0 - 1
    sent = torch.cat([amplitude * torch.ones(HEADER), amplitude * pulses(codeword, 4)])
    received = sent + noise * torch.randn(len(sent), generator=generator)
    received = torch.where(received.abs() >= threshold, received, 0.0)
    found = _amplitude_and_noise(received[:HEADER], received[HEADER:], threshold, 4)
    assert found == pytest.approx((amplitude, noise), rel=0.1)
    arrived = received[:HEADER][received[:HEADER] != 0]
    assert float(arrived.mean()) > 1.1 * amplitude
    assert float(arrived.std()) < 0.9 * noise
