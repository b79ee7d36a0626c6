# SPDX-License-Identifier: Apache-2.0
"""Inverting Gradients by its authors' own package on the pictures, network and iterations of the table `honest`.

    pip install breaching==0.1.2                        # in an environment of its own, beside this package
    python scripts/peer_quality.py --root DIR           # writes results/peer_quality.csv

No clip, no noise, one image per update; the peer is given the labels; batch normalisation by running statistics. The
rows of the same name and of `likelihood` at z = 0 in results/honest.csv are what it is compared with.
"""

import argparse
import csv
import logging
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.evaluation.metrics import psnr_per_image, ssim_per_image
from lightning_recon.networks.construction import build_network
from lightning_recon.networks.normalization import IMAGENET_MEAN, IMAGENET_STD

RESULTS = Path(__file__).parent.parent / "results"
SIZE, CLASSES = 32, 64
STEPS = {"convnet": 300, "resnet18": 100}
ATTACKS = (("convnet", "invertinggradients"), ("convnet", "modern"), ("resnet18", "invertinggradients"))


class Metadata:
    """What the peer wants to know of the data; it reads some of it by attribute, some by key."""

    modality, task, classes, vocab_size = "vision", "classification", CLASSES, CLASSES
    shape, mean, std = (3, SIZE, SIZE), IMAGENET_MEAN, IMAGENET_STD

    def __getitem__(self, key: str) -> object:
        """An attribute."""
        return getattr(self, key)


def reconstructed(network: str, name: str, picture: Tensor, label: Tensor, seed: int) -> Tensor:
    """What the peer's attack finds of one picture, (3, H, W) in [0, 1]."""
    import breaching

    torch.manual_seed(seed)
    steps = STEPS[network]
    model = build_network(network, CLASSES, normalization="none").eval()  # takes standardised pictures
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    loss = torch.nn.CrossEntropyLoss()
    value = loss(model(((picture - mean) / std)[None]), label)
    gradients = [gradient.detach() for gradient in torch.autograd.grad(value, list(model.parameters()))]
    changes = [f"optim.max_iterations={steps}", f"optim.callback={10 * steps}"]
    config = breaching.get_attack_config(name, overrides=changes)
    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    attacker = breaching.attacks.prepare_attack(model, loss, config, setup)
    shipped = [{"parameters": list(model.parameters()), "buffers": [], "metadata": Metadata()}]
    told = {"num_data_points": 1, "labels": label, "local_hyperparams": None}
    answered = [{"gradients": gradients, "buffers": None, "metadata": told}]
    found, _ = attacker.reconstruct(shipped, answered, {}, dryrun=False)
    picture_found: Tensor = (found["data"][0].detach() * std + mean).clamp(0, 1)
    return picture_found


def main() -> None:
    """Attack every picture alone, and write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--networks", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table is written")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    # As `imagenet.yaml` deals them: the same source, order and preparation.
    data = ClientDataModule(
        str(chosen.root), "imagenet", SIZE, batch_size=1, clients=chosen.pictures, masks=NoMasks(), num_classes=CLASSES
    )
    data.prepare_data()
    data.setup()
    with (chosen.results / "peer_quality.csv").open("w", newline="") as file:
        versions = ", ".join(f"{name} {version(name)}" for name in ("breaching", "torch"))
        file.write(f"# python scripts/peer_quality.py --root DIR; {versions}\n")
        writer = csv.writer(file)
        writer.writerow(["tool", "attack", "network", "size", "steps", "picture", "psnr", "ssim", "seconds"])
        for network, name in (one for one in ATTACKS if one[0] in chosen.networks):
            for index, batch in enumerate(data.client_batches):
                start = time.monotonic()
                found = reconstructed(network, name, batch.images[0], batch.labels, seed=index)
                score = psnr_per_image(found[None], batch.images)[0], ssim_per_image(found[None], batch.images)[0]
                numbers = [round(float(one), 4) for one in score]
                seconds = round(time.monotonic() - start, 2)
                row = ["breaching", name, network, SIZE, STEPS[network], index, *numbers, seconds]
                writer.writerow(row)
                print(*row, flush=True)


if __name__ == "__main__":
    main()
