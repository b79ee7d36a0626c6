# SPDX-License-Identifier: Apache-2.0
"""Our structure at low noise: the image's file, protected by a channel code, beside a weak linear sketch of it."""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.console import counting
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.image_format import ImageFormat
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.ranges import NOT_NEGATIVE, SIZE_IN_BYTES, check_ranges
from lightning_recon.reconstruction import Mismatch, ReceivedFile
from lightning_recon.structure.base import Decoded, Structure, most_found
from lightning_recon.structure.clipping_budget import structure_share
from lightning_recon.structure.coding import jpeg_xl as jpeg_xl_files
from lightning_recon.structure.coding.channel_code import binary_capacity, message_bits
from lightning_recon.structure.coding.code_plan import (
    HEADER,
    TENSOR_VERSION,
    Plan,
    digital_plan,
    has_tensor_codec,
    sketch_share,
)
from lightning_recon.structure.coding.image_codec import is_common
from lightning_recon.structure.coding.l1_budget import SKETCH_SHARE, l1_plan
from lightning_recon.structure.coding.laplace_channel import laplace_capacity
from lightning_recon.structure.detection.hypotheses import likelier, subjects_evidence
from lightning_recon.structure.detection.remaining_rows import Received
from lightning_recon.structure.detection.separation import separate
from lightning_recon.structure.detection.successive_decoding import read_victims
from lightning_recon.structure.digital_rows import ENTRY, has_own_units, unit_count
from lightning_recon.structure.layer_spec import LayerSpec
from lightning_recon.structure.readout import design_noise, l1_clipped, measured_multiplier, released_rows
from lightning_recon.structure.refinement import Posterior
from lightning_recon.structure.row_model import budget_sharers, combined_rows, in_coefficients, row_prior, rows_of
from lightning_recon.structure.sketch import beside, decode_sketch, with_words
from lightning_recon.structure.water_filling import STRENGTH, WaterFilling

# Decibels by which the noise may be worse than assumed; at the assumed noise a few codewords in a thousand are lost
# without it (results/channel_code.csv).
_MARGIN = 0.1
# Noise of a victim's inputs, relative to their norm, up to which 61 of 64 victims that shared rows were separated and
# decoded, in one draw; at 0.02 it was 51.
_CROWDED = 0.018
# Variance of a received image's coefficients, as a share of the prior variance.
_KNOWN = 1e-9


class Digital(Structure):
    """A digital code where the noise is low, a linear one where it is not.

    The gradient of a weight is its input times a scalar, and needs no derivative of that input. So the shipped network
    may treat an image as a digital transmitter does: compress it, add a checksum, protect it by a channel code of the
    rate that the noise allows, and send ±1. The receiver gets the whole file or nothing; in the
    latter case it decodes a linear sketch, for which a given share of the power is reserved. The sketch is a small
    `WaterFilling` structure, which also separates the victims.

    Where one clip covers a client's update, the layer sees all its images, and sends each to a row of its own; see
    `coding.own_units`. No image interferes with another then, and few rows hold long codewords.

    The client runs the server's code, as with every attack that changes the architecture: an inspection of the model
    shows that it compresses images, and that it treats the images of a batch together.

    Source: method ours; separation of source and channel coding after Shannon (1948).
    """

    def __init__(
        self,
        subjects: bool | None = None,
        units: int | None = None,
        directions: int | None = None,
        assumed_noise: float | None = None,
        margin_db: float = _MARGIN,
        upload_limit: int = 123_000_000,
        always_digital: bool = False,
        source_code: Literal["codec", "tensor"] = "codec",
        jpeg_xl: bool | None = None,
        statistics: str | None = None,
        strength: float = STRENGTH,
        detach_logits: bool = True,
    ) -> None:
        """Choose the server's parameters; the defaults need no tuning.

        Args:
            subjects: Whether the server expects clients to cut the subject out on black. Default: as the task
                announces; whole photographs where it does not.
            units: Rows of the structure, shared among the directions. Default: 1 for a single image; 1.25 an image if
                each gets its own, up to 2 where codewords do not fill the upload limit; else 4 to 8 an image likewise,
                and at least 64.
            directions: Measurement directions, see `WaterFilling`. Default: 1 for a single unit, or where each image
                gets its own; else 3, with which images share rows.
            assumed_noise: Noise multiplier of an update to design for. Default: the announced one.
            margin_db: Decibels by which the noise may exceed that before codewords are lost; interference of other
                victims has a margin of its own.
            upload_limit: Most bytes that the structure may add to one client's upload in one round.
            always_digital: Whether to send digitally even where a linear code makes the better image.
            source_code: What compresses the images. `codec`: an image library's lossless WebP or JPEG XL, which the
                client runs as arbitrary code; else its AVIF or the tensor operations, whichever comes nearer. `tensor`:
                tensor operations alone, see `coding.tensor_codec`, so that the layer can be exported and traced.
            jpeg_xl: Whether the codec's lossless files are JPEG XL instead of WebP. The payload says which, and both
                client and server need the extra `jxl`. Default: if that is installed where the payload is made.
            statistics: File of public statistics, as `scripts/fit_statistics.py` writes it. Default: the bundled ones.
            strength: Factor of the structure's gradient, see `WaterFilling`.
            detach_logits: Whether the network's own gradient is zero, which a client can notice, see `WaterFilling`.
        """
        check_ranges(
            "--model.structure.", margin_db=(margin_db, NOT_NEGATIVE), upload_limit=(upload_limit, SIZE_IN_BYTES)
        )
        self.linear = WaterFilling(
            subjects=subjects,
            units=units,
            directions=directions,
            assumed_noise=assumed_noise,
            statistics=statistics,
            strength=strength,
            detach_logits=detach_logits,
        )
        self.margin_db = margin_db
        self.upload_limit = upload_limit
        self.always_digital = always_digital
        self.source_code = source_code
        self.jpeg_xl = jpeg_xl

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        return "digital"

    def statistics(self, task: Task) -> PublicStatistics:
        """Public statistics of images of the task's size."""
        return self.linear.statistics(task)

    def payload(self, task: Task) -> ServerPayload:
        """Design the structure from what was announced; a linear one where that makes the better image."""
        if self.source_code == "tensor" and not has_tensor_codec(task.image_format):
            raise UserError(
                "--model.structure.source_code tensor compresses images of 3 channels and 8 bits: leave it at codec "
                "for images of another format"
            )
        payload = self._payload(task)
        if LayerSpec.of(payload).digital is None:
            return payload
        if self.source_code == "tensor":
            return replace(payload, settings={**payload.settings, "digital_tensor": TENSOR_VERSION})
        if not is_common(task.image_format) or not jpeg_xl_files.chosen(self.jpeg_xl):
            return payload
        return replace(payload, settings={**payload.settings, "digital_jpeg_xl": True})

    def _payload(self, task: Task) -> ServerPayload:
        """The structure, whatever compresses the images."""
        signs = self.linear.sign_design(self.margin_db, self.upload_limit).payload(task, self.statistics(task))
        if signs is not None:
            return signs
        if l1_clipped(task):
            return self._l1_payload(task)
        noise = design_noise(task, self.linear.assumed_noise, weakest=True)
        noise *= math.sqrt(budget_sharers(task) / task.rounds)
        longest = None if task.per_layer else self._plan(noise, task, self.upload_limit // ENTRY)
        if longest is None:
            return self.linear.payload(task)
        sketch = self._sketch(task, sketch_share(noise), longest.inputs)
        plan = self._plan(noise, task, self._room(sketch))
        return self.linear.payload(task) if plan is None else beside(sketch, plan)

    def _room(self, sketch: ServerPayload) -> int:
        """Inputs of a codeword that the upload limit leaves beside a sketch."""
        taken = len(sketch.tensors["index"]) + len(sketch.tensors["constants"]) + HEADER
        return self.upload_limit // (ENTRY * len(sketch.tensors["lower"])) - taken

    def _own_units(self, task: Task) -> bool:
        """Whether each image gets a row of its own; not in a layer that is exported, where none depends on another."""
        return self.source_code == "codec" and has_own_units(task, self.linear.units, self.linear.directions)

    def _l1_payload(self, task: Task) -> ServerPayload:
        """The same under an L1 clip, whose norm sketch and codeword share."""
        sketch = self._sketch(task, SKETCH_SHARE, self.upload_limit // ENTRY)
        ratio, rows = LayerSpec.of(sketch).norm_ratio, len(sketch.tensors["directions"])
        if task.per_layer or ratio is None:
            return self.linear.payload(task)
        noise = design_noise(task, self.linear.assumed_noise, weakest=True)
        noise *= math.sqrt(rows / task.rounds) * task.sharers
        room = self._room(sketch)
        shared, laplace = task.sharers > 1, _has_laplace_noise(task, rows)
        found = l1_plan(noise, task.image_format, room, shared, self.margin_db, self.always_digital, ratio, laplace)
        plan, whole = found or (None, 0.0)
        if plan is None or self._too_crowded(noise * whole, task):
            return self.linear.payload(task)
        payload = beside(sketch, plan)
        return replace(payload, settings={**payload.settings, "norm_ratio": whole})

    def _too_crowded(self, noise: float, task: Task) -> bool:
        """Whether the noise is too high to separate victims that share rows."""
        shared = task.victims > 1 and not self._own_units(task)
        return shared and noise > _CROWDED and not self.always_digital

    def _plan(self, noise: float, task: Task, most: int) -> Plan | None:
        """The code, of at most this many inputs."""
        shared = budget_sharers(task) > 1
        if self._too_crowded(noise, task):
            return None
        return digital_plan(noise, task.image_format, most, shared, self.margin_db, self.always_digital)

    def _sketch(self, task: Task, share: float, inputs: int) -> ServerPayload:
        """A linear structure designed for this share of the power, or of the L1 norm, beside so many inputs."""
        assumed, factor, own = self.linear.assumed_noise, 1 / task.clip.share(share), self._own_units(task)
        linear = WaterFilling(
            subjects=self.linear.subjects,
            units=self.linear.units or unit_count(task, own, inputs, self.upload_limit),
            directions=1 if own else self.linear.directions,
            assumed_noise=None if assumed is None else assumed * factor,
            statistics=self.linear.statistics_file,
            strength=self.linear.strength,
            detach_logits=self.linear.detach_logits,
        )
        payload = linear.payload(replace(task, noise_multiplier=task.noise_multiplier * factor))
        return replace(payload, settings={**payload.settings, "own_units": True}) if own else payload

    def decode(self, payload: ServerPayload, task: Task, update: ClientUpdate) -> Decoded:
        """Separate the victims, decode their files, and fall back on the sketch where that fails.

        Args:
            payload: What was shipped.
            task: What was announced.
            update: Privatised, or the mean of several such.

        Returns:
            The images and their posterior.
        """
        spec = LayerSpec.of(payload)
        plan = spec.digital
        if plan is None or spec.signs:
            return self.linear.decode(payload, task, update)
        statistics, shipped = self.statistics(task), payload.tensors
        released, pilot, noise = released_rows(update, task, payload)
        sent = len(shipped["index"])
        rows = rows_of(released, pilot, noise, payload)
        prior = row_prior(payload, task, statistics)
        whole = with_words(prior, plan)
        found = separate(rows, whole, task.victims, self.linear.false_alarm, limit=most_found(task))
        image_format = task.image_format
        with counting("decoding", task.victims) as decoded_so_far:
            reading = read_victims(
                released[:, sent:],
                noise,
                found.members,
                shipped["unit_direction"],
                1 / prior.scale,
                plan,
                image_format,
                task.victims,
                most_found(task),
                decoded_so_far,
                None if task.noise_is_normal else task.noise,
            )
        received = reading.received
        found = found.corrected(torch.cat([reading.rows_received, reading.rows_left]))
        combined = list(combined_rows(rows, found))
        decoded = [decode_sketch(row, sent, weight, std, prior, plan) for row, weight, std in combined]
        posterior = in_coefficients(decoded, shipped, statistics)
        images = statistics.transform.synthesise(posterior.mean).clamp(0, 1)
        _put_files(images, posterior, received, statistics, image_format)
        images_shown = found.images_shown(task.victims)
        missing = (task.victims if images_shown is None else images_shown) - len(images)
        evident = found.evident or bool(received)
        unresolved = found.unresolved if missing else 0
        capacity = laplace_capacity if _has_laplace_noise(task, len(shipped["directions"])) else binary_capacity
        files = tuple(_as_file(one, plan, capacity(one.snr)) for one in received) + (None,) * len(reading.rows_left)
        share = structure_share(released, pilot, noise, whole, task, payload, images_shown)
        other = self.linear.other_statistics(task)
        if other is not None:
            evidence = subjects_evidence(combined, decoded, shipped, statistics, other)
            other = other if likelier(evidence, task.subjects is not None) else None
        subjects, mean_image = (None, None) if other is None else (other.subjects, other.mean)
        contradicted = Mismatch(subjects, measured_multiplier(noise, task, payload), images_shown)
        read: dict[str, Tensor | None] = {"structure.weight": None}
        return Decoded(images, unresolved, read, posterior, evident, files, share, contradicted, mean_image)


def _has_laplace_noise(task: Task, rows: int) -> bool:
    """Whether codewords arrive in Laplace noise: not in means of rounds, and not in sums of the rows of an image."""
    return l1_clipped(task) and not task.noise_is_normal and rows == 1


def _as_file(one: Received, plan: Plan, capacity: float) -> ReceivedFile:
    """The record of a received file, of inputs that could carry so many bits each."""
    bits = message_bits(one.rung, plan.inputs)
    return ReceivedFile(one.codec, bits / plan.inputs, bits, plan.inputs * capacity)


def _put_files(
    images: Tensor,
    posterior: Posterior,
    received: list[Received],
    statistics: PublicStatistics,
    image_format: ImageFormat,
) -> None:
    """Replace the first sketches by received files."""
    for place, one in enumerate(received):
        images[place] = image_format.values(one.image)
        posterior.mean[place] = statistics.transform.analyse(images[place])
        posterior.variance[place] = _KNOWN * posterior.prior_variance[place]
