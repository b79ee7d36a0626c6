# SPDX-License-Identifier: Apache-2.0
"""Layout of a digital code of ±1: directions, units, inputs and rate.

All entries that are not zero arrive alike, so that power cannot be divided among them: an image that sends fewer inputs
leaves more to each. Images that share a row in one step do not add up either, since only the one of larger gradient
weight arrives. A layer that sees all images of a client gives each of them a unit of its own. Otherwise each row alone
must carry the whole codeword, and directions serve as further chances of having a row of one's own, at the cost of the
norm that they share.
"""

import math
from dataclasses import dataclass

import numpy as np

from lightning_recon.image_format import ImageFormat
from lightning_recon.structure.coding.channel_code import LADDER, message_bits, needed_snr
from lightning_recon.structure.coding.code_plan import HEADER, NEIGHBOURS_DB, RAW_BITS, SHORTEST, Plan, worthwhile_bits
from lightning_recon.structure.coding.expected_quality import MEAN_IMAGE, expected_losses, expected_quality
from lightning_recon.structure.coding.image_codec import OVERHEAD
from lightning_recon.structure.coding.pulses import bits_of_pulse, pulses_of
from lightning_recon.structure.coding.sign_channel import SignChannel, capacity_of

# Inputs of the sketch for each one of the codeword that is not zero, and inputs whose sign is known.
SKETCH = 0.04
PILOTS = 64
# Of the layouts that are compared: directions, and units for each direction.
_DIRECTIONS = (1, 2, 3)
_UNITS = tuple(round(32 * 2 ** (step / 2)) for step in range(13))
# Units for each image where each one gets its own: more are of use if a client has more images than it announced.
_OWN_UNITS = (2.0, 1.5, 1.25, 1.0)
# Inputs of a pulse, where only the largest entries arrive; how often a codeword is sent, where random ones arrive.
_POSITIONS, _REPEATS = (1, 4, 16, 64), (1, 2, 3, 4, 6, 8)
# Without a digital code: units for each image and their least number, signs for each coefficient at most, and numbers
# of signs that are tried, by factors of √2.
_UNITS_PER_IMAGE, _FEWEST_UNITS, _MOST_REPEATS, _STEPS = 64, 64, 16, 24
# Energy of the pilots without a digital code, by the variance of their noise: they show which rows hold an image.
_PILOT_ENERGY, _MOST_PILOTS = 100.0, 4096
# Bisection for the number of inputs; and numbers at which the information is computed, between which it is
# interpolated.
_BISECTIONS, _POINTS = 12, 24


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
        own_units: Whether each image gets a unit of its own.
    """

    directions: int
    units: int
    sketch: int
    plan: Plan | None = None
    quality: float = 0.0
    pilots: int = PILOTS
    own_units: bool = False

    @property
    def excited(self) -> int:
        """Inputs of an image that are not zero."""
        plan = self.plan
        digital = 0 if plan is None else (HEADER + pulses_of(plan.inputs, plan.positions)) * plan.repeats
        return self.sketch + digital + self.pilots

    @property
    def inputs(self) -> int:
        """Inputs of a row, without those that are always zero."""
        return self.sketch + (0 if self.plan is None else self.plan.words) + self.pilots


def sign_layout(
    channel: SignChannel,
    victims: int,
    image_format: ImageFormat,
    room: int,
    constants: int,
    margin_db: float,
    units: int | None = None,
    directions: int | None = None,
    apart: bool = False,
    pulsed: bool = True,
) -> SignLayout | None:
    """Choose directions, units, inputs and rate.

    Args:
        channel: What the entries go through.
        victims: Images in an update.
        image_format: Format of the images.
        room: Entries that the structure may have.
        constants: Constant inputs of a row.
        margin_db: Decibels by which the noise may exceed that of the channel.
        units: How many units the user asked for, if any.
        directions: How many directions the user asked for, if any.
        apart: Whether the layer sees all images of an update, so that each one can have a unit of its own.
        pulsed: Whether pulses may be sent, whose decoding needs independent rounds.

    Returns:
        The layout; None if no code makes a better image than the linear one.
    """
    apart = apart and directions in (None, 1) and (units is None or units >= victims)
    # An optimizer without a scale moves all images by about as much, whatever their gradient weights.
    alike = apart and (victims == 1 or channel.movement is not None)
    spare = 10 ** ((margin_db + (0.0 if alike else NEIGHBOURS_DB)) / 10)
    best: SignLayout | None = None
    for count, total in _unit_counts(victims, units, directions, apart):
        lost = 0.0 if apart or total == 1 else expected_losses(victims, total / count, count)
        for positions, repeats in _forms(channel, apart and pulsed):
            each = ((room // total - constants) / repeats - HEADER) / (1 + SKETCH)
            longest = int(each if positions == 1 else each / positions * bits_of_pulse(positions))
            longest = min(longest, _inputs_of_raw(0, image_format))
            if longest < SHORTEST:
                continue
            ceiling = max(
                _quality(_bits(rung, longest, image_format), image_format.pixels, lost) for rung in range(len(LADDER))
            )
            if best and ceiling <= best.quality:
                continue
            curve = _Curve(channel, count, total, constants, positions, repeats, longest)
            for rung in range(len(LADDER)):
                if best and _quality(_bits(rung, longest, image_format), image_format.pixels, lost) <= best.quality:
                    continue
                inputs = curve.most_inputs(rung, min(longest, _inputs_of_raw(rung, image_format)), spare)
                if inputs < SHORTEST:
                    continue
                bits = _comparable(message_bits(rung, inputs), image_format)
                quality = _quality(bits, image_format.pixels, lost)
                worthwhile = message_bits(rung, inputs) >= worthwhile_bits(image_format)
                if worthwhile and (best is None or quality > best.quality):
                    used = tuple(float(step <= rung) for step in range(len(LADDER)))
                    plan = Plan(inputs, 1.0, used, rung, 0.0, True, positions, repeats, image_format.bit_depth)
                    sketch = math.ceil(SKETCH * pulses_of(inputs, positions))
                    best = SignLayout(count, total, sketch, plan, quality, own_units=apart)
    return best


def linear_layout(
    channel: SignChannel,
    victims: int,
    coefficients: int,
    room: int,
    constants: int,
    units: int | None = None,
    apart: bool = False,
) -> SignLayout:
    """The layout without a digital code: one direction, and as many signs of coefficients as tell most.

    Args:
        channel: What the entries go through.
        victims: Images in an update.
        coefficients: Of an image.
        room: Entries that the structure may have.
        constants: Constant inputs of a row.
        units: How many units the user asked for, if any.
        apart: As in `sign_layout`.
    """
    apart = apart and (units is None or units >= victims)
    several = round(_OWN_UNITS[0] * victims) if apart else max(_FEWEST_UNITS, _UNITS_PER_IMAGE * victims)
    total = units or (1 if victims == 1 else several)
    most = max(PILOTS, min(_MOST_REPEATS * coefficients, room // total - constants))
    counts = sorted({max(1, round(most * 2 ** (-step / 2))) for step in range(_STEPS)})
    best = max(counts, key=lambda count: count * channel.information(count + PILOTS, total * (count + constants)))
    snr = 2 * math.log(2) * channel.information(best + PILOTS, total * (best + constants))
    pilots = min(_MOST_PILOTS, max(PILOTS, math.ceil(_PILOT_ENERGY / max(snr, 1e-12))))
    return SignLayout(1, total, best, pilots=pilots, own_units=apart)


def _inputs_of_raw(rung: int, image_format: ImageFormat) -> int:
    """Inputs at which a codeword of this rate holds the raw image."""
    return math.ceil((image_format.raw_bits * image_format.pixels + 8 * OVERHEAD) / LADDER[rung].rate)


def _bits(rung: int, longest: int, image_format: ImageFormat) -> float:
    """Bits for each pixel in the longest codeword of a rate, see `_comparable`."""
    return _comparable(message_bits(rung, min(longest, _inputs_of_raw(rung, image_format))), image_format)


def _comparable(bits: int, image_format: ImageFormat) -> float:
    """Bits for each pixel, at 24 bits for a raw one: other images are taken to compress as 8-bit RGB ones do."""
    return bits / image_format.pixels * (RAW_BITS / image_format.raw_bits)


def _quality(bits: float, pixels: int, lost: float) -> float:
    """The same over all images, of which some are lost."""
    return lost * MEAN_IMAGE + (1 - lost) * expected_quality(bits, pixels)


def _unit_counts(victims: int, units: int | None, directions: int | None, apart: bool) -> list[tuple[int, int]]:
    """Directions, and units in all of them together, that are compared."""
    if victims == 1:
        return [(1, units or 1)]
    if apart:
        return [(1, units)] if units else [(1, math.ceil(share * victims)) for share in _OWN_UNITS]
    counts = (directions,) if directions else _DIRECTIONS
    if units is not None:
        return [(count, units) for count in counts if units >= count]
    return [(count, count * each) for count in counts for each in _UNITS]


def _forms(channel: SignChannel, apart: bool) -> list[tuple[int, int]]:
    """Positions of a pulse, and numbers of repetitions, that are compared."""
    if channel.method == "some":
        return [(1, repeats) for repeats in _REPEATS]
    return [(positions, 1) for positions in _POSITIONS] if apart and channel.method == "largest" else [(1, 1)]


class _Curve:
    """The information that each bit of a codeword carries, by the length of the codeword."""

    def __init__(
        self,
        channel: SignChannel,
        directions: int,
        units: int,
        constants: int,
        positions: int,
        repeats: int,
        longest: int,
    ) -> None:
        lengths = np.unique(np.geomspace(SHORTEST, longest, _POINTS).round().astype(int))
        self.lengths, self.information = np.log(lengths), list[float]()
        for inputs in lengths.tolist():
            count = pulses_of(inputs, positions)
            sketch, entries = math.ceil(SKETCH * count), positions * count if positions > 1 else count
            excited = (count + HEADER) * repeats + sketch + PILOTS
            shipped = units * ((entries + HEADER) * repeats + sketch + constants)
            found = channel.information(directions * excited, shipped, positions, repeats)
            self.information.append(math.log(max(found, 1e-12)))

    def most_inputs(self, rung: int, most: int, spare: float) -> int:
        """The largest number of inputs at which each row carries this rate; 0 if none does."""

        def enough(inputs: int) -> bool:
            needed = capacity_of(math.sqrt(needed_snr(rung, inputs) * spare))
            # In logarithms, in which the information of weak entries is a straight line.
            return float(np.interp(math.log(inputs), self.lengths, self.information)) >= math.log(needed)

        # Where a share of all entries arrives, a longer codeword may carry more of each bit, too.
        lengths = [round(math.exp(length)) for length in self.lengths if length < math.log(most)]
        fitting = [place for place, inputs in enumerate([*lengths, most]) if enough(inputs)]
        if not fitting:
            return 0
        low, high = [*lengths, most, most][fitting[-1] : fitting[-1] + 2]
        for _ in range(_BISECTIONS):
            middle = (low + high) // 2
            low, high = (middle, high) if enough(middle) else (low, middle)
        return low
