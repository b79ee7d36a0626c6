# SPDX-License-Identifier: Apache-2.0
"""Layout of a digital code of ±1: directions, units, inputs and rate.

All entries that are not zero arrive alike, so that power cannot be divided among them: an image that sends fewer inputs
leaves more to each. Images that share a row in one step do not add up either, since only the one of larger gradient
weight arrives. So each row alone must carry the whole codeword, and directions serve as further chances of having a row
of one's own, at the cost of the norm that they share.
"""

import math
from dataclasses import dataclass

from lightning_recon.structure.coding.channel_code import LADDER, binary_capacity, message_bits, needed_snr
from lightning_recon.structure.coding.code_plan import HEADER, NEIGHBOURS_DB, RAW_BITS, SHORTEST, WORTHWHILE, Plan
from lightning_recon.structure.coding.image_codec import OVERHEAD
from lightning_recon.structure.coding.sign_channel import SignChannel

# Inputs of the sketch for each one of the codeword, and inputs whose sign is known.
SKETCH = 0.04
PILOTS = 64
# Of the layouts that are compared: directions, and units for each direction.
_DIRECTIONS = (1, 2, 3)
_UNITS = tuple(round(32 * 2 ** (step / 2)) for step in range(13))
# Quality of an image by the bits of its file, in decibels: that of the mean image, what a bit for each pixel adds, and
# what counts for an image that is exact.
_MEAN_IMAGE, _AT_LOW_RATE, _EACH_BIT, _LOW_RATE, _EXACT = 12.0, 31.0, 2.0, 3.0, 79.0
# Bits for each pixel of lossless files of 64 x 64 pixels, what each doubling of the side saves, and their standard
# deviation: of the bundled photographs.
_LOSSLESS_BITS, _OCTAVE_BITS, _LOSSLESS_STD = 13.3, 2.4, 2.4
# Intervals are not filled quite evenly, so that collisions are this much more frequent.
_UNEVEN = 1.3
# Without a digital code: units for each image and their least number, signs for each coefficient at most, and numbers
# of signs that are tried, by factors of √2.
_UNITS_PER_IMAGE, _FEWEST_UNITS, _MOST_REPEATS, _STEPS = 64, 64, 16, 24
# Energy of the pilots without a digital code, by the variance of their noise: they show which rows hold an image.
_PILOT_ENERGY, _MOST_PILOTS = 100.0, 4096
# Bisection for the number of inputs.
_BISECTIONS = 12


@dataclass(frozen=True)
class SignLayout:
    """A layout and its code.

    Args:
        directions: Measurement directions.
        units: Units in all directions together.
        sketch: Inputs of the sketch.
        plan: The digital code, whose amplitudes are 1; None without one.
        quality: What to expect, in decibels, for comparison.
        pilots: Inputs that are always 1.
    """

    directions: int
    units: int
    sketch: int
    plan: Plan | None = None
    quality: float = 0.0
    pilots: int = PILOTS

    @property
    def inputs(self) -> int:
        """Inputs of the digital code, its header included."""
        return 0 if self.plan is None else HEADER + self.plan.inputs


def sign_layout(
    channel: SignChannel,
    victims: int,
    pixels: int,
    room: int,
    constants: int,
    margin_db: float,
    units: int | None = None,
    directions: int | None = None,
) -> SignLayout | None:
    """Choose directions, units, inputs and rate.

    Args:
        channel: What the entries go through.
        victims: Images in an update.
        pixels: Of one image, H · W.
        room: Entries that the structure may have.
        constants: Constant inputs of a row.
        margin_db: Decibels by which the noise may exceed that of the channel.
        units: How many units the user asked for, if any.
        directions: How many directions the user asked for, if any.

    Returns:
        The layout; None if no code makes a better image than the linear one.
    """
    spare = 10 ** ((margin_db + NEIGHBOURS_DB) / 10)
    best: SignLayout | None = None
    for count in (1,) if victims == 1 else (directions,) if directions else _DIRECTIONS:
        for total in _unit_counts(victims, count, units):
            lost = expected_losses(victims, total / count, count) if total > 1 else 0.0
            for rung in range(len(LADDER)):
                most = math.ceil((RAW_BITS * pixels + 8 * OVERHEAD) / LADDER[rung].rate)
                most = min(most, int((room // total - constants - HEADER) / (1 + SKETCH)))
                if most < SHORTEST or (
                    best and _quality(message_bits(rung, most) / pixels, pixels, lost) <= best.quality
                ):
                    continue
                inputs = _most_inputs(channel, rung, most, count, total, constants, spare)
                if inputs < SHORTEST:
                    continue
                bits = message_bits(rung, inputs) / pixels
                quality = _quality(bits, pixels, lost)
                if bits >= WORTHWHILE and (best is None or quality > best.quality):
                    plan = Plan(inputs, 1.0, tuple(float(step <= rung) for step in range(len(LADDER))), rung, 0.0, True)
                    best = SignLayout(count, total, math.ceil(SKETCH * inputs), plan, quality)
    return best


def linear_layout(
    channel: SignChannel, victims: int, coefficients: int, room: int, constants: int, units: int | None = None
) -> SignLayout:
    """The layout without a digital code: one direction, and as many signs of coefficients as tell most.

    Args:
        channel: What the entries go through.
        victims: Images in an update.
        coefficients: Of an image.
        room: Entries that the structure may have.
        constants: Constant inputs of a row.
        units: How many units the user asked for, if any.
    """
    total = units or (1 if victims == 1 else max(_FEWEST_UNITS, _UNITS_PER_IMAGE * victims))
    most = max(PILOTS, min(_MOST_REPEATS * coefficients, room // total - constants))
    counts = sorted({max(1, round(most * 2 ** (-step / 2))) for step in range(_STEPS)})
    best = max(counts, key=lambda count: count * channel.information(count + PILOTS, total * (count + constants)))
    snr = 2 * math.log(2) * channel.information(best + PILOTS, total * (best + constants))
    pilots = min(_MOST_PILOTS, max(PILOTS, math.ceil(_PILOT_ENERGY / max(snr, 1e-12))))
    return SignLayout(1, total, best, pilots=pilots)


def _quality(bits: float, pixels: int, lost: float) -> float:
    """The same over all images, of which some are lost."""
    return lost * _MEAN_IMAGE + (1 - lost) * expected_quality(bits, pixels)


def expected_quality(bits: float, pixels: int) -> float:
    """About how good an image is, in decibels, whose file has so many bits for each of its pixels."""
    typical = _LOSSLESS_BITS - _OCTAVE_BITS * math.log2(math.sqrt(pixels) / 64)
    exact = 0.5 * math.erfc((typical - bits) / (_LOSSLESS_STD * math.sqrt(2)))
    if bits < _LOW_RATE:
        lossy = _MEAN_IMAGE + (_AT_LOW_RATE + _EACH_BIT * _LOW_RATE - _MEAN_IMAGE) * math.sqrt(bits / _LOW_RATE)
    else:
        lossy = _AT_LOW_RATE + _EACH_BIT * min(bits, float(RAW_BITS))
    return exact * _EXACT + (1 - exact) * min(lossy, _EXACT)


def expected_losses(victims: int, units: float, directions: int) -> float:
    """Share of images that have no row in which they are the strongest.

    Args:
        victims: Images in an update.
        units: Units of each direction.
        directions: Number of directions.
    """
    alone = max(0.0, 1 - _UNEVEN / units)
    return sum((1 - alone**stronger) ** directions for stronger in range(victims)) / victims


def _unit_counts(victims: int, directions: int, units: int | None) -> tuple[int, ...]:
    if units is not None:
        return (units,) if units >= directions else ()
    return (1,) if victims == 1 else tuple(directions * count for count in _UNITS)


def _most_inputs(
    channel: SignChannel, rung: int, most: int, directions: int, units: int, constants: int, spare: float
) -> int:
    """The largest number of inputs at which each row carries this rate; 0 if none does."""

    def enough(inputs: int) -> bool:
        row = round((1 + SKETCH) * inputs) + HEADER + PILOTS
        needed = binary_capacity(needed_snr(rung, inputs) * spare)
        return channel.information(directions * row, units * (row + constants)) >= needed

    if most < SHORTEST or not enough(SHORTEST):
        return 0
    if enough(most):
        return most
    low, high = SHORTEST, most
    for _ in range(_BISECTIONS):
        middle = (low + high) // 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low
