# SPDX-License-Identifier: Apache-2.0
"""The cells of the table about images of other formats than 8-bit RGB."""

from collections.abc import Iterator

from cells import CLOSED_FORM, CONVNET, DIGITAL, LINEAR, PHOTOGRAPHS, SAMPLE, Z, cell, fixed
from measuring import Cell

CLIENTS, DRAWS, NOISES = 8, 5, (0.01, 0.003, 0.001)
# Of the photographs: name, options, bits of a value.
FORMATS = (
    ("RGB, 8 bits", "--data.image_size 64", 8),
    ("grey, 8 bits", "--data.image_size 64 --data.channels 1", 8),
    ("grey, 16 bits", "--data.image_size 64 --data.channels 1 --data.bit_depth 16", 16),
    ("grey, 8 bits, 28 x 28", "--data.image_size 28 --data.channels 1", 8),
)
ATTACKS = (("digital", f"{DIGITAL} {CLOSED_FORM}"), ("water_filling", LINEAR))


def pictures() -> Iterator[Cell]:
    """Images of one channel and of 16 bits beside RGB: one image per client, each sample clipped."""
    for z in NOISES:
        for attack, code in ATTACKS:
            for name, options, bits in FORMATS:
                setting = f"{CONVNET} {options} --data.batch_size 1 --data.clients {CLIENTS} {PHOTOGRAPHS} {SAMPLE}"
                yield cell(setting, code, "--model.record false", z=z, attack=attack, format=name, bit_depth=bits)
            line = f"--config grey16.yaml {code} {CONVNET} --data.batch_size 1 --data.clients 6 --model.record false"
            columns = (("format", "bundled grey images, 16 bits"), ("bit_depth", 16))
            yield Cell(f"{line} --model.draws {DRAWS} {Z} {fixed(z)}", attack, "bundled", columns)
