# SPDX-License-Identifier: Apache-2.0
"""Does the structure have the whole clipping budget, whatever the network, the batch and the mode of its normalisation?

    python scripts/budget.py                # writes results/budget.csv; some twenty minutes on one core

Every cell is attacked in closed form by three structures that differ in nothing else: the default, which detaches the
network's logits; the network attached and a strength of 1e9; attached and 1e4, the default until then. Pictures are the
bundled photographs, networks untrained; all three meet the same noise. `share` is what the attacker estimates, and
`true_share` what the client knows.
"""

import argparse
import csv
import statistics
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from torch import Tensor, nn

from lightning_recon.attack.protocol import run_protocol
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.data.sources import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.evaluation.scoring import score
from lightning_recon.networks.setup_check import SINGLE_NUMBER
from lightning_recon.reconstruction import Reconstruction
from lightning_recon.structure import Digital, WaterFilling

RESULTS = Path(__file__).parent.parent / "results" / "budget.csv"
PACKAGES = ("lightning_recon", "torch", "torchvision", *(("timm",) if find_spec("timm") else ()))
NETWORKS = (
    "convnet", "resnet18", "resnet50", "vgg11_bn", "densenet121", "mobilenet_v3_small", "efficientnet_b0",
    "shufflenet_v2_x0_5", "squeezenet1_1", "regnet_y_400mf", "convnext_tiny",
    *(("budget.TinyTransformer",) if find_spec("timm") else ()),
)  # fmt: skip
WAYS = {
    "default": {},
    "strength_1e9": {"strength": 1e9, "detach_logits": False},
    "strength_1e4": {"strength": 1e4, "detach_logits": False},
}
CODES = {"linear": WaterFilling, "digital": Digital}
SIZE, CLASSES = 32, 16
CLIENTS = {1: 2, 2: 2, 8: 1}  # numbers of clients by batch size
NOISE = {"update": 2e-4, "sample": 0.01}


class TinyTransformer(nn.Module):
    """timm's smallest vision transformer, for small images."""

    def __init__(self, num_classes: int) -> None:
        """Build it with random weights.

        Args:
            num_classes: number of logits.
        """
        super().__init__()
        import timm

        self.network = timm.create_model(
            "vit_tiny_patch16_224", num_classes=num_classes, img_size=SIZE, patch_size=SIZE // 4
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.network(images)
        return logits


def batches_of(size: int) -> list[ClientBatch]:
    """The bundled photographs, distributed to clients."""
    data = ClientDataModule(
        image_size=SIZE, batch_size=size, clients=CLIENTS[size], masks=NoMasks(), num_classes=CLASSES
    )
    data.prepare_data()
    data.setup()
    return data.client_batches


def cells() -> Iterator[dict[str, str | int]]:
    """What is measured; the mode matters where there is batch normalisation, under granularity update."""
    for network, batch, granularity in product(NETWORKS, CLIENTS, NOISE):
        client = VictimClient(network, CLASSES)
        modes = ("train", "eval") if granularity == "update" and client.normalises_batches else ("",)
        for mode, code in product(modes, CODES):
            yield {"network": network, "batch": batch, "granularity": granularity, "batch_norm": mode, "code": code}


def row(cell: dict[str, str | int]) -> dict[str, object]:
    """Rows of one cell, one for each variant of the structure."""
    batches, granularity = batches_of(int(cell["batch"])), str(cell["granularity"])
    privacy = Privacy(10.0, NOISE[granularity], "sample" if granularity == "sample" else "update")
    mode = "eval" if cell["batch_norm"] == "eval" else "train"
    client = VictimClient(str(cell["network"]), CLASSES, privacy=privacy, batch_norm=mode, noise_seed=0)
    client.bind(batches)
    found: dict[str, object] = {"network": str(cell["network"]).rpartition(".")[2], "z": NOISE[granularity]}
    for way, options in WAYS.items():
        structure = CODES[str(cell["code"])](**options)
        payload, mean_image = structure.payload(client.task), structure.statistics(client.task).mean
        psnr, exact, shares, true = [], [], [], []
        try:
            for index, batch in enumerate(batches):
                guess = run_protocol(client, structure, payload, index, 0, None)
                reconstruction = Reconstruction(
                    index, 0, guess.images, guess.images, guess.unresolved, guess.evident, files=guess.files
                )
                victims = score(batch, reconstruction, mean_image).victims
                psnr += [victim.psnr for victim in victims]
                exact += [victim.bit_exact for victim in victims]
                assert guess.share is not None
                shares.append(guess.share.value)
                true.append(client.preview(payload, index).structure_share)
        except UserError as error:
            if SINGLE_NUMBER not in str(error):
                raise
            return cell | found | {"refused": "one number to normalise"}
        found |= {
            f"psnr_{way}": round(statistics.fmean(psnr), 2),
            f"bit_exact_{way}": round(statistics.fmean(exact), 3),
            f"share_{way}": f"{statistics.fmean(shares):.4g}",
            f"true_share_{way}": f"{statistics.fmean(true):.4g}",
        }
    return cell | found | {"refused": ""}


def main() -> None:
    """Measure the table, and report where the default is not the best."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table is written")
    parser.add_argument("--networks", nargs="*", default=NETWORKS, help="some of the networks")
    chosen = parser.parse_args()
    rows = []
    for cell in cells():
        if cell["network"] in chosen.networks:
            rows.append(row(cell))
            print(*rows[-1].values(), flush=True)
    columns = max((list(entry) for entry in rows), key=len)
    with chosen.results.open("w", newline="") as file:
        versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
        file.write(f"# python scripts/budget.py; size {SIZE}, clip 10; {versions}\n")
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    behind = [
        max(float(str(entry[f"psnr_{way}"])) for way in WAYS) - float(str(entry["psnr_default"]))
        for entry in rows
        if not entry["refused"]
    ]
    print(f"{len(behind)} cells; the default is at most {max(behind):.2f} dB behind; {len(rows) - len(behind)} refused")


if __name__ == "__main__":
    main()
