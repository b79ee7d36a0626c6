# SPDX-License-Identifier: Apache-2.0
"""Cells of the table `trainings`: whole data sets extracted over a training."""

from collections.abc import Iterator

from cells import CLOSED_FORM, FEEDBACK, PHOTOGRAPHS, ROUNDS, SAMPLE, cell, small
from measuring import Cell

IMAGES, BATCH, EPOCHS = 256, 16, 10


def trainings() -> Iterator[Cell]:
    """256 images of one client in batches of 16 over ten epochs, and the same images in fixed batches: 3 draws."""
    for z in (0.01, 0.03):
        for sampling in ("shuffle", "fixed_size") if z == 0.03 else ("shuffle",):
            drawn = f"--data.local_images {IMAGES} --model.client.sampling {sampling}"
            yield _cell(small(BATCH, 1, SAMPLE, drawn), EPOCHS * IMAGES // BATCH, z, sampling)
        # The images of one client are those of so many clients with a fixed batch each, with as many looks at each.
        yield _cell(small(BATCH, IMAGES // BATCH, SAMPLE), EPOCHS, z, "fixed batch")


def _cell(setting: str, rounds: int, z: float, sampling: str) -> Cell:
    options = f"{setting} {ROUNDS} {rounds} --model.record false {CLOSED_FORM}"
    return cell(FEEDBACK, options, PHOTOGRAPHS, z=z, draws=3, sampling=sampling)
