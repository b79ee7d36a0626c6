# SPDX-License-Identifier: Apache-2.0
"""Memory, time and disk of `recon fit` against the number of clients: resident memory is that of one wave."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps

STORED = {64: 96, 224: 256}  # side of the stored crops by that of the images
# Image size, images a client, clients, clients at once, ranks.
CELLS = (
    *((64, 1, clients, 32, 1) for clients in (64, 256, 1024)),
    *((64, 1, 512, 512, ranks) for ranks in (1, 2)),
    *((224, 16, clients, 2, 1) for clients in (4, 64)),
)
VALIDATION_SET = 50_000  # images of ImageNet
MEBIBYTE = 1 << 20


def rows(root: Path) -> Iterator[dict[str, object]]:
    """The table, with one row for each number of clients, size of a wave and number of ranks.

    Args:
        root: Folder of photographs; if there are too few, clients get other crops of the same ones.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for number, (size, batch, clients, at_once, ranks) in enumerate(CELLS):
            # The same folder for all cells of a size, so that the gallery of the scores is the same.
            count = max(one[1] * one[2] for one in CELLS if one[0] == size)
            images = crops(root, Path(scratch) / f"images{size}", count, STORED[size])
            run = Path(scratch) / f"run{number}"
            row: dict[str, object] = {"size": size, "batch": batch, "clients": clients, "clients_at_once": at_once}
            row |= {"ranks": ranks} | measured(command(images, run, size, batch, clients, at_once, ranks), run)
            print(row, flush=True)
            yield row


def crops(root: Path, folder: Path, count: int, side: int) -> Path:
    """A folder with so many images: photographs, and then other crops of them."""
    if not folder.exists():
        folder.mkdir(parents=True)
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
        for number in range(count):
            turn, place = divmod(number, len(paths))
            with Image.open(paths[place]) as image:
                photograph = image.convert("RGB")
            # Each turn shows another part: nine tenths of the shorter side, moved along the longer one and mirrored.
            centre = (0.5, 0.5) if turn == 0 else (0.1 + 0.8 * (turn * 0.618 % 1), 0.1 + 0.8 * (turn * 0.414 % 1))
            part = ImageOps.fit(photograph, (side, side), bleed=0.05 if turn else 0.0, centering=centre)
            (ImageOps.mirror(part) if turn % 2 else part).save(folder / f"{number:05d}.png")
    return folder


def command(images: Path, run: Path, size: int, batch: int, clients: int, at_once: int, ranks: int) -> list[str]:
    """The command line of a cell: the linear code, each sample clipped alone, six refinement steps."""
    options = {
        "config": "imagenet.yaml",
        "data.source": "folder",
        "model.structure": "WaterFilling",
        "model.client.network": "resnet18",
        "model.client.num_classes": 64,
        "model.client.privacy.granularity": "sample",
        "model.client.privacy.noise_multiplier": 0.01,
        "model.client.noise_seed": 0,
        "data.root": images,
        "data.num_classes": 64,
        "data.masks": "NoMasks",
        "data.image_size": size,
        "data.batch_size": batch,
        "data.clients": clients,
        "data.clients_at_once": at_once,
        "trainer.max_steps": 6,
        "trainer.accelerator": "cpu",
        "trainer.devices": ranks,
        "trainer.default_root_dir": run,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    words += ["--trainer.strategy=ddp"] if ranks > 1 else []
    return [sys.executable, "-m", "lightning_recon", "fit", *words]


def measured(words: list[str], run: Path) -> dict[str, object]:
    """Run a command; its peak of resident memory in one process, images a minute, and bytes on disk."""
    # One arena: with several, the peak of equal runs differs by a tenth.
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    began = time.monotonic()
    process = os.posix_spawn(words[0], words, environment)
    _, status, usage = os.wait4(process, 0)
    seconds = time.monotonic() - began
    if status:
        raise RuntimeError(f"{' '.join(words)} failed")
    record = json.loads((run / "results.json").read_text())
    images = record["summary"]["victims"]
    stored = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    return {
        "images": images,
        "resident_mib": round(usage.ru_maxrss * 1024 / MEBIBYTE),
        "seconds": round(seconds, 1),
        "images_a_minute": round(60 * images / seconds, 1),
        "hours_for_50000": round(VALIDATION_SET / images * seconds / 3600, 1),
        "disk_mib": round(stored / MEBIBYTE, 1),
        "psnr_mean": round(record["summary"]["psnr_mean"], 3),
    }
