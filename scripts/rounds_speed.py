# SPDX-License-Identifier: Apache-2.0
"""Processor time of a round of feedback, before lazily drawn noise and now, in turns on the same machine.

    git worktree add ../before f4b39ca8
    python scripts/rounds_speed.py --root DIR --before ../before       # writes results/rounds_speed.csv

DIR is a folder of photographs. A process for each variant attacks one client with ResNet-18 and 64 x 64 images, each
clipped alone, in one thread; the variants take turns of all rounds of one noise draw. The time includes the client, the
server's feedback and decoding, and the files. `images_sha256` shows that all variants decode the same images.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from inspect import signature
from pathlib import Path

DRAWS, SIZE, CLASSES, NOISE = 5, 64, 64, 0.1
SETTINGS = ((1, 1, 40), (4, 16, 16))  # images in a round, images of the client, rounds
VARIANTS = (("before", "true"), ("now", "true"), ("now", "rows"), ("now", "false"))  # and what is recorded


def main() -> None:
    """Measure all settings and write the table; or be one of its processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--before")
    parser.add_argument("--output", default="results/rounds_speed.csv")
    parser.add_argument("--variant", help="of a process of this script: images, images of the client, rounds, record")
    chosen = parser.parse_args()
    if chosen.variant:
        images, local, rounds, record = chosen.variant.split(",")
        answer(chosen.root, int(images), int(local), int(rounds), record)
        return
    if chosen.before is None:
        parser.error("--before names the tree of the version to compare with")
    found = [row for setting in SETTINGS for row in rows(chosen.root, Path(chosen.before), *setting)]
    with open(chosen.output, "w", newline="") as file:
        packages = ", ".join(f"{name} {version(name)}" for name in ("lightning_recon", "torch"))
        file.write(f"# python scripts/rounds_speed.py --root DIR --before TREE; {packages}\n")
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def rows(root: str, before: Path, images: int, local: int, rounds: int) -> Iterator[dict[str, object]]:
    """One row for each variant and draw of a setting.

    Args:
        root: Folder of photographs.
        before: Tree of the earlier version.
        images: Images in a round.
        local: Images of the client.
        rounds: Number of rounds.
    """
    here = Path(__file__).resolve()
    processes = []
    for when, record in VARIANTS:
        tree = before if when == "before" else here.parent.parent
        environment = dict(os.environ) | {"PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, str(here), "--root", root, "--variant", f"{images},{local},{rounds},{record}"]
        processes.append(
            subprocess.Popen(words, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
    for draw in (None, *range(DRAWS)):  # a first turn, which is slower, counts for nothing
        earlier: dict[str, float] = {}
        for (when, record), process in zip(VARIANTS, processes, strict=True):
            assert process.stdin is not None
            assert process.stdout is not None
            print(DRAWS if draw is None else draw, file=process.stdin, flush=True)
            answered = json.loads(process.stdout.readline())
            earlier = earlier or answered
            assert answered["images"] == earlier["images"], "the variants decode other images"
            if draw is None:
                continue
            yield {
                "images": images,
                "local_images": local,
                "rounds": rounds,
                "variant": when,
                "record": record,
                "draw": draw,
                "cpu_ms_per_round": round(1000 * answered["seconds"] / rounds, 2),
                "times_faster": round(earlier["seconds"] / answered["seconds"], 2),
                "images_sha256": answered["images"][:12],
            }
            print(when, record, draw, answered, flush=True)
    for process in processes:
        process.communicate()


def answer(root: str, images: int, local: int, rounds: int, record: str) -> None:
    """Attack the client under the noise draw of each line of the input; print processor time and a hash of the images.

    Args:
        root: Folder of photographs.
        images: Images in a round.
        local: Images of the client.
        rounds: Number of rounds.
        record: As `--model.record`.
    """
    # Not earlier: each process imports the package from its own tree.
    import torch

    from lightning_recon.attack.protocol import record_payload, run_protocol
    from lightning_recon.client import Privacy, VictimClient
    from lightning_recon.data import ClientDataModule, NoMasks
    from lightning_recon.data.sources import DataProtocol
    from lightning_recon.structure import Feedback

    torch.set_num_threads(1)
    data = ClientDataModule(
        root, image_size=SIZE, batch_size=images, local_images=local, clients=1, masks=NoMasks(), num_classes=CLASSES
    )
    data.prepare_data()
    data.setup()
    privacy = Privacy(max_grad_norm=10.0, noise_multiplier=NOISE, granularity="sample", rounds=rounds)
    sampling = "all" if images == local else "shuffle"
    client = VictimClient("resnet18", CLASSES, privacy=privacy, noise_seed=0, sampling=sampling)
    client.bind(data.client_batches, DataProtocol(images, local_images=local))
    structure = Feedback()
    payload = structure.payload(client.task)
    # The version before knows one way to record, with hashes of all tensors.
    hashes = {"hash_omitted": True} if record == "true" and "hash_omitted" in signature(run_protocol).parameters else {}
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            recorded = None if record == "false" else Path(folder)
            if recorded is not None:
                record_payload(payload, structure, client.task, recorded)
            began = time.process_time()
            found = run_protocol(client, structure, payload, 0, int(line), recorded, **hashes)
            seconds = time.process_time() - began
        digest = hashlib.sha256(found.images.contiguous().numpy().tobytes()).hexdigest()
        print(json.dumps({"seconds": seconds, "images": digest}), flush=True)


if __name__ == "__main__":
    main()
