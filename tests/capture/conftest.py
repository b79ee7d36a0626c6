# SPDX-License-Identifier: Apache-2.0
"""Updates of real Opacus steps on the images of the tiny config."""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from opacus import GradSampleModule, PrivacyEngine
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recon.capture import Declared
from lightning_recon.capture.opacus import capture
from lightning_recon.cli import main
from lightning_recon.data import ClientBatch, ClientDataModule, NoMasks, save_truth
from lightning_recon.exchange import ServerPayload, Task
from lightning_recon.networks.construction import build_network
from lightning_recon.structure import InferenceStructure, TamperedNetwork, WaterFilling

CLIP, NOISE = 10.0, 0.01
CONFIG = Path(__file__).parent.parent.parent / "configs" / "captured.yaml"


@pytest.fixture(autouse=True)
def quiet_opacus() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Secure RNG turned off")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


@pytest.fixture(scope="session")
def pictures() -> ClientBatch:
    """What the tiny config's client holds."""
    data = ClientDataModule(image_size=24, batch_size=4, masks=NoMasks(), num_classes=16)
    data.prepare_data()
    data.setup()
    return data.client_batches[0]


@pytest.fixture(scope="session")
def task() -> Task:
    tensors = len(list(build_network("convnet", 16).parameters()))
    return Task((3, 24, 24), 16, 4, 1, "convnet", "sample", False, CLIP, NOISE, 1, tensors)


@pytest.fixture(scope="session")
def payload(task: Task) -> ServerPayload:
    return WaterFilling().payload(task)


Step = Callable[..., tuple[DPOptimizer, nn.Module]]


@pytest.fixture(scope="session")
def step(pictures: ClientBatch, payload: ServerPayload) -> Step:
    def run(
        seed: int = 0, noise: float = NOISE, reduction: str = "mean", prepare: Callable[..., None] | None = None
    ) -> tuple[DPOptimizer, nn.Module]:
        """A real Opacus step on the images, as far as the noised gradient."""
        model = TamperedNetwork(build_network("convnet", 16), InferenceStructure(payload))
        module, optimizer, loader = PrivacyEngine().make_private(
            module=GradSampleModule(model, strict=False, loss_reduction=reduction),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
            data_loader=DataLoader(TensorDataset(pictures.images, pictures.labels), batch_size=4),
            noise_multiplier=noise,
            max_grad_norm=CLIP,
            poisson_sampling=False,
            loss_reduction=reduction,
            noise_generator=torch.Generator().manual_seed(seed),
        )
        module.train()
        if prepare is not None:
            prepare(optimizer, module)
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(module(images), labels, reduction=reduction).backward()
            optimizer.pre_step()
        return optimizer, module

    return run


@pytest.fixture(scope="session")
def captured(tmp_path_factory: pytest.TempPathFactory, step: Step, task: Task, payload: ServerPayload) -> Path:
    """A folder with the captured updates of three noise draws and the truth: look, do not touch."""
    return capture_draws(tmp_path_factory.mktemp("captured"), step, task, payload, 3)


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory, step: Step, task: Task, payload: ServerPayload) -> Path:
    """One captured update in a folder: look, do not touch."""
    return capture_draws(tmp_path_factory.mktemp("single"), step, task, payload, 1)


def capture_draws(root: Path, step: Step, task: Task, payload: ServerPayload, draws: int) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for draw in range(draws):
            optimizer, module = step(seed=draw)
            path, declared = root / f"update-d{draw}.safetensors", Declared(epsilon=8.0, delta=1e-5)
            capture(optimizer, module, path, task, payload, draw=draw, declared=declared)
    return root


@pytest.fixture(scope="session")
def truth(captured: Path, pictures: ClientBatch) -> Path:
    path = captured / "truth.safetensors"
    save_truth(path, pictures.images, pictures.labels)
    return path


@pytest.fixture(scope="session")
def attack() -> Callable[..., dict[str, Any]]:
    def run(root: Path, update: Path, *flags: str) -> dict[str, Any]:
        """Fit the captured config; what `results.json` holds then."""
        main(["fit", "--config", str(CONFIG), "--model.update", str(update), *small(root), *flags])
        record: dict[str, Any] = json.loads((root / "results.json").read_text())
        return record

    return run


def small(root: Path) -> list[str]:
    here = ["--trainer.default_root_dir", str(root), "--results.show", "false"]
    return [*here, "--trainer.max_steps", "4", "--trainer.accelerator", "cpu"]


def changed(task: Task, **values: Any) -> Task:  # noqa: ANN401 - fields of a task
    return replace(task, **values)
