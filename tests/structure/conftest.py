# SPDX-License-Identifier: Apache-2.0
"""Bundled photographs, and a client whose gradient is written down instead of computed."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import lightning_recon.data
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.structure import InferenceStructure
from lightning_recon.structure.readout import weight_names

OTHER_LAYERS = 3  # parameter tensors of the imagined target network; their gradient is far smaller than the structure's


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photographs() -> Callable[[int], Tensor]:
    paths = sorted((Path(lightning_recon.data.__file__).parent / "samples").glob("*/*.jpg"))

    @cache
    def load(size: int) -> Tensor:
        """The bundled photographs, squeezed into a square, shape (16, 3, size, size), values in [0, 1]."""
        pixels = []
        for path in paths:
            with Image.open(path) as image:
                pixels.append(np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BOX)))
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255

    return load


@pytest.fixture(scope="session")
def task() -> Callable[..., Task]:
    def announce(size: int, batch: int, noise: float, granularity: str = "sample", per_layer: bool = False) -> Task:
        return Task(
            image_shape=(3, size, size),
            num_classes=10,
            batch_size=batch,
            clients=1,
            network="none",
            granularity="update" if granularity == "update" else "sample",
            per_layer=per_layer,
            max_grad_norm=10.0,
            noise_multiplier=noise,
            rounds=1,
            parameter_tensors=OTHER_LAYERS,
        )

    return announce


@pytest.fixture(scope="session")
def release() -> Callable[..., ClientUpdate]:
    def share(
        payload: ServerPayload, task: Task, images: Tensor, gradient_weights: Tensor | None = None
    ) -> ClientUpdate:
        """What a client releases whose network is undecided: the gradient of an excited unit is δ · e(x).

        `gradient_weights` scales the victims' δ, as confident predictions do.
        """
        structure = InferenceStructure(payload)
        inputs = structure.encode(images)
        measured = inputs @ structure.matrix.detach().T
        inside = (structure.lower <= measured) & (measured < structure.upper)
        excited = (structure._own_units(measured, inside) if structure.spec.own_units else inside).float()
        labels = torch.arange(len(images)) % task.num_classes
        delta = structure.spec.strength * (structure.code.mean() - structure.code[labels])
        if gradient_weights is not None:
            delta = delta * gradient_weights
        whole = torch.einsum("b,bk,bm->bkm", delta, excited, inputs)
        widths = [tensor.shape[1] for tensor in (structure.weight if structure.spec.blocks > 1 else [structure.weight])]
        single = dict(zip(weight_names(payload), whole.split(widths, dim=2), strict=True))
        if structure.bias is not None:
            single["structure.bias"] = torch.einsum("b,bk,p->bkp", delta, excited, structure.bias_constants)
        if task.granularity == "update":
            single = {name: gradient.mean(dim=0, keepdim=True) for name, gradient in single.items()}
        assert task.max_grad_norm is not None
        bound = task.max_grad_norm / (math.sqrt(len(single) + OTHER_LAYERS) if task.per_layer else 1.0)
        norms = {name: gradient.flatten(1).norm(dim=1) for name, gradient in single.items()}
        total = torch.stack(list(norms.values())).norm(dim=0)
        released = {}
        for name, gradient in single.items():
            factor = bound / (norms[name] if task.per_layer else total)
            clipped = torch.einsum("b,bkm->km", factor, gradient)
            released[name] = clipped + task.noise_multiplier * task.max_grad_norm * torch.randn_like(clipped)
        others = {f"network.{index}": {"shape": [1], "sha256": ""} for index in range(OTHER_LAYERS)}
        return ClientUpdate(client=0, draw=0, round=0, gradient=released, omitted=others)  # type: ignore[arg-type]

    return share


@pytest.fixture(scope="session")
def matched_psnr() -> Callable[[Tensor, Tensor], Tensor]:
    def score(images: Tensor, truth: Tensor) -> Tensor:
        """PSNR of each image against the nearest truth, in dB; no truth may serve twice."""
        errors = torch.stack([(truth - image).square().mean(dim=(1, 2, 3)) for image in images])
        nearest = errors.argmin(dim=1)
        assert len(nearest.unique()) == len(nearest)
        return -10 * errors.min(dim=1).values.log10()

    return score
