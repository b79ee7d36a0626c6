# SPDX-License-Identifier: Apache-2.0
"""What to expect of a code of ±1: quality of an image by the bits of its file, and images lost in collisions."""

import math

from lightning_recon.structure.coding.code_plan import RAW_BITS

# Quality of an image by the bits of its file, in decibels: that of the mean image, what a bit for each pixel adds, and
# what counts for an image that is exact.
MEAN_IMAGE, _AT_LOW_RATE, _EACH_BIT, _LOW_RATE, _EXACT = 12.0, 31.0, 2.0, 3.0, 79.0
# Bits for each pixel of lossless files of 64 x 64 pixels, what each doubling of the side saves, and their standard
# deviation: of the bundled photographs.
_LOSSLESS_BITS, _OCTAVE_BITS, _LOSSLESS_STD = 13.3, 2.4, 2.4
# Intervals are not filled quite evenly, so that collisions are this much more frequent.
_UNEVEN = 1.3


def expected_quality(bits: float, pixels: int) -> float:
    """About how good an image is, in decibels, whose file has so many bits for each of its pixels."""
    typical = _LOSSLESS_BITS - _OCTAVE_BITS * math.log2(math.sqrt(pixels) / 64)
    exact = 0.5 * math.erfc((typical - bits) / (_LOSSLESS_STD * math.sqrt(2)))
    if bits < _LOW_RATE:
        lossy = MEAN_IMAGE + (_AT_LOW_RATE + _EACH_BIT * _LOW_RATE - MEAN_IMAGE) * math.sqrt(bits / _LOW_RATE)
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
