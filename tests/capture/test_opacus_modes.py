# SPDX-License-Identifier: Apache-2.0
"""Ghost clipping and virtual steps of Opacus release the same update as its default, and are captured as well."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from opacus import GradSampleModule, PrivacyEngine
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recon.capture import load_captured
from lightning_recon.capture.noise_check import null_noise
from lightning_recon.capture.opacus import capture, capture_steps
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.networks.construction import build_network
from lightning_recon.structure import InferenceStructure, TamperedNetwork

CLIP, NOISE = 10.0, 0.01
UPDATE = "update-c000-d000-r0000.safetensors"
Prepared = tuple[nn.Module, DPOptimizer, DataLoader[Any], Callable[..., Any]]


def prepared(pictures: ClientBatch, payload: ServerPayload, ghost: bool, noise: float) -> Prepared:
    """Module, optimizer, loader and criterion of `make_private`."""
    model = TamperedNetwork(build_network("convnet", 16), InferenceStructure(payload))
    kind = GradSampleModuleFastGradientClipping if ghost else GradSampleModule
    module, optimizer, *criterion, loader = PrivacyEngine().make_private(
        module=kind(model, strict=False, **({"max_grad_norm": CLIP} if ghost else {})),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        criterion=nn.CrossEntropyLoss(),  # Opacus 1.5 changes the default one, which all calls share
        data_loader=DataLoader(TensorDataset(pictures.images, pictures.labels), batch_size=4),
        noise_multiplier=noise,
        max_grad_norm=CLIP,
        poisson_sampling=False,
        grad_sample_mode="ghost" if ghost else "hooks",
        noise_generator=torch.Generator().manual_seed(0),
    )
    module.train()
    return module, optimizer, loader, criterion[0] if criterion else F.cross_entropy


def trained(
    pictures: ClientBatch, payload: ServerPayload, task: Task, folder: Path, ghost: bool, physical: int, noise: float
) -> ClientUpdate:
    """The captured update of one logical step, in physical batches of this size."""
    module, optimizer, loader, criterion = prepared(pictures, payload, ghost, noise)
    capture_steps(optimizer, module, folder, replace(task, noise_multiplier=noise), payload)
    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=physical, optimizer=optimizer) as batches:
        for images, labels in batches:
            optimizer.zero_grad()
            criterion(module(images), labels).backward()
            optimizer.step()
    assert [path.name for path in folder.iterdir()] == [UPDATE]
    return load_captured(folder / UPDATE).update()


@pytest.fixture(scope="module")
def clean(pictures: ClientBatch, payload: ServerPayload) -> ClientUpdate:
    """What our own client would release without noise."""
    client = VictimClient("convnet", 16, privacy=Privacy(CLIP, 0.0, granularity="sample"), noise_seed=0)
    client.bind([pictures])
    return client.share(payload, 0, 0, 0)


@pytest.mark.parametrize("physical", [4, 2, 3], ids=["one batch", "two batches", "uneven batches"])
@pytest.mark.parametrize("ghost", [False, True], ids=["hooks", "ghost"])
def test_every_mode_releases_the_sum_of_clipped_gradients(
    pictures: ClientBatch,
    payload: ServerPayload,
    task: Task,
    clean: ClientUpdate,
    tmp_path: Path,
    ghost: bool,
    physical: int,
) -> None:
    found = trained(pictures, payload, task, tmp_path, ghost, physical, 0.0).gradient
    assert found.keys() == clean.gradient.keys()
    for name, tensor in clean.gradient.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ghost", [False, True], ids=["hooks", "ghost"])
def test_noise_is_added_once_for_a_logical_step(
    pictures: ClientBatch, payload: ServerPayload, task: Task, tmp_path: Path, ghost: bool
) -> None:
    update = trained(pictures, payload, task, tmp_path, ghost, 2, NOISE)
    measured, count = null_noise(update, payload) or (0.0, 0)
    assert measured == pytest.approx(NOISE * CLIP, rel=5 / (2 * count) ** 0.5)


def test_a_virtual_step_is_no_update(pictures: ClientBatch, payload: ServerPayload, task: Task, tmp_path: Path) -> None:
    module, optimizer, loader, criterion = prepared(pictures, payload, False, NOISE)
    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=2, optimizer=optimizer) as batches:
        images, labels = next(iter(batches))
        criterion(module(images), labels).backward()
        optimizer.step()
        with pytest.raises(UserError, match="a virtual step"):
            capture(optimizer, module, tmp_path / UPDATE, task, payload)


def test_noise_that_adapts_is_refused(
    pictures: ClientBatch, payload: ServerPayload, task: Task, tmp_path: Path
) -> None:
    """As adaptive clipping sets it."""
    module, optimizer, loader, criterion = prepared(pictures, payload, True, NOISE)
    images, labels = next(iter(loader))
    criterion(module(images), labels).backward()
    optimizer._adjusted_noise_multiplier = 2 * NOISE
    optimizer.pre_step()
    with pytest.raises(UserError, match="adaptive clipping"):
        capture(optimizer, module, tmp_path / UPDATE, task, payload)
