# SPDX-License-Identifier: Apache-2.0
"""A step of Opacus as the client under test."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recon.opacus_import import import_opacus
from lightning_recon.verification.client_under_test import Batch


class OpacusStep:
    """The gradient with which Opacus' `DPOptimizer` is about to step, made private by `PrivacyEngine.make_private`.

    A program of your own that uses Opacus is verified by a function like `__call__` that runs its own lines.

    Args:
        client: index of the client; Opacus does not use it.
        max_grad_norm: clipping norm C.
        noise_multiplier: standard deviation of the noise divided by C.
        per_layer: clip each of the L parameter tensors to C/sqrt(L) on its own.
        loss_reduction: "mean" or "sum", of the loss and of Opacus.
    """

    def __init__(
        self,
        client: int = 0,
        max_grad_norm: float = 1.0,
        noise_multiplier: float = 1.0,
        per_layer: bool = False,
        loss_reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        """Store the arguments."""
        self.client, self.max_grad_norm, self.noise_multiplier = client, max_grad_norm, noise_multiplier
        self.per_layer, self.loss_reduction = per_layer, loss_reduction

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The privatized gradient of a step on the batch, by parameter name."""
        import_opacus()
        from opacus import PrivacyEngine

        images, labels = batch
        tensors = len(list(model.parameters()))
        norm = [self.max_grad_norm / tensors**0.5] * tensors if self.per_layer else self.max_grad_norm
        with _without_known_warnings():
            module, optimizer, loader = PrivacyEngine().make_private(
                module=model.train(),
                optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
                data_loader=DataLoader(TensorDataset(images, labels), batch_size=len(labels)),
                noise_multiplier=self.noise_multiplier,
                max_grad_norm=norm,
                poisson_sampling=False,
                clipping="per_layer" if self.per_layer else "flat",
                loss_reduction=self.loss_reduction,
            )
            for inputs, targets in loader:
                F.cross_entropy(module(inputs), targets, reduction=self.loss_reduction).backward()  # type: ignore[no-untyped-call]
                optimizer.pre_step()
        found = {name: parameter.grad for name, parameter in module.named_parameters()}
        return {name: gradient for name, gradient in found.items() if gradient is not None}


@contextmanager
def _without_known_warnings() -> Iterator[None]:
    """Opacus says in every step that its generator is not a cryptographic one, and torch that inputs need no grad."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Secure RNG turned off")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield
