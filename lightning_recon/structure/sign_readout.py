# SPDX-License-Identifier: Apache-2.0
"""How an update of a structure of ±1 inputs is decoded: files where they arrive, else signs of coefficients."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.console import counting
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.reconstruction import Mismatch, ReceivedFile
from lightning_recon.structure.base import Decoded, most_found
from lightning_recon.structure.clipping_budget import sign_share
from lightning_recon.structure.coding.channel_code import message_bits
from lightning_recon.structure.coding.code_plan import Plan
from lightning_recon.structure.coding.dither import decode_dithered
from lightning_recon.structure.detection.pulse_decoding import read_pulses
from lightning_recon.structure.detection.sign_decoding import SignImage, read_signs
from lightning_recon.structure.detection.wiener import RowPosterior
from lightning_recon.structure.layer_spec import LayerSpec
from lightning_recon.structure.readout import multiplier_of_zeros
from lightning_recon.structure.row_model import in_coefficients

# Without a digital code, a row holds an image if its pilots stand this many standard deviations above the noise.
_PILOTS_SEEN = 5.0
# Magnitudes that differ by less than this share are equal: only signs arrive.
_EQUAL = 1e-3
# Variance of a received image's coefficients, as a share of the prior variance.
_KNOWN = 1e-9


def decode_signs(payload: ServerPayload, task: Task, update: ClientUpdate, statistics: PublicStatistics) -> Decoded:
    """Decode an update.

    Args:
        payload: From `sign_payload`.
        task: What was announced.
        update: Privatized, or the mean of several such.
        statistics: What is public about the images.

    Returns:
        The images and their posterior.
    """
    spec, shipped = LayerSpec.of(payload), payload.tensors
    weight = update.gradient["structure.weight"]
    sent, ones = shipped["dither"].numel(), int((shipped["constants"] != 0).sum())
    nulls = shipped["constants"].numel() - ones
    words = 0 if spec.digital is None else spec.digital.words
    sketch, digital, pilots, zeros = torch.split(weight, [sent, words, ones, nulls], dim=1)
    noise, only_signs = _measured_noise(zeros)
    multiplier = multiplier_of_zeros(noise, zeros.numel(), task)
    largest = task.compression is not None and task.compression.method == "top_k"
    most = most_found(task)
    if spec.digital is not None:
        image_format = task.image_format
        with counting("decoding", task.victims) as progress:
            if spec.digital.positions > 1:
                threshold = float(weight[weight != 0].abs().min())
                found = read_pulses(digital, threshold, spec.digital, image_format, most, progress)
            else:
                # Under DP-SGD the optimizer moves an input that is always zero by noise alone in every step, but one
                # that holds an image hardly by noise at all once the image was there.
                unlike = only_signs or largest or task.granularity == "sample"
                kind: Literal["header", "moments"] = "header" if unlike else "moments"
                found = read_signs(
                    digital, noise, spec.digital, image_format, most, kind, progress, int((zeros != 0).sum())
                )
        # Codewords that were not decoded may be remains of others: they count up to the announced number alone.
        received = sum(one.image is not None for one in found)
        found = found[: max(task.victims, received)]
    else:
        found = _by_pilots(pilots, task.victims)
    decoded = [_sketch_of(one, sketch, shipped) for one in found]
    posterior = in_coefficients(decoded, shipped, statistics)
    images = statistics.transform.synthesise(posterior.mean).clamp(0, 1)
    for place, one in enumerate(found):
        if one.image is not None:
            images[place] = task.image_format.values(one.image)
            posterior.mean[place] = statistics.transform.analyse(images[place])
            posterior.variance[place] = _KNOWN * posterior.prior_variance[place]
    shown = len(found) if len(found) > task.victims else None
    read: dict[str, Tensor | None] = {"structure.weight": None}
    files = None if spec.digital is None else tuple(_as_file(one, spec.digital) for one in found)
    mismatch = Mismatch(noise_multiplier=multiplier, images=shown)
    share = sign_share(weight, noise, zeros.numel(), task)
    return Decoded(images, 0, read, posterior, evident=bool(found), files=files, share=share, mismatch=mismatch)


def _as_file(one: SignImage, plan: Plan) -> ReceivedFile | None:
    """The record of a received file."""
    if one.codec is None:
        return None
    bits = message_bits(one.rung, plan.inputs)
    return ReceivedFile(one.codec, bits / plan.inputs, bits, plan.inputs * one.information)


def _measured_noise(zeros: Tensor) -> tuple[float, bool]:
    """Standard deviation of what arrives of inputs that are zero, and whether all of it has the same magnitude."""
    arrived = zeros[zeros != 0].double()
    if not arrived.numel():
        return 0.0, False
    magnitude = arrived.abs()
    return float(arrived.square().mean().sqrt()), bool((magnitude.std(correction=0) / magnitude.mean()) < _EQUAL)


def _by_pilots(pilots: Tensor, victims: int) -> list[SignImage]:
    """The rows whose pilots arrived, the strongest first, at most as many as there are images."""
    known = (pilots != 0).sum(dim=1).clamp(min=1)
    level = pilots.double().sum(dim=1) / known
    power = pilots.double().square().sum(dim=1) / known
    score = level.abs() * (known / power.clamp(min=1e-30)).sqrt()
    chosen = (level.abs() * (score > _PILOTS_SEEN)).topk(min(victims, len(level))).indices.tolist()
    found = []
    for row in chosen:
        if score[row] <= _PILOTS_SEEN:
            continue
        amplitude = torch.zeros(len(level), dtype=torch.float64)
        amplitude[row] = level[row].cpu()
        rest = (power.cpu() - amplitude.square()).clamp(min=1e-12 * float(power[row]))
        found.append(SignImage(None, None, 0, 0.0, amplitude, rest.sqrt()))
    return found


def _sketch_of(one: SignImage, sketch: Tensor, shipped: Mapping[str, Tensor]) -> RowPosterior:
    """The coefficients that the signs of all rows of an image show."""
    held = one.amplitude != 0
    amplitude, noise = one.amplitude[held], one.noise[held].clamp(min=1e-30)
    weight = amplitude / noise.square()
    gain = float((weight * amplitude).sum())
    signs = (weight.to(sketch) @ sketch[held]) / gain
    coefficient, count = shipped["dithered"], len(shipped["gain"])
    # The unit of `in_coefficients` is the input, here the coefficient by its reach.
    return decode_dithered(signs, 1 / math.sqrt(gain), coefficient, count)
