# SPDX-License-Identifier: Apache-2.0
"""Write the true images of the first victims into the run folder, for reports; no attack reads them."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_recon.attack import Attack
from lightning_recon.callbacks.ground_truth import truths_of
from lightning_recon.data.sources import ClientBatch
from lightning_recon.display import window_of
from lightning_recon.evaluation.metrics import psnr_per_image
from lightning_recon.files.image_writer import write_image
from lightning_recon.files.serialization import write_json
from lightning_recon.ranges import COUNT_OR_NONE, check_ranges

FOLDER = "truth"
INDEX = f"{FOLDER}/index.json"


class TruthWriter(Callback):
    """Writes photographs, what the client trained on, and the PSNR of the mean image."""

    def __init__(self, pictures: int = 8) -> None:
        """Choose how many victims.

        Args:
            pictures: Write image files of at most this many victims; scores and names are kept of all.
        """
        check_ranges("Originals: ", pictures=(pictures, COUNT_OR_NONE))
        self.pictures = pictures

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write after the attack, so that one that is refused leaves an earlier run's folder as it was."""
        batches = [batch for batch in truths_of(trainer) if isinstance(batch, ClientBatch)]
        if not isinstance(pl_module, Attack) or not batches or not trainer.is_global_zero:
            return
        root = Path(trainer.default_root_dir)
        victims: list[dict[str, object]] = []
        depth = pl_module.task.bit_depth
        window = window_of(torch.cat([batch.photographs for batch in batches]), depth)
        for client, batch in enumerate(batches):
            mean = pl_module.mean_image.to(batch.images).expand_as(batch.images)
            for index, score in enumerate(psnr_per_image(mean, batch.images).tolist()):
                entry = {"client": client, "index": index, "name": batch.names[index], "mean_image_psnr": score}
                if len(victims) < self.pictures:
                    for kind, images in (("photograph", batch.photographs), ("used", batch.images)):
                        entry[kind] = f"{FOLDER}/{len(victims):03d}-{kind}.png"
                        write_image(root / str(entry[kind]), images[index], depth, window)
                victims.append(entry)
        write_json(root / INDEX, {"victims": victims})
