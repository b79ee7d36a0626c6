# SPDX-License-Identifier: Apache-2.0
"""The effect of attacks on training: accuracy under DP-SGD against the share of attacked rounds.

The forward pass of an attacked round is untouched, its training step is not: the structure takes the clipping budget,
and the network's own gradient is left with the noise. "kept" steps with it all the same, as a server does that wants
nobody to see a difference; "dropped" leaves the network as it was in attacked rounds.

    pip install scikit-learn        # its 1797 handwritten digits are bundled with it
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.client.gradients import clipped_sum
from lightning_recon.client.noise import add_noise
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.data.sources import ClientBatch
from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, mu_of
from lightning_recon.structure import InferenceStructure, TamperedNetwork, WaterFilling

SIZE, BATCH, STEPS, SEEDS, HELD_OUT = 16, 64, 220, 5, 360
PRIVACY = Privacy(max_grad_norm=1.0, noise_multiplier=1.0, granularity="sample")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
RATE, MOMENTUM = 0.02, 0.9


def rows(root: Path) -> Iterator[dict[str, object]]:
    """The table, with one row per share, kind of server and seed.

    Args:
        root: Not used: the images are scikit-learn's digits.
    """
    for share in SHARES:
        for server in ("kept", "dropped") if share > 0 else ("kept",):
            print(f"{share} of the rounds attacked, their steps {server}", flush=True)
            for seed in range(SEEDS):
                yield {
                    "attack": "water_filling",
                    "granularity": PRIVACY.granularity,
                    "z": PRIVACY.noise_multiplier,
                    "size": SIZE,
                    "batch": BATCH,
                    "rounds": STEPS,
                    "draw": seed,
                    "oracles": "none",
                    # Composition without amplification by sampling.
                    "epsilon_accounted": gaussian_epsilon(mu_of(PRIVACY.noise_multiplier, STEPS, "add_remove"), 1e-5),
                    "max_grad_norm": PRIVACY.max_grad_norm,
                    "network": "convnet",
                    "share_attacked": share,
                    "attacked_steps": server,
                    "accuracy": round(accuracy_after(share, server == "kept", seed), 4),
                }


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 3, SIZE, SIZE) and labels (N,) for training, then the same for testing."""
    found = load_digits()
    grey = torch.from_numpy(found.images).float()[:, None] / 16
    pictures = F.interpolate(grey, size=SIZE, mode="bilinear").expand(-1, 3, -1, -1)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    held, kept = order[:HELD_OUT], order[HELD_OUT:]
    labels = torch.from_numpy(found.target).long()
    return pictures[kept], labels[kept], pictures[held], labels[held]


def accuracy_after(share: float, step_when_attacked: bool, seed: int) -> float:
    """Test accuracy after `STEPS` steps of DP-SGD, of which a given share is attacked.

    Args:
        share: Of attacked rounds, in [0, 1], evenly spread.
        step_when_attacked: Whether the server steps in attacked rounds too.
        seed: Seed of weights, batches, noise and the test set.
    """
    images, labels, held, answers = digits(seed)
    client = VictimClient("convnet", 10, privacy=PRIVACY, seed=seed, normalization="imagenet")
    network, tampered = client.network, attacked(client, images[:BATCH], labels[:BATCH])
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM)
    batches, noise = torch.Generator().manual_seed(seed), NoiseSource(seed)
    for step in range(STEPS):
        chosen = torch.randperm(len(images), generator=batches)[:BATCH]
        is_attacked = int((step + 1) * share) > int(step * share)
        if is_attacked and not step_when_attacked:
            continue
        model, prefix = (tampered, "network.") if is_attacked else (network, "")
        gradient, _, _ = clipped_sum(model, F.cross_entropy, images[chosen], labels[chosen], PRIVACY.clip, BATCH)
        add_noise(gradient, PRIVACY.noise_scale, noise.generators(0, 0, step))
        for name, parameter in network.named_parameters():
            parameter.grad = gradient[prefix + name] / BATCH
        optimizer.step()
    with torch.no_grad():
        return float((network(held).argmax(dim=1) == answers).double().mean())


def attacked(client: VictimClient, images: Tensor, labels: Tensor) -> nn.Module:
    """The client's network with a structure beside it; small, since only the budget that it takes matters here.

    Args:
        client: Whose network.
        images: Shape (B, 3, SIZE, SIZE): any batch of the size for which the structure is to be designed.
        labels: Shape (B,), int64.
    """
    client.bind([ClientBatch(images, images, torch.ones_like(images[:, :1], dtype=torch.bool), labels, [""] * BATCH)])
    structure = WaterFilling(units=BATCH, directions=1, strength=1e4, detach_logits=False)
    return TamperedNetwork(client.network, InferenceStructure(structure.payload(client.task)))
