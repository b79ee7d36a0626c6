# SPDX-License-Identifier: Apache-2.0
"""Codes of ±1: movements, dithers, layouts, and clients that run Adam or compress what they send."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.exchange import Compression, LocalTraining, ServerPayload
from lightning_recon.exchange.local_training import ADAMW
from lightning_recon.image_format import rgb
from lightning_recon.structure import Digital, WaterFilling
from lightning_recon.structure.coding.channel_code import LADDER
from lightning_recon.structure.coding.code_plan import HEADER, Plan
from lightning_recon.structure.coding.dither import decode_dithered, dithered_signs, dithers, repetitions
from lightning_recon.structure.coding.expected_quality import expected_losses
from lightning_recon.structure.coding.movement import movements, scale_free
from lightning_recon.structure.coding.sign_channel import (
    SignChannel,
    capacity_of,
    censored_capacity,
    kept_threshold,
    repeated_capacity,
    sign_capacity,
)
from lightning_recon.structure.coding.sign_plan import PILOTS, sign_layout
from lightning_recon.structure.detection.sign_decoding import _Remaining
from lightning_recon.structure.layer import InferenceStructure, structure_bytes
from lightning_recon.structure.layer_spec import LayerSpec
from lightning_recon.structure.sign_payload import sign_channel
from tests.structure.sign_clients import CLASSES, SIDE, adam, announced, averaged, exact, trained

Photographs = Callable[[int], Tensor]


@pytest.fixture
def images(photographs: Photographs) -> Tensor:
    return (photographs(SIDE)[:4] * 255).round() / 255


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RMSprop", "Adagrad"])
def test_movements_are_those_of_training_whatever_the_magnitude(name: str) -> None:
    local = LocalTraining(epochs=2, batch_size=2, optimizer=f"torch.optim.{name.lower()}.{name}", update="delta",
                          learning_rates=(0.1, 0.05))  # fmt: skip
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = getattr(torch.optim, name)([weights], lr=0.1)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = local.learning_rate(step)
        weights.grad = torch.zeros_like(weights)
        weights.grad[step % 3] = -20.0 * 3 ** (step % 3)
        optimizer.step()
    assert scale_free(local)
    torch.testing.assert_close(movements(local, 6), weights.detach(), rtol=1e-4, atol=0)


def test_a_first_adam_step_at_step_t_has_its_bias_corrections() -> None:
    moved = movements(adam(steps=4), 4)
    for first in range(1, 5):
        total = sum(
            0.1 * 0.9**late / (1 - 0.9**step) / math.sqrt(0.001 * 0.999**late / (1 - 0.999**step))
            for late, step in enumerate(range(first, 5))
        )
        assert float(moved[first - 1]) == pytest.approx(1e-3 * total, rel=1e-6)


def test_sgd_and_unknown_optimizers_send_no_signs() -> None:
    assert not scale_free(LocalTraining())
    assert not scale_free(LocalTraining(optimizer="of.their.own.Optimizer"))
    assert sign_channel(announced(4, 1e-4), 1e-4) is None


def test_the_weights_of_the_network_count_where_they_move() -> None:
    detached = sign_channel(announced(4, 1e-4, local=adam()), 1e-4)
    moving = sign_channel(announced(4, 1e-4, local=adam()), 1e-4, detach_logits=False)
    assert detached is not None
    assert moving is not None
    assert (detached.moved, moving.moved) == (0, announced(4, 1e-4).parameters)
    decaying = replace(adam(), options={"weight_decay": 0.01})
    channel = sign_channel(announced(4, 1e-4, local=decaying), 1e-4)
    assert channel is not None
    assert channel.moved == moving.moved  # the decay is a gradient, whose sign moves a weight


def test_dithered_signs_are_linear_on_average() -> None:
    value, repeats = torch.tensor([0.7, -0.31, 0.02]), torch.full((3,), 20_000)
    coefficient, dither = dithers(repeats)
    signs = dithered_signs(value[None], coefficient, dither)[0]
    assert set(signs.tolist()) == {-1.0, 1.0}
    means = torch.zeros(3).index_add(0, coefficient, signs) / repeats
    torch.testing.assert_close(means, value, rtol=0, atol=2e-4)
    alone = torch.stack([dithers(torch.ones(20_000, dtype=torch.int64))[1]])
    single = torch.where(0.4 + alone >= 0, 1.0, -1.0)
    assert float(single.mean()) == pytest.approx(0.4, abs=0.03)


def test_repetitions_follow_the_variance_and_their_decoder_shrinks() -> None:
    variance = torch.tensor([16.0, 4.0, 1.0, 0.01])
    repeats = repetitions(variance, 400, 10.0)
    assert abs(int(repeats.sum()) - 400) <= 2
    assert bool((repeats.diff() <= 0).all())
    coefficient, _ = dithers(repeats)
    noise = torch.randn(len(coefficient), generator=torch.Generator().manual_seed(0))
    known = decode_dithered(torch.ones(len(coefficient)), 0.1, coefficient, 4)
    nothing = decode_dithered(5 * noise, 5.0, coefficient, 4)
    assert float(known.inputs[0]) > 0.8
    assert float(nothing.inputs.abs().max()) < 0.3


def test_capacities_of_signs_and_of_the_largest_entries() -> None:
    assert sign_capacity(0.0) == pytest.approx(0.0, abs=1e-12)
    assert sign_capacity(0.1) == pytest.approx(0.1**2 / math.pi / math.log(2), rel=0.02)  # 2/π of the noise's channel
    assert sign_capacity(8.0) == pytest.approx(1.0, abs=1e-6)
    assert censored_capacity(3.0, 0.0) > censored_capacity(3.0, 2.5) > censored_capacity(3.0, 4.0)


def test_repeating_a_bit_makes_up_for_entries_that_do_not_arrive() -> None:
    assert repeated_capacity(0.7, 0.1, 1) == pytest.approx(0.1 * capacity_of(0.7))
    assert repeated_capacity(50.0, 0.1, 3) == pytest.approx(1 - 0.9**3, rel=1e-3)
    both = 0.5**2 * capacity_of(math.sqrt(2) * 0.7) + 2 * 0.5**2 * capacity_of(0.7)
    assert repeated_capacity(0.7, 0.5, 2) == pytest.approx(both)


def test_the_largest_entries_are_those_of_the_structure_only_if_they_are_few() -> None:
    generator = torch.Generator().manual_seed(0)
    for excited, share in ((0.01, 0.1), (0.05, 0.02)):
        entries = torch.randn(100_000, generator=generator).abs()
        entries[: int(excited * 1e5)] = (4.0 + torch.randn(int(excited * 1e5), generator=generator)).abs()
        kept = float(entries.topk(int(share * 1e5)).values[-1])
        assert kept_threshold(4.0, excited, share) == pytest.approx(kept, rel=0.02)


def test_a_layout_holds_the_information_that_its_rate_needs() -> None:
    for channel in (
        SignChannel(1e-3, 16, 1e-3),
        SignChannel(2e-4, 16, method="signs"),
        SignChannel(2e-4, 16, method="largest", share=0.1, entries=11_000_000),
    ):
        layout = sign_layout(channel, 16, rgb(32), 3_000_000, 320, 0.2)
        assert layout is not None
        assert layout.plan is not None
        row = layout.inputs + 320 - PILOTS
        assert layout.units * row <= 3_000_000
        rate = LADDER[layout.plan.fair].rate
        assert channel.information(layout.directions * layout.excited, layout.units * row) > rate
        assert set(layout.plan.amplitudes) <= {0.0, 1.0}
    assert sign_layout(SignChannel(0.5, 16, 1e-3), 16, rgb(32), 3_000_000, 320, 0.2) is None


def test_the_strongest_of_a_collision_survives() -> None:
    generator = torch.Generator().manual_seed(0)
    units = torch.randint(20, (4000, 8, 3), generator=generator)
    lost = 0
    for image in range(8):
        captured = (units[:, :image] == units[:, image : image + 1]).any(dim=1) if image else torch.zeros(4000, 3) > 0
        lost += int(captured.all(dim=1).sum())
    assert expected_losses(8, 20 * 1.3, 3) == pytest.approx(lost / 32_000, rel=0.2)


def test_every_input_is_a_sign_or_a_zero_and_the_output_is_exactly_zero(images: Tensor) -> None:
    task = announced(4, 1e-4, local=adam())
    payload = Digital(upload_limit=3_000_000).payload(task)
    layer = InferenceStructure(payload)
    inputs = layer.encode(images)
    nulls = 256
    assert bool((inputs[:, :-nulls].abs() == 1).all())
    assert bool((inputs[:, -nulls:] == 0).all())
    assert structure_bytes(payload) == 4 * sum(parameter.numel() for parameter in layer.parameters())
    logits = torch.randn(4, CLASSES)
    assert bool((layer(images, logits) == 0).all())
    with torch.no_grad():
        layer.matrix.add_(torch.randn_like(layer.matrix))
    assert bool((layer(images, logits) == 0).all())


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (2, 2)])
def test_images_of_an_adam_client_come_back_bit_for_bit(images: Tensor, steps: int, epochs: int) -> None:
    task = announced(4, 1e-4, local=adam(steps, epochs))
    structure = Digital(upload_limit=3_000_000)
    payload = structure.payload(task)
    decoded = structure.decode(payload, task, trained(payload, task, images))
    assert exact(images, decoded.images) == 4
    assert decoded.evident
    assert sum(file is not None for file in decoded.files or ()) == 4
    loud = replace(task, noise_multiplier=0.5)
    nothing = structure.decode(payload, loud, trained(payload, loud, images))
    assert exact(images, nothing.images) == 0
    assert not any(nothing.files or ())


def test_over_several_epochs_of_adam_gains_make_all_rows_move_equally_far(images: Tensor) -> None:
    # Learning rate and noise at which the clip binds and files need all of it.
    task = announced(4, 4e-3, local=replace(adam(4, 2), learning_rates=(0.02,)))
    structure = Digital(upload_limit=3_000_000)
    payload = structure.payload(task)
    assert exact(images, structure.decode(payload, task, trained(payload, task, images)).images) == 4

    def unequal(payload: ServerPayload) -> float:
        update = trained(payload, replace(task, noise_multiplier=0.0), images)
        moved = update.gradient["structure.weight"].abs().amax(dim=1)
        return float(moved.max() / moved[moved > 0].min())

    assert unequal(payload) < 1.03
    assert unequal(ServerPayload(payload.settings, {**payload.tensors, "step_gains": torch.ones(8)})) > 1.5


def test_gains_are_shipped_only_where_they_help_and_gradient_weights_are_constant() -> None:
    task = announced(4, 4e-3, local=replace(adam(4, 2), learning_rates=(0.02,)))
    decaying = replace(task.local, options={"weight_decay": 0.01})
    for announcement, detached, expected in (
        (task, True, True),
        (replace(task, noise_multiplier=1e-4), True, False),  # whole files get through anyway
        (replace(task, local=replace(adam(4, 2), learning_rates=(6e-4,))), True, False),  # the clip does not bind
        (replace(task, local=decaying), True, False),
        (task, False, False),
    ):
        structure = Digital(upload_limit=3_000_000, detach_logits=detached)
        assert ("step_gains" in structure.payload(announcement).tensors) == expected


def test_a_noise_that_was_measured_too_low_is_no_second_image() -> None:
    generator, inputs = torch.Generator().manual_seed(0), 200_000
    plan = Plan(inputs, 1.0, (1.0, *[0.0] * (len(LADDER) - 1)), 0, 0.0, True)
    signs = torch.randint(2, (2, HEADER + inputs), generator=generator) * 2.0 - 1
    noise = torch.randn(HEADER + inputs, generator=generator)
    one, two = (0.5 * signs[0] + noise)[None], (0.6 * signs[0] + 0.5 * signs[1] + noise)[None]

    def second(row: Tensor, measured: float, zeros: float) -> float:
        return _Remaining(row, measured, plan, "moments", zeros)._components(0)[1]

    assert second(one, 0.955, math.inf) > 0.2
    assert second(one, 0.955, 1000) == 0
    assert second(two, 1.0, 8192) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(("added", "zeros"), [(1.0, 1.03), (0.97, 1.0)])
def test_noise_that_zeros_cannot_tell_from_the_announced_one_costs_no_file(
    images: Tensor, added: float, zeros: float
) -> None:
    # Noise at which a row's signal is a seventh of it: an error of the noise is one of the amplitude that is larger.
    task = announced(4, 2.8e-3, local=adam())
    structure = Digital(upload_limit=3_000_000)
    payload = structure.payload(task)
    update = trained(payload, replace(task, noise_multiplier=added * task.noise_multiplier), images)
    nulls = update.gradient["structure.weight"][:, -256:]
    nulls *= zeros * task.noise_multiplier / nulls.square().mean().sqrt()
    decoded = structure.decode(payload, task, update)
    assert sum(file is not None for file in decoded.files or ()) == 4
    assert decoded.mismatch.noise_multiplier is None


@pytest.mark.parametrize(
    ("changes", "shown"), [({}, True), ({"rounds": 4}, True), ({"compression": Compression("int8")}, False)]
)
def test_noise_other_than_announced_is_reported_where_its_values_arrive(
    images: Tensor, changes: dict[str, object], shown: bool
) -> None:
    task = announced(4, 1e-4, local=adam(), **changes)
    structure = Digital(upload_limit=3_000_000)
    payload = structure.payload(task)
    update = averaged(payload, replace(task, noise_multiplier=3e-4), images)
    found = structure.decode(payload, task, update).mismatch.noise_multiplier
    assert found == (pytest.approx(3e-4, rel=0.1) if shown else None)


def test_a_file_is_decoded_although_noise_hides_half_of_its_header(images: Tensor) -> None:
    task = announced(4, 2e-3, local=adam())
    structure = Digital(upload_limit=3_000_000)
    payload = structure.payload(task)
    update, quiet = (trained(payload, replace(task, noise_multiplier=z), images) for z in (2e-3, 0.0))
    first = payload.tensors["dither"].numel()
    header = slice(first, first + HEADER)
    # It is left 3.6 standard deviations above the noise, where five are taken for an image.
    sent = quiet.gradient["structure.weight"][:, header]
    update.gradient["structure.weight"][:, header] -= 0.68 * sent
    decoded = structure.decode(payload, task, update)
    assert sum(file is not None for file in decoded.files or ()) == 4


def test_what_is_too_noisy_for_files_is_sent_as_dithered_coefficients(images: Tensor) -> None:
    task = announced(4, 2e-3, local=adam())
    structure = WaterFilling(units=64)
    payload = structure.payload(task)
    spec = LayerSpec.of(payload)
    assert spec.signs
    assert spec.digital is None
    decoded = structure.decode(payload, task, trained(payload, task, images))
    errors = (decoded.images[:, None] - images).square().flatten(2).mean(dim=2).amin(dim=0)
    mean = (images - structure.statistics(task).mean).square().flatten(1).mean(dim=1)
    assert float((errors / mean).median()) < 0.35


def test_signs_need_their_tensors_and_a_layer_without_footprint() -> None:
    payload = Digital(upload_limit=3_000_000).payload(announced(4, 1e-4, local=adam(optimizer=ADAMW)))
    LayerSpec.of(payload)
    lacking = {name: tensor for name, tensor in payload.tensors.items() if name != "dither"}
    for broken in (
        ServerPayload(payload.settings, lacking),
        ServerPayload({**payload.settings, "zero_weight": False}, payload.tensors),
    ):
        with pytest.raises(UserError, match="signs"):
            LayerSpec.of(broken)
