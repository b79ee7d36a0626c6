# SPDX-License-Identifier: Apache-2.0
"""Digital codes end to end: exact pictures, outage, collisions, and the choice of the rate against capacity."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, Task
from lightning_recon.image_format import rgb
from lightning_recon.structure import Digital, InferenceStructure, WaterFilling
from lightning_recon.structure.coding.channel_code import LADDER, decode_batch, message_bits, needed_snr
from lightning_recon.structure.coding.code_plan import (
    HEADER,
    WORTHWHILE,
    digital_plan,
    sketch_share,
)
from lightning_recon.structure.coding.modulation import word
from lightning_recon.structure.coding.near_codewords import neighbours
from lightning_recon.structure.detection import remaining_rows
from lightning_recon.structure.detection.successive_decoding import Reading, read_victims
from lightning_recon.structure.layer import structure_bytes
from lightning_recon.structure.layer_spec import LayerSpec, channel_code_name

Photographs = Callable[[int], Tensor]
# The direction of each of nine rows.
DIRECTIONS = torch.arange(3).repeat_interleave(3)


def assert_same_images(reading: Reading, images: Tensor) -> None:
    """Every image was received once, and nothing else."""
    assert len(reading.received) == len(images)
    read = torch.stack([one.image.float() / 255 for one in reading.received])
    assert bool(((read[:, None] == images).flatten(2).all(dim=2).sum(dim=0) == 1).all())


def small(photographs: Photographs, count: int, size: int = 32) -> Tensor:
    """Photographs of few pixels, in eight bits."""
    return (photographs(size)[:count] * 255).round() / 255


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_pictures_come_back_bit_for_bit_where_the_noise_is_low(
    photographs: Photographs, task: Callable[..., Task], release: Callable[..., ClientUpdate], granularity: str
) -> None:
    images = small(photographs, 3)
    announced = task(32, 3, 5e-4, granularity)
    structure = Digital(jpeg_xl=False)
    payload = structure.payload(announced)
    assert LayerSpec.of(payload).digital is not None
    decoded = structure.decode(payload, announced, release(payload, announced, images))
    assert decoded.evident
    assert decoded.unresolved == 0
    assert decoded.files is not None
    for file in decoded.files:
        assert file is not None
        assert file.codec == "webp"
        assert file.rate < 0.1 + 1e-3  # at which there is room for a raw image
        assert 0.69 * 24 * 32 * 32 < file.bits < file.capacity
    same = (decoded.images[:, None] == images).flatten(2).all(dim=2)
    assert same.sum(dim=0).tolist() == [1, 1, 1]


def test_a_codeword_mistaken_for_its_neighbour_is_corrected_by_its_checksum(
    photographs: Photographs,
    task: Callable[..., Task],
    release: Callable[..., ClientUpdate],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    announced, structure = task(32, 1, 0.01, "sample"), Digital()
    payload = structure.payload(announced)
    update = release(payload, announced, small(photographs, 1))
    right = structure.decode(payload, announced, update)
    assert right.files is not None
    assert right.files[0] is not None

    def mistaken(beliefs: Tensor, rung: int) -> list[Tensor]:
        found = decode_batch(beliefs, rung)
        return [next(neighbours(one, rung, beliefs.shape[1])) for one in found if one is not None]

    monkeypatch.setattr(remaining_rows, "decode_batch", mistaken)
    decoded = structure.decode(payload, announced, update)
    assert decoded.files == right.files
    assert torch.equal(decoded.images, right.images)


def test_a_noise_at_which_a_batch_would_not_be_told_apart_takes_the_linear_code(task: Callable[..., Task]) -> None:
    for granularity, alone, directions in (("update", 0.25, 3), ("sample", 1.0, None)):
        crowded, structure = task(32, 16, alone * 0.02, granularity), Digital(directions=directions)
        assert LayerSpec.of(structure.payload(crowded)).digital is None
        assert LayerSpec.of(structure.payload(replace(crowded, noise_multiplier=alone * 0.017))).digital is not None


def test_rows_of_their_own_need_no_limit_for_batches(
    photographs: Photographs, task: Callable[..., Task], release: Callable[..., ClientUpdate]
) -> None:
    images, announced, structure = small(photographs, 16), task(32, 16, 0.25 * 0.016, "update"), Digital()
    payload = structure.payload(announced)
    decoded = structure.decode(payload, announced, release(payload, announced, images))
    assert sum(file is not None for file in decoded.files or ()) >= 15
    errors = (decoded.images[:, None] - images).square().flatten(2).mean(dim=2).amin(dim=0)
    linear = WaterFilling()
    payload = linear.payload(announced)
    decoded = linear.decode(payload, announced, release(payload, announced, images))
    usual = (decoded.images[:, None] - images).square().flatten(2).mean(dim=2).amin(dim=0)
    assert float(errors.median()) < 0.5 * float(usual.median())


def test_more_images_than_announced_have_rows_of_their_own(
    photographs: Photographs, task: Callable[..., Task], release: Callable[..., ClientUpdate]
) -> None:
    images, announced, structure = small(photographs, 6), task(32, 4, 5e-4, "update"), Digital()
    payload = structure.payload(announced)
    decoded = structure.decode(payload, announced, release(payload, announced, images))
    same = (decoded.images[:, None] == images).flatten(2).all(dim=2)
    assert same.sum(dim=0).tolist() == [1] * 6


def test_the_upload_limit_decides_how_many_rows_are_spare(task: Callable[..., Task]) -> None:
    announced = task(32, 16, 5e-4, "update")
    for limit, units in ((123_000_000, 32), (6_000_000, 20)):
        payload = Digital(upload_limit=limit).payload(announced)
        assert LayerSpec.of(payload).own_units
        assert len(payload.tensors["lower"]) == units
        assert structure_bytes(payload) <= limit


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"directions": 3}, {}),
        ({"source_code": "tensor"}, {}),
        ({"units": 8}, {}),
        ({}, {"granularity": "sample"}),
        ({}, {"clients": 2, "aggregated": 2}),
        ({}, {"rounds": 2, "participation": 0.5}),
    ],
)
def test_images_collide_where_the_layer_must_treat_them_alike(
    task: Callable[..., Task], options: dict[str, Any], change: dict[str, Any]
) -> None:
    announced = task(32, 16, 5e-4, "update")
    assert LayerSpec.of(Digital().payload(announced)).own_units
    assert not LayerSpec.of(Digital(**options).payload(replace(announced, **change))).own_units


def test_sixteen_pictures_under_one_clip_are_told_apart_and_read(
    photographs: Photographs, task: Callable[..., Task], release: Callable[..., ClientUpdate]
) -> None:
    images, announced, structure = small(photographs, 16), task(32, 16, 2.5e-3, "update"), Digital()
    payload = structure.payload(announced)
    decoded = structure.decode(payload, announced, release(payload, announced, images))
    assert len(decoded.images) <= 16
    assert sum(file is not None for file in decoded.files or ()) >= 15
    errors = (decoded.images[:, None] - images).square().flatten(2).mean(dim=2).amin(dim=0)
    assert float(errors.median()) < 10**-2.6  # the linear code has 10^-2.2


def test_a_lost_codeword_leaves_the_sketch(
    photographs: Photographs, task: Callable[..., Task], release: Callable[..., ClientUpdate]
) -> None:
    images, structure = small(photographs, 1), Digital()
    announced = task(32, 1, 4e-3)
    payload = structure.payload(announced)
    arrived = structure.decode(payload, announced, release(payload, announced, images))
    exact = arrived.images
    assert arrived.files is not None
    assert arrived.files[0] is not None
    assert arrived.files[0].bits < arrived.files[0].capacity < math.log2(math.e) / (2 * announced.noise_multiplier**2)
    noisier = replace(announced, noise_multiplier=2 * announced.noise_multiplier)
    decoded = structure.decode(payload, noisier, release(payload, noisier, images))
    assert decoded.files == (None,)
    # It is what a linear code makes of so small a share of the power.
    factor = 1 / math.sqrt(sketch_share(announced.noise_multiplier))
    scaled = replace(noisier, noise_multiplier=factor * noisier.noise_multiplier)
    linear = WaterFilling(assumed_noise=factor * announced.noise_multiplier)
    alone = linear.payload(scaled)
    expected = linear.decode(alone, scaled, release(alone, scaled, images)).images
    lost, usual, none = (float((pictures - images).square().mean()) for pictures in (decoded.images, expected, exact))
    assert none < 0.1 * lost
    assert lost == pytest.approx(usual, rel=0.15)


@pytest.mark.parametrize(("noise", "digital"), [(1e-2, True), (5e-2, False)])
def test_a_linear_code_is_sent_where_it_is_better(task: Callable[..., Task], noise: float, digital: bool) -> None:
    announced = task(32, 1, noise)
    payload = Digital().payload(announced)
    assert (LayerSpec.of(payload).digital is not None) == digital
    assert channel_code_name(payload) == ("irregular repeat-accumulate" if digital else None)
    if not digital:
        assert payload.digest() == WaterFilling().payload(announced).digest()


@pytest.mark.parametrize(("mechanism", "noise", "order"), [("gaussian", 1e-2, 2), ("laplace", 1e-5, 1)])
def test_clipping_leaves_the_file_of_every_image_the_same_norm(
    photographs: Photographs, task: Callable[..., Task], mechanism: str, noise: float, order: int
) -> None:
    announced, structure = replace(task(32, 1, noise), mechanism=mechanism), Digital(jpeg_xl=False)
    payload, mean = structure.payload(announced), structure.statistics(announced).mean
    layer = InferenceStructure(payload)
    plan = layer.spec.digital
    assert plan is not None
    faint = torch.tensor([2.0, 1.0, 0.1, 0.0])[:, None, None, None] * (photographs(32)[:1] - mean)
    inputs = layer.encode(mean + faint)
    sent = len(payload.tensors["index"])
    share = inputs[:, sent : sent + plan.words].norm(order, dim=1) / inputs.norm(order, dim=1)
    torch.testing.assert_close(share, share[:1].expand(4), rtol=1e-4, atol=0)
    if order == 2:
        assert float(share[0]) == pytest.approx(math.sqrt(1 - plan.sketch), rel=1e-4)


def test_the_file_of_an_image_of_little_contrast_arrives(
    photographs: Photographs, task: Callable[..., Task], release: Callable[..., ClientUpdate]
) -> None:
    announced, structure = task(32, 1, 1e-2), Digital(jpeg_xl=False)
    payload, mean = structure.payload(announced), structure.statistics(announced).mean
    image = mean + 0.05 * (photographs(32)[:1] - mean)
    decoded = structure.decode(payload, announced, release(payload, announced, image))
    assert [file is not None for file in decoded.files or ()] == [True]


def test_a_codeword_is_tried_although_noise_hides_half_of_its_header(photographs: Photographs) -> None:
    plan, noise = digital_plan(0.02, rgb(32), 100_000, False, 0.2), 0.02
    assert plan is not None
    sent = word(photographs(32)[0], plan)
    # The header stands 3.3 standard deviations above the noise.
    sent[:HEADER] *= 3.3 * noise / math.sqrt(HEADER) / plan.header
    sent[HEADER:] += noise * torch.randn(plan.inputs, generator=torch.Generator().manual_seed(0))
    single = torch.ones(1, 1, dtype=torch.bool)
    reading = read_victims(sent[None], noise, single, torch.zeros(1, dtype=torch.int64), 1.0, plan, rgb(32), 1, 1)
    assert len(reading.received) == 1


def test_where_tensors_are_clipped_alone_the_linear_code_is_sent(task: Callable[..., Task]) -> None:
    announced = task(32, 1, 1e-3, per_layer=True)
    assert Digital().payload(announced).digest() == WaterFilling().payload(announced).digest()


@pytest.mark.parametrize("noise", [1e-3, 2e-3, 5e-3, 2e-2])
@pytest.mark.parametrize("shared", [False, True])
def test_the_rate_stays_below_capacity_and_near_it(noise: float, shared: bool) -> None:
    plan = digital_plan(noise, rgb(64), 300_000, shared, margin_db=0.2)
    assert plan is not None
    power = plan.amplitudes[plan.fair] ** 2 / noise**2
    assert power >= 10**0.02 * needed_snr(plan.fair, plan.inputs) * 0.999
    capacity = plan.inputs / 2 * math.log2(1 + power)
    sent = message_bits(plan.fair, plan.inputs)
    assert sent < capacity
    assert sent > 0.55 * capacity
    total = HEADER * plan.header**2 + plan.inputs * plan.amplitudes[plan.fair] ** 2 + plan.sketch
    assert total == pytest.approx(1)


def test_higher_rates_get_more_power_under_one_clip_and_too_expensive_ones_are_not_used() -> None:
    plan = digital_plan(1.5e-3, rgb(224), 400_000, shared=True, margin_db=0.2)
    assert plan is not None
    used = [amplitude for amplitude in plan.amplitudes if amplitude > 0]
    assert used == sorted(used)
    assert used[-1] ** 2 <= 2 * plan.amplitudes[plan.fair] ** 2
    assert len(used) < len(LADDER)
    assert digital_plan(1e-3, rgb(224), 0, shared=True, margin_db=0.2) is None


def test_where_the_highest_rate_makes_codewords_too_short_a_lower_one_is_used() -> None:
    plan = digital_plan(0.0435, rgb(16), 1_000_000, True, 0.2)
    assert plan is not None
    assert plan.inputs >= 1000
    assert digital_plan(0.0435, rgb(16), 900, True, 0.2) is None


def test_the_break_even_is_a_number_of_bits_a_pixel() -> None:
    assert digital_plan(0.035, rgb(64), 400_000, False, 0.2) is None
    plan = digital_plan(0.035, rgb(64), 400_000, False, 0.2, always_digital=True)
    assert plan is not None
    assert message_bits(plan.fair, plan.inputs) < WORTHWHILE * 64 * 64
    assert digital_plan(0.1, rgb(64), 400_000, False, 0.2, always_digital=True) is None  # too short for a code


def test_decoded_codewords_leave_nothing_behind(photographs: Photographs) -> None:
    plan = digital_plan(2e-3, rgb(32), 400_000, shared=True, margin_db=0.2)
    assert plan is not None
    words = torch.stack([word(image, plan) for image in small(photographs, 3)])
    noise = 2e-3 / math.sqrt(2)
    # Three directions of three units. The second victim shares two rows with the first, and nothing knows of the third.
    holds = torch.tensor(
        [[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    )
    rows = holds @ words + noise * torch.randn(9, words.shape[1])
    members = holds.T[:2].bool()
    reading = read_victims(rows, noise, members, DIRECTIONS, 1.0, plan, rgb(32), announced=3, victims=3)
    assert_same_images(reading, small(photographs, 3))
    assert not len(reading.rows_left)


def test_a_victim_whose_rows_were_mistaken_is_replaced_by_those_that_are_there(photographs: Photographs) -> None:
    plan = digital_plan(2e-3, rgb(32), 400_000, shared=True, margin_db=0.2)
    assert plan is not None
    noise = 2e-3 / math.sqrt(2)
    holds = torch.tensor([[1.0, 0], [0, 1], [0, 0], [1, 1], [0, 0], [0, 0], [1, 1], [0, 0], [0, 0]])
    words = torch.stack([word(image, plan) for image in small(photographs, 2)])
    rows = holds @ words + noise * torch.randn(9, words.shape[1])
    mistaken = torch.zeros(1, 9, dtype=torch.bool)
    mistaken[0, [2, 3, 6]] = True
    reading = read_victims(rows, noise, mistaken, DIRECTIONS, 1.0, plan, rgb(32), announced=4, victims=4)
    assert_same_images(reading, small(photographs, 2))
    assert not len(reading.rows_left)


@pytest.mark.parametrize(("strength", "kept"), [(0.4, [1, 4, 8]), (0.0, [])])
def test_a_codeword_that_does_not_come_through_keeps_its_rows(
    photographs: Photographs, strength: float, kept: list[int]
) -> None:
    plan = digital_plan(2e-3, rgb(32), 400_000, shared=True, margin_db=0.2)
    assert plan is not None
    noise = 2e-3 * math.sqrt(3)  # over three rows, what the code is made for
    words = torch.stack([word(image, plan) for image in small(photographs, 2)])
    holds = torch.zeros(9, 2)
    holds[[0, 3, 6], 0], holds[[1, 4, 8], 1] = 1.0, strength
    rows = holds @ words + noise * torch.randn(9, HEADER + plan.inputs)
    nothing = torch.zeros(0, 9, dtype=torch.bool)
    reading = read_victims(rows, noise, nothing, DIRECTIONS, 1.0, plan, rgb(32), announced=3, victims=6)
    assert_same_images(reading, small(photographs, 1))
    assert torch.nonzero(reading.rows_left)[:, 1].tolist() == kept


def test_noise_above_the_announced_one_makes_no_more_victims(photographs: Photographs) -> None:
    plan = digital_plan(2e-3, rgb(32), 400_000, shared=True, margin_db=0.8)
    assert plan is not None
    images, noise = small(photographs, 2), 2e-3
    rows = torch.zeros(5, HEADER + plan.inputs)
    rows[:2] = torch.stack([word(image, plan) for image in images])
    rows += 1.05 * noise * torch.randn_like(rows)
    # Two rows of noise look like victims, too.
    alone, own = torch.eye(4, 5, dtype=torch.bool), torch.zeros(5, dtype=torch.int64)
    reading = read_victims(rows, noise, alone, own, 1.0, plan, rgb(32), announced=2, victims=4)
    assert_same_images(reading, images)
    assert not len(reading.rows_left)


def test_rows_that_hold_one_victim_are_found_beside_collisions(photographs: Photographs) -> None:
    plan = digital_plan(1e-3, rgb(32), 400_000, shared=True, margin_db=0.2)
    assert plan is not None
    images = small(photographs, 3)
    holds = torch.tensor([[1.0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]])
    words = holds @ torch.stack([word(image, plan) for image in images])
    rows = words + 1e-3 / math.sqrt(2) * torch.randn(4, words.shape[1])
    nothing, directions = torch.zeros(0, 4, dtype=torch.bool), torch.tensor([0, 0, 1, 1])
    reading = read_victims(rows, 1e-3 / math.sqrt(2), nothing, directions, 1.0, plan, rgb(32), announced=3, victims=3)
    assert_same_images(reading, images)


def test_payloads_of_another_code_are_refused(task: Callable[..., Task]) -> None:
    payload = Digital().payload(task(32, 1, 1e-2))
    older = replace(payload, settings={**payload.settings, "digital_code": 1})
    with pytest.raises(UserError, match="another digital code"):
        LayerSpec.of(older)


def test_codewords_of_short_files_are_not_correlated(photographs: Photographs) -> None:
    plan = digital_plan(2e-4, rgb(24), 400_000, shared=True, margin_db=0.2)
    assert plan is not None
    images = (0.1 * small(photographs, 4, 24) * 255).round() / 255  # files of a fraction of what the code takes
    codewords = torch.stack([word(image, plan)[HEADER:] for image in images])
    assert float(torch.corrcoef(codewords).fill_diagonal_(0).abs().max()) < 6 / math.sqrt(plan.inputs)


def test_empty_rows_hold_nothing(photographs: Photographs) -> None:
    plan = digital_plan(5e-3, rgb(32), 400_000, shared=False, margin_db=0.2)
    assert plan is not None
    rows = 5e-3 * torch.randn(4, HEADER + plan.inputs)
    nothing = torch.zeros(0, 4, dtype=torch.bool)
    for directions in (torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1])):
        reading = read_victims(rows, 5e-3, nothing, directions, 1.0, plan, rgb(32), announced=2, victims=2)
        assert not reading.received
        assert not len(reading.rows_left)


def test_the_encoder_runs_under_vmap(photographs: Photographs, task: Callable[..., Task]) -> None:
    images = small(photographs, 2)
    layer = InferenceStructure(Digital().payload(task(32, 2, 1e-2)))
    weights = {"weight": layer.weight.detach()}

    def message(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(layer, parameters, (image[None],))[0, 0]

    mapped = vmap(grad(message), in_dims=(None, 0))(weights, images)["weight"]
    for image, gradient in zip(images, mapped, strict=True):
        torch.testing.assert_close(grad(message)(weights, image)["weight"], gradient)


def test_the_upload_is_kept(task: Callable[..., Task]) -> None:
    payload = Digital(upload_limit=20_000_000).payload(task(64, 8, 1e-4, "update"))
    assert LayerSpec.of(payload).digital is not None
    assert 19_000_000 < structure_bytes(payload) <= 20_000_000


def test_two_victims_that_share_all_rows_are_no_image(photographs: Photographs) -> None:
    plan = digital_plan(2e-3, rgb(32), 400_000, shared=True, margin_db=0.2)
    assert plan is not None
    noise = 2e-3
    words = torch.stack([word(image, plan) for image in small(photographs, 3)])
    holds = torch.zeros(9, 3)
    holds[[0, 3, 6], 0] = 1.0
    holds[[1, 4, 8], 1:] = 1.0
    rows = holds @ words + noise * torch.randn(9, HEADER + plan.inputs)
    nothing = torch.zeros(0, 9, dtype=torch.bool)
    reading = read_victims(rows, noise, nothing, DIRECTIONS, 1.0, plan, rgb(32), announced=3, victims=6)
    assert_same_images(reading, small(photographs, 1))
    assert not len(reading.rows_left)
