# SPDX-License-Identifier: Apache-2.0
"""A structure whose inputs are all ±1, for clients whose optimizer or compression lets little but signs through."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_recon.exchange import LocalTraining, ServerPayload, Task
from lightning_recon.exchange.rounds import task_of_one_round
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.structure.coding.dither import REACH, dithers, repetitions
from lightning_recon.structure.coding.equal_movements import equal_movement_gains
from lightning_recon.structure.coding.gating import intervals, measurement_directions
from lightning_recon.structure.coding.movement import movements, scale_free, steady_movement
from lightning_recon.structure.coding.sign_channel import Method, SignChannel
from lightning_recon.structure.coding.sign_plan import PILOTS, SignLayout, linear_layout, sign_layout
from lightning_recon.structure.local_weights import gains_of_batches, layer_settings
from lightning_recon.structure.loss_weights import fixed_code, loss_settings
from lightning_recon.structure.readout import design_noise

_METHODS: dict[str, Method] = {"sign": "signs", "top_k": "largest", "random_k": "some"}


# Methods that round to multiples of a scale, which the largest entry of a tensor sets: least where all are alike.
_ROUNDED = ("int8", "qsgd")


def sign_channel(
    task: Task, noise: float, detach_logits: bool = True, gains: Tensor | None = None
) -> SignChannel | None:
    """The channel of signs that was announced; None where the client sends more than signs.

    Args:
        task: What was announced.
        noise: Standard deviation of an update's noise, divided by C.
        detach_logits: Whether the network's own gradient is zero.
        gains: Factors of the structure's gradient in each optimizer step; None: 1.
    """
    local, compression = task.local, task.compression
    signs = scale_free(local)
    method: Method = "all" if compression is None else _METHODS.get(compression.method, "all")
    if task.max_grad_norm is None or task.per_layer or task.clip.order != 2 or not (signs or method != "all"):
        return None
    share = 1.0 if compression is None or method in ("all", "signs") else compression.share
    if method == "largest":  # which entries these are is decided in every round by itself, under all of its noise
        noise = noise * task_of_one_round(task).update_noise / task.update_noise if task.update_noise else noise
    else:
        noise = noise / math.sqrt(task.rounds)
    # Where the largest entries of each tensor are kept, those of the network are no competitors.
    entries = 0 if compression is not None and compression.per_tensor else task.parameters
    if not signs:
        return SignChannel(noise, task.sharers, None, 1.0, 0, method, share, entries)
    if task.granularity == "sample":
        # Noise is added before the optimizer makes signs of it; later steps add their noise to a row, too.
        return SignChannel(noise * math.sqrt(local.steps_of_epoch(task.batch_size)), 1, None, 1.0, 0, "signs")
    moved = movements(local, task.batch_size, gains).abs()
    typical = float(moved.square().mean().sqrt())
    weakest = float(moved[moved > 0].min()) / typical
    steady = abs(steady_movement(local, task.batch_size)) / typical
    network = 0 if detach_logits and not _decays(local) else round(steady**2 * task.parameters)
    movement = typical / task.max_grad_norm
    return SignChannel(noise, task.sharers, movement, weakest, network, method, share, entries)


def _decays(local: LocalTraining) -> bool:
    """Whether weight decay is a gradient of its own, which moves the weights of the network: if it is not decoupled."""
    return local.option("weight_decay") > 0 and "AdamW" not in local.optimizer


@dataclass(frozen=True)
class SignDesign:
    """The server's choices, see `WaterFilling` and `Digital`.

    Args:
        assumed_noise: Noise multiplier to design for; None: the announced one.
        units: Rows of the structure; None: as many as suit the task.
        directions: Measurement directions; None: likewise.
        nulls: Inputs that are always zero, from which the noise is measured.
        strength: Factor of the structure's gradient.
        balanced: Whether head weights are chosen for each image.
        detach_logits: Whether the network's own gradient is zero.
        margin_db: Decibels by which the noise may exceed what a digital code is designed for; None: no digital code.
        upload_limit: Most bytes that the structure may add to an upload.
    """

    assumed_noise: float | None
    units: int | None
    directions: int | None
    nulls: int
    strength: float
    balanced: bool
    detach_logits: bool
    margin_db: float | None = None
    upload_limit: int = 123_000_000

    def payload(self, task: Task, statistics: PublicStatistics) -> ServerPayload | None:
        """The structure for a client that lets little more than signs through; None for another one."""
        noise = design_noise(task, self.assumed_noise, weakest=True)
        channel, layout, gains = sign_channel(task, noise, self.detach_logits), None, None
        rounded = channel is None
        if channel is None:
            channel = _rounding_channel(task, noise)
        if channel is None or (rounded and self.margin_db is None):
            return None
        for candidate, factors in [(channel, None), *self._with_equal_movements(task, noise)]:
            found = self._digital(task, candidate)
            if found is not None and (layout is None or found.quality > layout.quality):
                channel, layout, gains = candidate, found, factors
        if layout is None and rounded:
            return None
        if layout is None:
            coefficients, room = math.prod(task.image_shape), self.upload_limit // 4
            constants, apart = PILOTS + self.nulls, sees_all_images(task)
            layout = linear_layout(channel, task.victims, coefficients, room, constants, self.units, apart)
        return _payload(task, statistics, channel, layout, self, gains)

    def _digital(self, task: Task, channel: SignChannel) -> SignLayout | None:
        """The layout with a digital code."""
        if self.margin_db is None:
            return None
        image_format, constants, room = task.image_format, PILOTS + self.nulls, self.upload_limit // 4
        margin, apart = self.margin_db, sees_all_images(task)
        return sign_layout(
            channel,
            task.victims,
            image_format,
            room,
            constants,
            margin,
            self.units,
            self.directions,
            apart,
            pulsed=task.noise_bands == 1,
        )

    def _with_equal_movements(self, task: Task, noise: float) -> list[tuple[SignChannel, Tensor]]:
        """The channel on which gains give all images the same movement, and these gains; nothing where they cannot.

        They need gradient weights that hardly change between an image's visits: balanced ones, by a network that does
        not train.
        """
        constant = self.balanced and self.detach_logits and not _decays(task.local)
        if self.margin_db is None or not constant or task.granularity != "update" or not scale_free(task.local):
            return []
        gains = equal_movement_gains(task.local, task.batch_size)
        channel = None if gains is None else sign_channel(task, noise, gains=gains)
        return [] if gains is None or channel is None else [(channel, gains)]


def sees_all_images(task: Task) -> bool:
    """Whether a client's layer sees all images of an update, and the same ones in every round in the same order.

    Not where each sample's gradient is computed alone, and not where several clients' updates are summed.
    """
    same = task.rounds == 1 or not (task.local.shuffle or task.batches_change)
    return task.granularity == "update" and task.aggregated == 1 and same


def _rounding_channel(task: Task, noise: float) -> SignChannel | None:
    """The channel of one gradient that is rounded with a scale for each tensor; None for any other update.

    It lets more than signs through, so that codes of ±1 serve as digital codes alone.
    """
    rounded = task.compression is not None and task.compression.method in _ROUNDED and task.local.is_plain_step
    if not rounded or task.max_grad_norm is None or task.per_layer or task.clip.order != 2:
        return None
    return SignChannel(noise / math.sqrt(task.rounds), task.sharers, entries=task.parameters)


def _payload(
    task: Task,
    statistics: PublicStatistics,
    channel: SignChannel,
    layout: SignLayout,
    design: SignDesign,
    gains: Tensor | None,
) -> ServerPayload:
    """The structure of a layout.

    Args:
        task: What was announced.
        statistics: What is public about the images.
        channel: From `sign_channel`.
        layout: Directions, units and inputs.
        design: The server's choices.
        gains: Factors of the gradient in each optimizer step, if any.
    """
    variance = statistics.variance.flatten()
    shipped = layout.units * layout.inputs
    snr = channel.information(layout.directions * layout.excited, shipped) * 2 * math.log(2)
    repeats = repetitions(variance, layout.sketch, snr)
    directions = measurement_directions(statistics, layout.directions)
    measured = (directions != 0).any(dim=0).flatten()
    index = torch.nonzero((repeats > 0) | measured).flatten()
    index = index[variance[index].argsort(descending=True, stable=True)]
    gain = 1 / (REACH * variance[index].sqrt())
    lower, upper, unit_direction = intervals(statistics, directions, layout.units)
    dithered, dither = dithers(repeats[index])
    # Of both signs: under sign compression everything that is zero arrives as a positive number.
    pilots = 1.0 - 2.0 * (torch.arange(layout.pilots) % 2)
    constants = torch.cat([pilots, torch.zeros(design.nulls)])
    return ServerPayload(
        settings={
            "pixels": False,
            "cancel": True,
            **layer_settings(task, design.strength),
            "zero_weight": True,
            "signs": True,
            **({"own_units": True} if layout.own_units else {}),
            "target_scale": 1.0,
            "balanced": design.balanced,
            **loss_settings(task),
            "detach_logits": design.detach_logits,
            **(layout.plan.settings() if layout.plan else {}),
        },
        tensors={
            "mean": statistics.mean,
            "colour": statistics.colour,
            "index": index,
            "gain": gain,
            "constants": constants,
            "directions": directions.flatten(1)[:, index] / gain,
            "unit_direction": unit_direction,
            "lower": lower,
            "upper": upper,
            "code": fixed_code(task.loss, task.num_classes),
            "dithered": dithered,
            "dither": dither,
            **({} if gains is None else {"step_gains": gains_of_batches(gains, task.local, task.batch_size).float()}),
            **({"digital_amplitudes": torch.tensor(layout.plan.amplitudes)} if layout.plan else {}),
        },
    )
