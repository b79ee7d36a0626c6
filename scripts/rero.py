# SPDX-License-Identifier: Apache-2.0
"""Test the reconstruction-robustness bound: on which of n candidates did a client train?

    python scripts/rero.py                                  # writes results/rero.csv, a few minutes

The attacker knows n candidates, one of which a client used, each equally often; it computes what every one of them
would have sent without noise, and names the one that explains the update best. There is no better guess, so its success
should be what theory says of n orthogonal signals, and never above gamma. Candidates are the bundled photographs and,
where more are wanted, crops of them, each of a class of its own, so that their gradients are nearly orthogonal.
"""

import argparse
import csv
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.data.sources import ClientBatch
from lightning_recon.exchange import ClientUpdate, ServerPayload
from lightning_recon.privacy.gaussian_accounting import mu_of, noise_multiplier_for
from lightning_recon.privacy.reconstruction_robustness import (
    binomial_interval,
    log_likelihoods,
    matching_success,
    rero_gamma,
)
from lightning_recon.structure import WaterFilling

RESULTS = Path(__file__).parent.parent / "results" / "rero.csv"
PACKAGES = ("lightning_recon", "torch", "torchvision", "lightning")
DELTA, CLIP, SIZE, CONFIDENCE = 1e-5, 0.01, 32, 0.99
TRIALS = 2000


def candidates_of(count: int) -> list[ClientBatch]:
    """Images, one per client: the bundled photographs, then crops of them; each has its own class."""
    data = ClientDataModule(image_size=3 * SIZE, batch_size=1, clients=16, masks=NoMasks(), num_classes=16)
    data.prepare_data()
    data.setup("fit")
    whole = torch.cat([batch.photographs for batch in data.client_batches])
    images = [torch.nn.functional.avg_pool2d(whole, 3)]
    corners = [(top, left) for top in (0, SIZE, 2 * SIZE) for left in (0, SIZE, 2 * SIZE)]
    images += [whole[:, :, top : top + SIZE, left : left + SIZE] for top, left in corners]
    found = torch.cat(images)[:count]
    subject = torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool)
    return [
        ClientBatch(one[None], one[None], subject, torch.tensor([label]), [str(label)])
        for label, one in enumerate(found)
    ]


def client_of(batches: list[ClientBatch], noise_multiplier: float) -> VictimClient:
    """Clients of DP-SGD with one image each, whose gradients exceed the clipping norm."""
    client = VictimClient(
        "convnet",
        max(16, len(batches)),
        privacy=Privacy(CLIP, noise_multiplier, "sample"),
        normalization="imagenet",
        noise_seed=0,
    )
    client.bind(batches)
    return client


def flat(update: ClientUpdate) -> Tensor:
    """All released numbers in one row."""
    return torch.cat([update.gradient[name].flatten() for name in sorted(update.gradient)])


def row(server: str, count: int, epsilon: float, rounds: int) -> dict[str, object]:
    """Attack every candidate equally often.

    Args:
        server: "honest" ships the network alone, "malicious" our structure with it.
        count: Candidates (n).
        epsilon: Accounted epsilon of all rounds.
        rounds: Rounds with the same image.
    """
    z = noise_multiplier_for(epsilon, DELTA, rounds, "add_remove")
    mu = mu_of(z, rounds, "add_remove")
    assert mu is not None
    batches = candidates_of(count)
    client, own = client_of(batches, z), client_of(batches, 0.0)
    payload = (
        ServerPayload() if server == "honest" else WaterFilling(strength=1e4, detach_logits=False).payload(client.task)
    )
    known = torch.stack([flat(own.share(payload, index, 0, 0)) for index in range(count)])
    directions = torch.nn.functional.normalize(known.double(), dim=1)
    alike = (directions @ directions.T - torch.eye(count)).abs().max()
    draws, right = TRIALS // count, 0
    for used in range(count):
        scores = torch.zeros(draws, count, dtype=torch.float64)
        for number in range(rounds):
            released = torch.stack([flat(client.share(payload, used, draw, number)) for draw in range(draws)])
            scores += log_likelihoods(released, known, client.privacy.noise_std)
        right += int((scores.argmax(1) == used).sum())
    low, high = binomial_interval(right, draws * count, CONFIDENCE)
    gamma = rero_gamma(1 / count, mu)
    assert gamma is not None
    return {
        "server": server,
        "candidates": count,
        "epsilon_accounted": epsilon,
        "rounds": rounds,
        "z": round(z, 6),
        "mu": round(mu, 6),
        "trials": draws * count,
        "right": right,
        "success": round(right / (draws * count), 4),
        "success_low": round(low, 4),
        "success_high": round(high, 4),
        "predicted_orthogonal": round(matching_success(count, mu), 4),
        "gamma": round(gamma, 4),
        "largest_cosine": round(float(alike), 4),
    }


def main() -> None:
    """Measure the table."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table is written")
    chosen = parser.parse_args()
    cells = [("honest", n, epsilon, 1) for n, epsilon in product((2, 10, 100), (1, 2, 4, 8))]
    cells += [("honest", 10, 8, 4), ("malicious", 10, 8, 1)]
    rows = [row(*cell) for cell in cells]
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    with chosen.results.open("w", newline="") as file:
        file.write(f"# python scripts/rero.py; delta {DELTA}, intervals of {CONFIDENCE:.0%}; {versions}\n")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(chosen.results)


if __name__ == "__main__":
    main()
