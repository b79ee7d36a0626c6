# SPDX-License-Identifier: Apache-2.0
"""How often the channel code fails: random messages at every rate and several lengths, near capacity.

    python scripts/channel_code.py            # writes results/channel_code.csv

Each row counts codewords of one rate and length that were not decoded, at a signal-to-noise ratio given in decibels
above the capacity of ±1 inputs, and below the ratio that `needed_snr` asks for.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from measuring import write_rows

from lightning_recon.structure.coding.channel_code import (
    LADDER,
    capacity_snr,
    decode_batch,
    encode,
    message_bits,
    needed_snr,
)

RESULTS = Path(__file__).parent.parent / "results"
# Message bits, codewords for every rate at the ratio that is asked for, and how many are decoded at once.
LENGTHS = ((1400, 400, 100), (5600, 60, 20), (24000, 8, 8))
# Decibels by which the ratio falls short of what is asked for.
SHORT_OF = (0.0, 0.4)
# Below what is asked for, this share of the codewords suffices.
SHARE = 0.25


def failures(rung: int, inputs: int, snr: float, codewords: int, batch: int, seed: int) -> int:
    """Codewords of random messages that are lost or decoded wrongly.

    Args:
        rung: Place on the ladder.
        inputs: Length of each codeword.
        snr: Power of an input by the variance of its noise.
        codewords: How many.
        batch: How many of them are decoded at once.
        seed: Of messages and noise.
    """
    generator, lost = torch.Generator().manual_seed(seed), 0
    for first in range(0, codewords, batch):
        shape = (min(batch, codewords - first), message_bits(rung, inputs))
        messages = torch.randint(2, shape, generator=generator)
        sent = torch.stack([1.0 - 2.0 * encode(message, rung, inputs) for message in messages])
        received = sent + torch.randn(sent.shape, generator=generator) / math.sqrt(snr)
        decoded = decode_batch(2 * snr * received, rung)
        lost += sum(
            found is None or not torch.equal(found, message) for found, message in zip(decoded, messages, strict=True)
        )
    return lost


def rows() -> Iterator[dict[str, object]]:
    """The table, with one row per rate, length and ratio."""
    for bits, codewords, batch in LENGTHS:
        for rung, code in enumerate(LADDER):
            inputs = round(bits / code.rate)
            sent = message_bits(rung, inputs)
            capacity, needed = capacity_snr(sent / inputs), needed_snr(rung, inputs)
            for short_of in SHORT_OF:
                count = codewords if short_of == 0 else max(batch, round(SHARE * codewords / batch) * batch)
                snr = needed * 10 ** (-short_of / 10)
                lost = failures(rung, inputs, snr, count, batch, seed=rung)
                row = {
                    "rung": rung,
                    "rate": code.rate,
                    "length": bits,
                    "message_bits": sent,
                    "below_design_db": short_of,
                    "above_capacity_db": round(10 * math.log10(snr / capacity), 3),
                    "codewords": count,
                    "failures": lost,
                    "failure_share": lost / count,
                }
                print(row, flush=True)
                yield row


def main() -> None:
    """Measure the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table is written")
    path = parser.parse_args().results / "channel_code.csv"
    torch.set_num_threads(1)
    write_rows(path, "python scripts/channel_code.py", list(rows()))


if __name__ == "__main__":
    main()
