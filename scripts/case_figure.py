# SPDX-License-Identifier: Apache-2.0
"""The figure of the case studies: cells of the table `case_studies`, run once more on the bundled photographs."""

import json
import tempfile
from pathlib import Path

import torch
from case_cells import case_studies
from measuring import Cell, measured
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from lightning_recon.callbacks.figures import Version, caption, comparison_figure
from lightning_recon.data import ClientDataModule, NoMasks

SIZE, BATCH, VICTIMS = 64, 8, 4
COLUMNS = (
    # case and setting in the table, heading
    ("FLIP", "one round", "FLIP"),
    ("seed paper", "one round", "seed paper"),
    ("FLIP as advised", "3 rounds", "FLIP as advised"),
    ("Opacus tutorial", "one round, 8 images a client", "Opacus, 1 round"),
    ("Opacus tutorial", "20 rounds, 8 images a client", "Opacus, 20 rounds"),
)


def draw(path: Path) -> None:
    """Draw the first client's first images and their reconstructions under each protection.

    Args:
        path: the PNG file that is written.
    """
    data = ClientDataModule(image_size=SIZE, batch_size=BATCH, clients=2, masks=NoMasks(), num_classes=16)
    data.prepare_data()
    data.setup()
    columns = [Version("photograph", data.client_batches[0].images[:VICTIMS])]
    cells = {(found["case"], found["setting"]): cell for cell in case_studies() if (found := dict(cell.columns))}
    columns += [_reconstructed(cells[case, setting], heading) for case, setting, heading in COLUMNS]
    comparison_figure(columns, tile=2 * SIZE).save(path)


def _reconstructed(cell: Cell, heading: str) -> Version:
    """The same cell on the bundled photographs, with one noise draw."""
    options = cell.options.replace("--config imagenet.yaml", "--config quickstart.yaml", 1)
    bundled = Cell(options.replace("--model.draws 3", "--model.draws 1"), pictures="bundled")
    with tempfile.TemporaryDirectory() as scratch:
        folder = measured(bundled, Path(scratch), Path(scratch))
        victims = json.loads((folder / "results.json").read_text())["victims"][:VICTIMS]
        images = [pil_to_tensor(Image.open(folder / victim["image"])).float() / 255 for victim in victims]
    return Version(heading, torch.stack(images), [caption(one["psnr"], one["bit_exact"]) for one in victims])
