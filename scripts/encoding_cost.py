# SPDX-License-Identifier: Apache-2.0
"""What a structure costs the client: seconds a forward pass of its layer takes on one core, and its upload."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.structure import Digital, WaterFilling
from lightning_recon.structure.layer import build_layer, structure_bytes

CLASSES, CLIENTS = 64, 3
# Image size, images a client, granularity, noise multiplier: settings of the tables.
SETTINGS = ((64, 1, "sample", 0.01), (64, 16, "update", 3e-4), (224, 16, "update", 2e-4))


def rows(root: Path) -> Iterator[dict[str, object]]:
    """The table, with one row per setting and code.

    Args:
        root: Folder of photographs.
    """
    torch.set_num_threads(1)
    for size, batch, granularity, z in SETTINGS:
        data = ClientDataModule(
            str(root), image_size=size, batch_size=batch, clients=CLIENTS, masks=NoMasks(), num_classes=CLASSES
        )
        data.prepare_data()
        data.setup()
        privacy = Privacy(max_grad_norm=10.0, noise_multiplier=z, granularity=granularity)
        client = VictimClient("convnet", CLASSES, privacy=privacy, noise_seed=0)
        client.bind(data.client_batches)
        codes = {"digital": Digital(), "digital tensor": Digital(source_code="tensor"), "water_filling": WaterFilling()}
        for name, structure in codes.items():
            payload = structure.payload(client.task)
            layer = build_layer(payload)
            seconds = []
            for one in data.client_batches:  # other images each time: codewords are computed once an image
                start = time.process_time()
                layer(one.images, torch.zeros(batch, CLASSES))
                seconds.append(time.process_time() - start)
            print(
                f"{name}, {size} x {size}, {batch}: {statistics.median(seconds) / batch:.4f} s an image",
                flush=True,
            )
            yield {
                "attack": name,
                "granularity": granularity,
                "z": z,
                "size": size,
                "batch": batch,
                "client_seconds_per_image": round(statistics.median(seconds) / batch, 5),
                "structure_bytes": structure_bytes(payload),
            }
