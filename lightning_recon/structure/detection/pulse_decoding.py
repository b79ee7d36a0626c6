# SPDX-License-Identifier: Apache-2.0
"""From rows of pulses, one image in each, to files: see `coding.pulses`."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from lightning_recon.image_format import ImageFormat
from lightning_recon.structure.coding.censored_means import censored_amplitude
from lightning_recon.structure.coding.channel_code import decode
from lightning_recon.structure.coding.code_plan import HEADER, Plan
from lightning_recon.structure.coding.messages import checked_message
from lightning_recon.structure.coding.modulation import header_words
from lightning_recon.structure.coding.pulses import pulse_beliefs
from lightning_recon.structure.detection.sign_decoding import SignImage, header_threshold

# Largest magnitude of a belief: a pulse that noise has replaced is then outvoted by the others.
_CERTAIN = 8.0
# Noise that is smaller, by the mean of the header, makes no difference.
_LEAST_NOISE = 2e-2


def read_pulses(
    rows: Tensor,
    threshold: float,
    plan: Plan,
    image_format: ImageFormat,
    most: int,
    progress: Callable[[int], None] = lambda count: None,
    rounds: int = 1,
    noise: float = 0.0,
) -> list[SignImage]:
    """Decode every row whose header is readable.

    Args:
        rows: Shape (K, HEADER + entries): what came through the digital inputs of each row; 0 where nothing arrived.
        threshold: Magnitude from which entries arrive, of a single round.
        plan: What was shipped.
        image_format: Format of the images.
        most: Largest number of images to find.
        progress: Called with the number of images received so far.
        rounds: Number of rounds whose mean the rows are.
        noise: Standard deviation of the noise in one round, as announced; not read for a single round.

    Returns:
        Images received, then those whose header was read but whose file was not, the strongest first.
    """
    header, words = torch.split(rows, [HEADER, plan.entries], dim=1)
    known = (header != 0).sum(dim=1).clamp(min=1)
    power = header.double().square().sum(dim=1) / known
    match = (header @ header_words().to(header).T).double() / known[:, None]
    used = torch.tensor(plan.amplitudes).to(rows) > 0
    match[:, ~used] = 0.0
    strength = match.abs().amax(dim=1) * (known / power.clamp(min=1e-30)).sqrt()
    needed = header_threshold(len(rows), int(used.sum()))
    readable = [row for row in strength.argsort(descending=True).tolist() if strength[row] > needed][:most]
    received: list[SignImage] = []
    failed: list[SignImage] = []
    for row in readable:
        rung = int(match[row].abs().argmax())
        if rounds == 1:
            magnitude, std = _amplitude_and_noise(header[row], words[row], threshold, plan.positions)
            kept = threshold
        else:
            mean = abs(float((header[row].double() * header_words()[rung].to(header)).mean()))
            magnitude, std, kept = _of_several_rounds(header[row], words[row], mean, noise, plan.positions, rounds)
        level = math.copysign(magnitude, float(match[row, rung]))
        beliefs = pulse_beliefs(words[row], level, std, kept, plan.positions, plan.inputs, rounds).cpu()
        beliefs = beliefs.clamp(-_CERTAIN, _CERTAIN)
        bits = decode(beliefs, rung)
        content = None if bits is None else checked_message(bits, rung, plan, image_format)
        amplitude = torch.zeros(len(rows), dtype=torch.float64)
        amplitude[row] = level
        doubt = F.softplus(-beliefs.abs()) + beliefs.abs() * torch.sigmoid(-beliefs.abs())
        information = 1 - float(doubt.double().mean()) / math.log(2)
        image, codec = (None, None) if content is None else content[1:]
        one = SignImage(image, codec, rung, information, amplitude, torch.full_like(amplitude, std / math.sqrt(rounds)))
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
    there, empty = _arrived(header, words, positions)
    noise = threshold / float(stats.norm.isf(empty / 2))
    return threshold + noise * float(stats.norm.ppf(there)), noise


def _of_several_rounds(
    header: Tensor, words: Tensor, mean: float, noise: float, positions: int, rounds: int
) -> tuple[float, float, float]:
    """Amplitude of a row's entries, standard deviation of its noise and the threshold, in one round.

    Args:
        header: Shape (HEADER,), the mean over the rounds.
        words: Shape (pulses · M,), likewise.
        mean: Of the header, each entry with the sign that was sent.
        noise: Standard deviation of the noise in one round, as announced.
        positions: Inputs of each pulse (M).
        rounds: Number of rounds.
    """
    noise = max(noise, _LEAST_NOISE * mean)
    empty = _arrived(header, words, positions)[1]
    threshold = noise * float(stats.norm.isf(-math.expm1(math.log1p(-empty) / rounds) / 2))
    return censored_amplitude(mean, noise, threshold), noise, threshold


def _arrived(header: Tensor, words: Tensor, positions: int) -> tuple[float, float]:
    """Share of the entries with a pulse, and of those without, that arrived; in (0, 1)."""
    there = min(float((header != 0).double().mean()), 1 - 0.5 / len(header))
    empty = (positions * float((words != 0).double().mean()) - there) / (positions - 1)
    return there, min(max(empty, 0.5 / len(words)), 1 - 0.5 / len(words))
