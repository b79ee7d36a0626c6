# SPDX-License-Identifier: Apache-2.0
"""From rows to files: each victim's codeword is decoded, checked, and taken out of all rows exactly.

A codeword that passed its checksum is known without any error, so what it adds to a row can be subtracted without
leaving anything behind. Victims that share rows are decoded one after the other: who is heard best first, the others
from what is left. In the end rows that still hold something are read by themselves: whoever collided in the sketch, and
was found by nobody, may stand alone there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_recon.structure.channel_code import LADDER, decode
from lightning_recon.structure.digital_plan import HEADER, Plan
from lightning_recon.structure.digital_words import header_words, symbols
from lightning_recon.structure.picture_file import unframed

# A header is read if it stands out from noise by so many standard deviations.
_READABLE = 5.0
# A row still holds somebody if its energy exceeds the noise's by so many standard deviations of the latter.
_BUSY = 6.0
# Two rows hold the same codeword if their inner product is this share of one's energy.
_SAME = 0.6
# A codeword this many decibels below what its rate can carry at all is not worth the iterations.
_HOPELESS_DB = -0.3


@dataclass(frozen=True)
class Received:
    """A picture that passed its checksum.

    Args:
        picture: Shape (3, H, W), uint8.
        exact: Whether it was sent losslessly.
        rung: The rung of the ladder it was sent at.
        snr: Power of its inputs by the variance of their noise, as heard.
    """

    picture: Tensor
    exact: bool
    rung: int
    snr: float


def read_victims(
    rows: Tensor,
    noise: float,
    combine: Tensor,
    members: Tensor,
    plan: Plan,
    size: tuple[int, int],
    victims: int,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[list[Received | None], list[Received]]:
    """Decode all victims.

    Args:
        rows: Shape (K, HEADER + inputs): what came through the digital inputs of each row.
        noise: Noise standard deviation of every entry.
        combine: Shape (V, K): how the sketch says that rows combine into victims.
        members: Shape (V, K), bool: which rows hold which victim.
        plan: What was shipped.
        size: Height and width of the pictures.
        victims: How many there are at most.
        progress: Called with the number of pictures received so far.

    Returns:
        For each of the V victims its picture, or None; and pictures of victims that the sketch did not tell.
    """
    rows = rows.clone()
    found: list[Received | None] = [None] * len(combine)
    weights = combine.to(rows)
    clean = weights.abs().sum(dim=0) > 0
    waiting = list(range(len(combine)))
    while waiting:
        waiting.sort(key=lambda victim: float(weights[victim].norm()))
        heard = 0
        for victim in list(waiting):
            received = _received(weights[victim] @ rows, noise * float(weights[victim].norm()), plan, size)
            if received is None:
                continue
            found[victim], spoken = received
            _cancel(rows, spoken)
            waiting.remove(victim)
            heard += 1
            progress(sum(one is not None for one in found))
        if not heard or not waiting:
            break
        # Whoever is still waiting has the rows of those that are out of the way to himself.
        remaining = (members[waiting] & clean.cpu()).double().T
        weights = weights.clone()
        weights[waiting] = torch.linalg.pinv(remaining, rcond=1e-6).to(weights)
    others: list[Received] = []
    while len(found) - len(waiting) + len(others) < victims and (alone := _unexplained(rows, noise)) is not None:
        received = _received(rows[alone].mean(dim=0), noise / math.sqrt(int(alone.sum())), plan, size)
        if received is None:
            break
        others.append(received[0])
        _cancel(rows, received[1])
        progress(len(found) - len(waiting) + len(others))
    return found, others


def _received(heard: Tensor, noise: float, plan: Plan, size: tuple[int, int]) -> tuple[Received, Tensor] | None:
    """Picture and codeword in what was heard of one victim, shape (HEADER + inputs,); None if there are none."""
    header, spoken = torch.split(heard, [HEADER, plan.inputs])
    noise = max(noise, 1e-7 * float(heard.norm()), 1e-30)
    match = header_words().to(header) @ header
    rung = int(match.abs().argmax())
    if match[rung].abs() < _READABLE * noise * math.sqrt(HEADER):
        return None
    power = float(spoken.square().mean()) - noise**2
    if power <= noise**2 * 10 ** ((LADDER[rung].capacity_db + _HOPELESS_DB) / 10):
        return None
    bits = decode(spoken * (float(match[rung].sign()) * 2 * math.sqrt(power) / noise**2), rung)
    if bits is None:
        return None
    content = unframed(bits.cpu(), *size)
    if content is None:
        return None
    return Received(*content, rung, power / noise**2), symbols(bits, rung, plan.inputs)


def _cancel(rows: Tensor, spoken: Tensor) -> None:
    """Take a codeword, shape (inputs,), out of every row; which rows it is in, they say themselves."""
    words = rows[:, HEADER:]
    words -= torch.outer(words @ spoken / len(spoken), spoken)


def _unexplained(rows: Tensor, noise: float) -> Tensor | None:
    """The rows that still hold somebody, the loudest and those like it: shape (K,), bool; None if there are none."""
    words = rows[:, HEADER:]
    energy = words.square().sum(dim=1) - words.shape[1] * noise**2
    loudest = int(energy.argmax())
    if energy[loudest] <= _BUSY * math.sqrt(2 * words.shape[1]) * noise**2 + 1e-9 * float(rows.square().sum()):
        return None
    alike: Tensor = words @ words[loudest] >= _SAME * energy[loudest]
    alike[loudest] = True
    return alike
