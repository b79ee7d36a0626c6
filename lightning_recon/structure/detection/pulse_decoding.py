# SPDX-License-Identifier: Apache-2.0
"""From rows of pulses, one image in each, to files: see `coding.pulses`."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from lightning_recon.image_format import ImageFormat
from lightning_recon.structure.coding.channel_code import decode
from lightning_recon.structure.coding.code_plan import HEADER, Plan
from lightning_recon.structure.coding.messages import checked_message
from lightning_recon.structure.coding.modulation import header_words
from lightning_recon.structure.coding.pulses import pulse_beliefs
from lightning_recon.structure.detection.sign_decoding import READABLE, SignImage

# Largest magnitude of a belief: a pulse that noise has replaced is then outvoted by the others.
_CERTAIN = 8.0


def read_pulses(
    rows: Tensor,
    threshold: float,
    plan: Plan,
    image_format: ImageFormat,
    most: int,
    progress: Callable[[int], None] = lambda count: None,
) -> list[SignImage]:
    """Decode every row whose header is readable.

    Args:
        rows: Shape (K, HEADER + entries): what came through the digital inputs of each row; 0 where nothing arrived.
        threshold: Magnitude from which entries arrive.
        plan: What was shipped.
        image_format: Format of the images.
        most: Largest number of images to find.
        progress: Called with the number of images received so far.

    Returns:
        Images received, then those whose header was read but whose file was not, the strongest first.
    """
    header, words = torch.split(rows, [HEADER, plan.entries], dim=1)
    known = (header != 0).sum(dim=1).clamp(min=1)
    power = header.double().square().sum(dim=1) / known
    match = (header @ header_words().to(header).T).double() / known[:, None]
    match[:, ~(torch.tensor(plan.amplitudes).to(rows) > 0)] = 0.0
    strength = match.abs().amax(dim=1) * (known / power.clamp(min=1e-30)).sqrt()
    readable = [row for row in strength.argsort(descending=True).tolist() if strength[row] > READABLE][:most]
    received: list[SignImage] = []
    failed: list[SignImage] = []
    for row in readable:
        rung = int(match[row].abs().argmax())
        magnitude, noise = _amplitude_and_noise(header[row], words[row], threshold, plan.positions)
        level = math.copysign(magnitude, float(match[row, rung]))
        beliefs = pulse_beliefs(words[row], level, noise, threshold, plan.positions, plan.inputs).cpu()
        beliefs = beliefs.clamp(-_CERTAIN, _CERTAIN)
        bits = decode(beliefs, rung)
        content = None if bits is None else checked_message(bits, rung, plan, image_format)
        amplitude = torch.zeros(len(rows), dtype=torch.float64)
        amplitude[row] = level
        doubt = F.softplus(-beliefs.abs()) + beliefs.abs() * torch.sigmoid(-beliefs.abs())
        information = 1 - float(doubt.double().mean()) / math.log(2)
        image, codec = (None, None) if content is None else content[1:]
        one = SignImage(image, codec, rung, information, amplitude, torch.full_like(amplitude, noise))
        (failed if content is None else received).append(one)
        progress(len(received))
    return received + failed


def _amplitude_and_noise(header: Tensor, words: Tensor, threshold: float, positions: int) -> tuple[float, float]:
    """Amplitude of a row's entries and standard deviation of its noise.

    What arrived exceeds the threshold, so that its mean is too large and its spread too small. How many entries arrived
    is right: of the header, where all have the amplitude, and of the codeword, where one in each pulse has.

    Args:
        header: Shape (HEADER,).
        words: Shape (pulses · M,).
        threshold: Magnitude from which entries arrive.
        positions: Inputs of each pulse (M).
    """
    there = min(float((header != 0).double().mean()), 1 - 0.5 / len(header))
    empty = (positions * float((words != 0).double().mean()) - there) / (positions - 1)
    noise = threshold / float(stats.norm.isf(max(empty, 0.5 / len(words)) / 2))
    return threshold + noise * float(stats.norm.ppf(there)), noise
