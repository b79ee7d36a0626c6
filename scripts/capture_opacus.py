# SPDX-License-Identifier: Apache-2.0
"""A client trains a server's model by Opacus on bundled photographs, and keeps what leaves it: update and truth.

    python scripts/capture_opacus.py --output captured
    recon validate --config captured.yaml --model.update captured
    recon fit --config captured.yaml --model.update captured --data CapturedPictures --data.root captured

What is Opacus's is left to Opacus: clipping, noise, the optimizer, the accountant.
"""

import argparse
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from opacus import GradSampleModule, PrivacyEngine
from opacus.accountants import RDPAccountant
from torch.utils.data import DataLoader, TensorDataset

from lightning_recon.capture import Declared
from lightning_recon.capture.opacus import capture_steps
from lightning_recon.data import ClientDataModule, NoMasks, save_truth
from lightning_recon.exchange import Task
from lightning_recon.networks.construction import build_network
from lightning_recon.structure import InferenceStructure, TamperedNetwork, WaterFilling

CLASSES = 16  # of the bundled photographs
DELTA = 1e-5


def main() -> None:
    """Train for the given rounds, and write the released updates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the update and the truth")
    parser.add_argument("--max_grad_norm", type=float, default=1.0, help="clipping norm of each sample's gradient")
    parser.add_argument("--noise_multiplier", type=float, default=0.05, help="noise standard deviation / clipping norm")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1, help="steps, all on the same images")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    given = parser.parse_args()
    for message in ("Secure RNG turned off", "Full backward hook is firing", "Optimal order is the"):
        warnings.filterwarnings("ignore", message=message)  # Opacus's own, which are meant for training in earnest

    data = ClientDataModule(image_size=given.image_size, batch_size=given.batch_size, masks=NoMasks())
    data.prepare_data()
    data.setup()
    (batch,) = data.client_batches

    # The server announces the training, and sends its model.
    network = build_network("convnet", CLASSES, normalization="imagenet")
    task = Task(
        image_shape=(3, given.image_size, given.image_size),
        num_classes=CLASSES,
        batch_size=given.batch_size,
        clients=1,
        network="convnet",
        granularity="sample",
        per_layer=False,
        max_grad_norm=given.max_grad_norm,
        noise_multiplier=given.noise_multiplier,
        rounds=given.rounds,
        parameter_tensors=len(list(network.parameters())),
        normalization="imagenet",
    )
    payload = WaterFilling().payload(task)
    model = TamperedNetwork(network, InferenceStructure(payload))

    # The client trains it as Opacus's documentation says; strict=False lets the structure's constants pass.
    torch.manual_seed(given.seed)
    module, optimizer, loader = PrivacyEngine().make_private(
        module=GradSampleModule(model, strict=False),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),  # rounds with the same network: only updates matter here
        data_loader=DataLoader(TensorDataset(batch.images, batch.labels), batch_size=given.batch_size),
        noise_multiplier=given.noise_multiplier,
        max_grad_norm=given.max_grad_norm,
        poisson_sampling=False,  # one batch with all pictures in every step
    )
    module.train()
    # The epsilon of Opacus's accountant after all rounds, without sampling: every step uses the whole batch.
    accountant = RDPAccountant()
    accountant.history = [(given.noise_multiplier, 1.0, given.rounds)]
    declared = Declared(epsilon=accountant.get_epsilon(DELTA), delta=DELTA)
    capture_steps(optimizer, module, given.output, task, payload, declared=declared)
    for _ in range(given.rounds):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(module(images), labels).backward()
            optimizer.step()
    save_truth(given.output / "truth.safetensors", batch.images, batch.labels)
    print(f"{given.rounds} update(s) and the truth in {given.output}; Opacus declares epsilon {declared.epsilon:.4g}")


if __name__ == "__main__":
    main()
