# SPDX-License-Identifier: Apache-2.0
"""What the cells of all tables are made of: the options of `recon fit` that they share."""

from measuring import Cell

PHOTOGRAPHS = "--data.masks lightning_recon.data.NoMasks"
GRABCUT = "--data.masks lightning_recon.data.GrabCutMasks"
CONVNET = "--model.client.network convnet"
SAMPLE = "--model.client.privacy.granularity sample"
Z, ROUNDS = "--model.client.privacy.noise_multiplier", "--model.client.privacy.rounds"
CLOSED_FORM = "--trainer.max_steps 0"

LINEAR, DIGITAL = "--config attack/linear.yaml", "--config attack/digital.yaml"
TENSOR = "--model.structure.source_code tensor"
FEEDBACK = "--config attack/feedback.yaml"
OURS = ("", "water_filling")  # no other attack is named
PRETRAINED = "--model.client.network pretrained.EfficientNetLite0 --model.client.normalization imagenet"


def fixed(number: float) -> str:
    """A number without an exponent, which every YAML reader parses as a number."""
    return f"{number:.12f}".rstrip("0").rstrip(".")


def cell(
    *options: str, z: float, attack: str | None = None, pictures: str = "root", draws: int = 5, **columns: object
) -> Cell:
    """A cell with several noise draws: the paper's setting with further options; quickstart's for the bundled images.

    Where no attack is named it is our linear code.
    """
    config = "--config quickstart.yaml" if pictures == "bundled" else "--config imagenet.yaml"
    code = "" if any("attack/" in option for option in options) else LINEAR
    line = " ".join((config, code, *options, f"--model.draws {draws}", f"{Z} {fixed(z)}"))
    return Cell(" ".join(line.split()), attack, pictures, tuple(columns.items()))


def small(batch: int, clients: int, *options: str) -> str:
    """64 x 64 images and a small network."""
    shape = f"{CONVNET} --data.image_size 64 --data.batch_size {batch} --data.clients {clients}"
    return " ".join((shape, *options))
