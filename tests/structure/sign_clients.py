# SPDX-License-Identifier: Apache-2.0
"""Clients of codes of ±1: what is announced, and what they send."""

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.client.compression import compressed
from lightning_recon.exchange import ClientUpdate, LocalTraining, ServerPayload, Task
from lightning_recon.exchange.local_training import ADAM
from lightning_recon.structure.layer import InferenceStructure
from lightning_recon.structure.server_layer import TamperedNetwork

SIDE, CLASSES = 16, 10


def adam(steps: int = 1, epochs: int = 1, images: int = 4, optimizer: str = ADAM) -> LocalTraining:
    return LocalTraining(
        epochs=epochs,
        batch_size=images // steps,
        optimizer=optimizer,
        options={"betas": [0.9, 0.999], "eps": 1e-8},
        learning_rates=(1e-3,),
        update="delta",
    )


def announced(images: int, noise: float, **fields: object) -> Task:
    task = Task(
        image_shape=(3, SIDE, SIDE),
        num_classes=CLASSES,
        batch_size=images,
        clients=1,
        network="none",
        granularity="update",
        per_layer=False,
        max_grad_norm=1.0,
        noise_multiplier=noise,
        rounds=1,
        parameter_tensors=2,
        parameters=3 * SIDE * SIDE * CLASSES + CLASSES,
    )
    return replace(task, **fields)  # type: ignore[arg-type]


def trained(payload: ServerPayload, task: Task, images: Tensor, seed: int = 0) -> ClientUpdate:
    """What a client of a tiny network sends after its local training; its seed is that of the noise."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))
    model = TamperedNetwork(network, InferenceStructure(payload))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    kind = torch.optim.Adam if task.local.optimizer == ADAM else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=task.local.learning_rate(0))
    labels, size = torch.arange(len(images)) % CLASSES, task.local.batch_size or len(images)
    for _ in range(task.local.epochs):
        for part, targets in zip(images.split(size), labels.split(size), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(part), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    delta = {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}
    norm = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in delta.values()))
    generator = torch.Generator().manual_seed(seed)
    sent = {
        name: tensor / max(1.0, norm) + task.noise_multiplier * torch.randn(tensor.shape, generator=generator)
        for name, tensor in delta.items()
    }
    if task.compression is not None:
        sent = compressed(sent, task.compression, np.random.default_rng(seed))
    return ClientUpdate(client=0, draw=0, round=0, gradient=sent, payload="0" * 64, reproducible_noise=True)


def exact(images: Tensor, found: Tensor) -> int:
    """Number of images that were found bit for bit."""
    return sum(bool((found == image).flatten(1).all(dim=1).any()) for image in images)


def averaged(payload: ServerPayload, task: Task, images: Tensor, seed: int = 0) -> ClientUpdate:
    """The mean of the updates of all rounds."""
    updates = [trained(payload, task, images, seed * task.rounds + number) for number in range(task.rounds)]
    mean = {name: sum(one.gradient[name] for one in updates) / task.rounds for name in updates[0].gradient}
    return replace(updates[0], gradient=mean)
