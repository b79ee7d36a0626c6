# SPDX-License-Identifier: Apache-2.0
"""How an update of a structure of ±1 inputs is decoded: files where they arrive, else signs of coefficients."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from scipy import stats
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
from lightning_recon.structure.noise_measurement import (
    contradicting_multiplier,
    noise_is_announced,
    noise_variance,
    optimizer_keeps_noise,
)
from lightning_recon.structure.row_model import in_coefficients

# Without a digital code, a row holds an image if its pilots stand this many standard deviations above the noise.
_PILOTS_SEEN = 5.0
# Information about a sketch of which nothing arrived.
_LEAST = 1e-12
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
    pattern = shipped["constants"][shipped["constants"] != 0].to(weight)
    sent, ones = shipped["dither"].numel(), len(pattern)
    nulls = shipped["constants"].numel() - ones
    words = 0 if spec.digital is None else spec.digital.words
    sketch, digital, pilots, zeros = torch.split(weight, [sent, words, ones, nulls], dim=1)
    arrived = zeros if task.values_arrive else zeros[zeros != 0]
    noise = math.sqrt(noise_variance(arrived, _announced(task), task))
    contradicted = None
    if task.max_grad_norm is not None and noise_is_announced(task):
        contradicted = contradicting_multiplier(noise * math.sqrt(task.rounds) / task.max_grad_norm, task)
    # A client may add other noise than announced that these zeros cannot tell from it.
    measured_on = arrived.numel()
    compression = None if task.compression is None else task.compression.method
    most = most_found(task)
    if not bool(weight.any()):
        found: list[SignImage] = []
    elif spec.digital is not None:
        image_format = task.image_format
        with counting("decoding", task.victims) as progress:
            if spec.digital.positions > 1:
                threshold = float(weight[weight != 0].abs().min())
                once = task.update_noise * (task.max_grad_norm or 1.0)
                found = read_pulses(digital, threshold, spec.digital, image_format, most, progress, task.rounds, once)
            else:
                # Without noise that is added to all entries alike, moments do not show amplitudes. Under DP-SGD the
                # optimizer moves an input that is always zero by noise alone in every step, but one
                # that holds an image hardly by noise at all once the image was there.
                unlike = compression in ("sign", "top_k") or task.granularity == "sample"
                kind: Literal["header", "moments"] = "header" if unlike else "moments"
                # In the mean over rounds in which random entries arrive, these have unequal noise, which looks like a
                # second image.
                alone = spec.own_units and compression == "random_k" and task.rounds > 1
                found = read_signs(digital, noise, spec.digital, image_format, most, kind, progress, measured_on, alone)
        # Codewords that were not decoded may be remains of others: they count up to the announced number alone.
        received = sum(one.image is not None for one in found)
        found = found[: max(task.victims, received)]
    else:
        found = _by_pilots(pilots * pattern, task.victims, few=compression == "random_k")
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
    mismatch = Mismatch(noise_multiplier=contradicted, images=shown)
    share = sign_share(weight, noise, measured_on, task)
    return Decoded(images, 0, read, posterior, evident=bool(found), files=files, share=share, mismatch=mismatch)


def _as_file(one: SignImage, plan: Plan) -> ReceivedFile | None:
    """The record of a received file."""
    if one.codec is None:
        return None
    bits = message_bits(one.rung, plan.inputs)
    return ReceivedFile(one.codec, bits / plan.inputs, bits, plan.inputs * one.information)


def _announced(task: Task) -> float | None:
    """Variance of the noise on every entry that arrives; None where it does not follow from what was announced."""
    if task.max_grad_norm is None or not optimizer_keeps_noise(task):
        return None
    one_round = (task.max_grad_norm * task.update_noise) ** 2
    if task.values_arrive:
        return one_round / task.rounds
    if task.compression is None or task.compression.method != "random_k":
        return None
    share, rounds = task.compression.share, task.rounds
    # The mean over rounds in which an entry arrived at least once adds up the noise of those in which it did.
    return one_round * share / (rounds * (1 - (1 - share) ** rounds))


def _by_pilots(pilots: Tensor, victims: int, few: bool) -> list[SignImage]:
    """The rows whose pilots arrived, the strongest first, at most as many as there are images.

    Args:
        pilots: Shape (K, pilots), each with the sign that was sent; 0 where nothing arrived.
        victims: How many images there are.
        few: Whether few pilots may arrive, of noise that is normal.
    """
    known = (pilots != 0).sum(dim=1).clamp(min=1)
    level = pilots.double().sum(dim=1) / known
    power = pilots.double().square().sum(dim=1) / known
    score = level.abs() * (known / power.clamp(min=1e-30)).sqrt()
    needed = torch.full_like(score, _PILOTS_SEEN)
    if few:
        # Student's test: n pilots that are all alike have a score of √n. In terms of t, the score is
        # t √(n / (n − 1 + t²)).
        freedom = (known.cpu() - 1).clamp(min=1)
        t = torch.from_numpy(stats.t.isf(stats.norm.sf(_PILOTS_SEEN), freedom.numpy())).to(score)
        needed = torch.where(known > 1, t * (known / (known - 1 + t.square())).sqrt(), torch.inf)
    seen = score > needed
    chosen = (level.abs() * seen).topk(min(victims, len(level))).indices.tolist()
    found = []
    for row in chosen:
        if not seen[row]:
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
    gain = max(float((weight * amplitude).sum()), _LEAST)
    signs = (weight.to(sketch) @ sketch[held]) / gain
    coefficient, count = shipped["dithered"], len(shipped["gain"])
    # The unit of `in_coefficients` is the input, here the coefficient by its reach.
    return decode_dithered(signs, 1 / math.sqrt(gain), coefficient, count)
