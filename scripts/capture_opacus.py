# SPDX-License-Identifier: Apache-2.0
"""A client trains a server's model by Opacus on bundled photographs, and keeps what leaves it: update and truth.

    python scripts/capture_opacus.py --output captured
    recon validate --config captured.yaml --model.update captured
    recon fit --config captured.yaml --model.update captured --data CapturedPictures --data.root captured

What is Opacus's is left to Opacus: clipping, noise, the optimizer, the accountant.
"""

import argparse
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from opacus import GradSampleModule, PrivacyEngine
from opacus.accountants import RDPAccountant
from torch.utils.data import DataLoader, TensorDataset

from lightning_recon.capture import Declared
from lightning_recon.capture.opacus import capture_change, capture_steps
from lightning_recon.data import ClientDataModule, NoMasks, save_truth
from lightning_recon.exchange import LocalTraining, Task, training_by, update_name
from lightning_recon.networks.construction import build_network
from lightning_recon.plural import counted
from lightning_recon.structure import Digital, InferenceStructure, TamperedNetwork, WaterFilling

CLASSES = 16  # of the bundled photographs
DELTA = 1e-5


STRUCTURES = {"linear": WaterFilling, "digital": Digital}
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def local_training_of(given: argparse.Namespace) -> LocalTraining:
    """The client's local training, as the server announces it."""
    if not given.epochs:
        return LocalTraining()
    one = training_by(OPTIMIZERS[given.optimizer]([torch.nn.Parameter(torch.zeros(1))], lr=given.lr))
    return replace(one, epochs=given.epochs, batch_size=given.local_batch_size, update="delta")


def main() -> None:
    """Train for the given rounds, and write the released updates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the update and the truth")
    parser.add_argument("--max_grad_norm", type=float, default=1.0, help="clipping norm of each sample's gradient")
    parser.add_argument("--noise_multiplier", type=float, default=0.05, help="noise standard deviation / clipping norm")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1, help="steps, all on the same images")
    parser.add_argument("--epochs", type=int, default=0, help="local epochs of a round; 0: a single step")
    parser.add_argument("--local_batch_size", type=int, help="images in a local mini-batch; default: all")
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="sgd", help="of local epochs")
    parser.add_argument("--lr", type=float, default=1e-3, help="of local epochs")
    parser.add_argument(
        "--structure",
        choices=list(STRUCTURES),
        default="linear",
        help="what the server ships; digital: attack it with --config attack/digital.yaml",
    )
    parser.add_argument(
        "--seed", type=int, help="for reproducible noise, which anyone who knows it can subtract; default: drawn anew"
    )
    given = parser.parse_args()
    if any(given.output.glob("update-*.safetensors")):
        parser.error(f"{given.output} holds captured updates: choose another --output")
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
        local=local_training_of(given),
    )
    payload = STRUCTURES[given.structure]().payload(task)
    model = TamperedNetwork(network, InferenceStructure(payload))

    # The client trains it as Opacus's documentation says; strict=False lets the structure's constants pass.
    if given.seed is None:
        torch.seed()
    else:
        torch.manual_seed(given.seed)
    module, optimizer, loader = PrivacyEngine().make_private(
        module=GradSampleModule(model, strict=False),
        # Single steps repeat on the same network: only their gradients matter here.
        optimizer=OPTIMIZERS[given.optimizer](model.parameters(), lr=given.lr if given.epochs else 0.0),
        data_loader=DataLoader(
            TensorDataset(batch.images, batch.labels), batch_size=given.local_batch_size or given.batch_size
        ),
        noise_multiplier=given.noise_multiplier,
        max_grad_norm=given.max_grad_norm,
        poisson_sampling=False,  # one batch with all pictures in every step
    )
    module.train()
    # The epsilon of Opacus's accountant after all rounds, without sampling: every image is in one batch of an epoch.
    accountant = RDPAccountant()
    accountant.history = [(given.noise_multiplier, 1.0, given.rounds * max(1, given.epochs))]
    declared = Declared(epsilon=accountant.get_epsilon(DELTA), delta=DELTA)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if not given.epochs:
        capture_steps(optimizer, module, given.output, task, payload, declared=declared)
    for round in range(given.rounds):
        with torch.no_grad():  # every round starts from what the server sends
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])
        optimizer.original_optimizer.state.clear()
        for _ in range(max(1, given.epochs)):
            for images, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(module(images), labels).backward()
                optimizer.step()
        if given.epochs:
            path = given.output / f"{update_name(0, 0, round)}.safetensors"
            capture_change(before, model, path, task, payload, round=round, declared=declared)
    save_truth(given.output / "truth.safetensors", batch.images, batch.labels)
    wrote = counted(given.rounds, "update")
    print(f"{wrote} and the truth in {given.output}; Opacus declares epsilon {declared.epsilon:.4g}")


if __name__ == "__main__":
    main()
