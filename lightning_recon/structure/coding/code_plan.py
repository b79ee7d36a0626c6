# SPDX-License-Identifier: Apache-2.0
"""Power allocation of a digital code: number of inputs, amplitudes, rates, and the share left for the sketch."""

import math
from dataclasses import dataclass

from lightning_recon.image_format import ImageFormat
from lightning_recon.structure.coding.channel_code import LADDER, message_bits, needed_snr
from lightning_recon.structure.coding.image_codec import OVERHEAD, is_common
from lightning_recon.structure.coding.pulses import pulses_of

# Inputs that name the chosen rate, and their energy in units of the noise variance: headers that differ by twice that
# energy are confused less than once in 10⁸ times.
HEADER = 512
HEADER_ENERGY = 70.0
# The linear sketch gets as much power as brings its own noise to this, which still makes a recognisable image; but
# at least so much that it separates the victims, and at most what costs the code 0.36 dB.
_SKETCH_NOISE, _SKETCH_LEAST, _SKETCH_MOST = 0.06, 0.03, 0.08
# One clip for all: the largest files may have this multiple of the power of an equal share, but no more than the
# smallest files can leave.
_BORROWED = 2.0
# Bits a pixel below which a linear code makes the better image, of 8-bit RGB images.
WORTHWHILE = 0.16
# The same for images that the codec of tensor operations does not take, whose files are long however little they hold.
# Found on 8 ImageNet photographs, one image a client, one noise draw, in closed form, every codeword received: where
# the mean PSNR of both codes crosses, interpolated between measured lengths.
# 8-bit grey, AVIF: at 48, 57, 59, 64, 105 and 180 bytes for squares of side 24, 32, 48, 64, 128 and 224, which is at
# most about `_GREY_BYTES` and `_GREY_BITS` for each pixel.
_GREY_BYTES, _GREY_BITS = 56, 0.025
# JPEG 2000, bytes of a channel, whatever the size. Grey: 105 to 130 at 16 bits (sides 24 to 128; below 120 at 224), 140
# at 9 and 10 bits (32 and 64). Four channels of 8 and 12 bits, unrelated photographs: 100 to 115 (32 to 128). 16-bit
# RGB: 155 to 205 (32 to 128), since JPEG 2000 codes each channel by itself, and the linear code knows the axes of
# colours.
_PLANE_BYTES, _COLOUR_BYTES = 140, 200
# JPEG 2000 and AVIF hold a single colour in so many bytes a channel, and so many more for each pixel: AVIF needed 37 at
# 512 x 512 pixels, and at most 48, 64 and 128 at 768, 1024 and 1536 x 1536.
_LEAST_BYTES, _LEAST_BYTES_OF_PIXEL = 40, 5e-5
# One clip for all: decibels to spare for interference, since victims differ in gradient weight and are never cancelled
# completely.
NEIGHBOURS_DB = 0.4
RAW_BITS = 24  # of a pixel of 8-bit RGB images
# Shorter codewords are no long random codes any more.
SHORTEST = 1000
# Of rates that carry nearly as many bits the highest is used, whose codewords have the fewest inputs; this share may be
# lost.
_NEARLY = 0.01
# A codeword has at most as many inputs as the raw image at this rate: more would take longer to decode than they bring.
_LOWEST_RAW_RATE = 0.1
# Of the channel code and its header: payloads of another one cannot be read.
VERSION = 3
# Of the messages of the codec of tensor operations, see `coding.tensor_codec`.
TENSOR_VERSION = 1
# Channels and bits of a value that this codec is made for.
TENSOR_FORMAT = (3, 8)
# Of the order in which pulses take the bits of a codeword.
PULSES_VERSION = 2
# Rounding in float32 leaves at least this noise in every row.
_LEAST_NOISE = 1e-6


@dataclass(frozen=True)
class Plan:
    """A digital code as the server ships it.

    Args:
        inputs: ±1 inputs of the codeword (n).
        header: Amplitude of each of the `HEADER` inputs before them, where all inputs have norm 1.
        amplitudes: Amplitude of each ±1 input at every rung of the ladder, 0 where the rung is not to be used.
        fair: The rung for images that no rung takes losslessly.
        sketch: Share of the power for the linear sketch and its pilot.
        shared: Whether all victims share one clip. If not, the amplitude of an image's digital inputs follows
            the norm of its sketch and pilot, so that clipping leaves both their shares.
        positions: Inputs of which one is not zero; above 1 the codeword is sent as pulses, see `coding.pulses`.
        repeats: How often header and codeword are sent, where only a random share of the entries arrives.
        bit_depth: Bits of a value of the images, to which clients round them.
        tensor: Whether messages are made by tensor operations alone, see `coding.tensor_codec`, instead of an image
            library.
        jpeg_xl: Whether lossless images are JPEG XL instead of WebP, see `coding.jpeg_xl`.
    """

    inputs: int
    header: float
    amplitudes: tuple[float, ...]
    fair: int
    sketch: float
    shared: bool
    positions: int = 1
    repeats: int = 1
    bit_depth: int = 8
    tensor: bool = False
    jpeg_xl: bool = False

    @property
    def entries(self) -> int:
        """Inputs of the layer that hold the codeword: as many as it has, or those of its pulses."""
        return self.inputs if self.positions == 1 else pulses_of(self.inputs, self.positions) * self.positions

    @property
    def words(self) -> int:
        """Inputs of the layer that hold header and codeword, all repetitions together."""
        return (HEADER + self.entries) * self.repeats

    def bytes_of(self, rung: int) -> int:
        """The longest file that a rung takes; 0 for a rung that is not used."""
        usable = self.amplitudes[rung] > 0
        return max(0, message_bits(rung, self.inputs) // 8 - OVERHEAD) if usable else 0

    def settings(self) -> dict[str, bool | int | float | str]:
        """The plan in a payload's settings."""
        return {
            "digital_code": VERSION,
            "digital_inputs": self.inputs,
            "digital_header": self.header,
            "digital_fair": self.fair,
            "digital_sketch": self.sketch,
            "digital_shared": self.shared,
            **({"digital_positions": self.positions, "digital_pulses": PULSES_VERSION} if self.positions > 1 else {}),
            **({"digital_repeats": self.repeats} if self.repeats > 1 else {}),
            **({"digital_bit_depth": self.bit_depth} if self.bit_depth > 8 else {}),
            **({"digital_tensor": TENSOR_VERSION} if self.tensor else {}),
            **({"digital_jpeg_xl": True} if self.jpeg_xl else {}),
        }


def digital_plan(
    noise: float,
    image_format: ImageFormat,
    most_inputs: int,
    shared: bool,
    margin_db: float,
    always_digital: bool = False,
) -> Plan | None:
    """Choose the code.

    Inputs cost nothing but upload, power is all there is: so the rate is the one that carries most bits with as many
    inputs as the available power fills, at most as many as the upload allows. The lower the rate, the more a unit of
    energy carries; where inputs run short, a higher rate makes up for it.

    Clipped alone, a victim always has its whole power, and a file that leaves bits free gains nothing from a smaller
    amplitude: one amplitude fits all. Under one clip the victims share the power, and a victim that needs less leaves
    it to the others: the amplitude is what the rate of the file needs, and large files may borrow what small ones
    leave. Then all have the same margin. An image too large for that is sent lossily at the rate of an equal share.

    Args:
        noise: Noise standard deviation of each input when a victim's inputs have norm 1, z_e.
        image_format: Format of the images.
        most_inputs: What the upload allows.
        shared: Whether all victims share one clip.
        margin_db: By how many decibels the noise may exceed what is assumed.
        always_digital: Whether to send digitally at any noise.

    Returns:
        The plan; None where a linear code makes the better image, for fewer than 1000 inputs, and where not every
        message would hold an image.
    """
    noise = max(noise, _LEAST_NOISE)
    header, sketch = min(0.05, HEADER_ENERGY * noise**2), sketch_share(noise)
    spare = margin_db + (NEIGHBOURS_DB if shared else 0.0)
    energy = (1 - header - sketch) / (noise**2 * 10 ** (spare / 10))
    most = max(0, min(most_inputs, math.ceil(image_format.raw_bits * image_format.pixels / _LOWEST_RAW_RATE)))
    lengths = [_longest(rung, most, energy) for rung in range(len(LADDER))]
    bits = [message_bits(rung, length) if length >= SHORTEST else 0 for rung, length in enumerate(lengths)]
    fair = max(rung for rung, number in enumerate(bits) if number >= (1 - _NEARLY) * max(bits))
    inputs = lengths[fair]
    if inputs < SHORTEST or message_bits(fair, inputs) < least_bits(image_format, always_digital):
        return None
    power = (1 - header - sketch) / inputs
    if shared:
        needed = [needed_snr(rung, inputs) for rung in range(len(LADDER))]
        borrowed = min(_BORROWED, needed[fair] / needed[0])
        powers = [power * snr / needed[fair] if snr <= borrowed * needed[fair] else 0.0 for snr in needed]
    else:
        powers = [power if rung <= fair else 0.0 for rung in range(len(LADDER))]
    amplitudes = tuple(math.sqrt(p) for p in powers)
    return Plan(inputs, math.sqrt(header / HEADER), amplitudes, fair, sketch, shared, bit_depth=image_format.bit_depth)


def _longest(rung: int, most: int, energy: float) -> int:
    """How many inputs the energy, in units of the noise variance, fills at a rate; at most `most`."""
    inputs = most
    for _ in range(5):  # what a codeword needs depends a little on its length
        inputs = min(most, int(energy / needed_snr(rung, max(inputs, 1))))
    while inputs * needed_snr(rung, inputs) > energy:  # parities come in dozens: the rate changes with the length
        inputs -= 1 + inputs // 10_000
    return inputs


def has_tensor_codec(image_format: ImageFormat) -> bool:
    """Whether the codec of tensor operations takes such images."""
    return (image_format.channels, image_format.bit_depth) == TENSOR_FORMAT


def worthwhile_bits(image_format: ImageFormat) -> float:
    """Bits of a message below which a linear code makes the better image; at most those of the raw image."""
    if has_tensor_codec(image_format):
        return WORTHWHILE * image_format.pixels
    if is_common(image_format):
        found = 8 * (_GREY_BYTES + OVERHEAD) + _GREY_BITS * image_format.pixels
    else:
        channel = _COLOUR_BYTES if image_format.channels == 3 else _PLANE_BYTES
        found = 8 * (channel * image_format.channels + OVERHEAD)
    return min(found, image_format.raw_bits * image_format.pixels)


def least_bits(image_format: ImageFormat, always_digital: bool) -> float:
    """Bits of the shortest message that is sent; where the code is always digital, one that holds a single colour."""
    if not always_digital:
        return worthwhile_bits(image_format)
    if has_tensor_codec(image_format):
        return 0.0
    channel = _LEAST_BYTES + _LEAST_BYTES_OF_PIXEL * image_format.pixels
    return 8 * (channel * image_format.channels + OVERHEAD)


def sketch_share(noise: float) -> float:
    """Share of the power for the linear sketch, which replaces a lost codeword, and shows which rows hold which victim.

    It gets the power that makes it recognisable, which is 8 % at z_e = 0.017, where it costs the code 0.36 dB, and at
    low noise the 3 % that separate the victims, 0.13 dB. More would be wasted: hardly a codeword is lost as long as the
    noise is what was assumed.

    Args:
        noise: Noise standard deviation of each input when a victim's inputs have norm 1, z_e.
    """
    return min(_SKETCH_MOST, max(_SKETCH_LEAST, (noise / _SKETCH_NOISE) ** 2))
