# SPDX-License-Identifier: Apache-2.0
"""Gradient inversion on an accelerator: an iteration waits for nothing and computes what the CPU computes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_recon.attack import GradientInversion, SmallDenoiser, TotalVariation
from lightning_recon.attack.inversion.batched_lbfgs import BatchedLBFGS
from lightning_recon.client import LocalOptions, Privacy, VictimClient
from lightning_recon.priors import DenoiserPrior
from lightning_recon.priors.regularizers import Regularization
from tests.devices.pretend import Log, numbers_of, pretend_device

Device = tuple[torch.device, Log]
AClient = Callable[..., VictimClient]
STEPS = 2
EVERYTHING = Regularization(
    total_variation=0.1, double_opponents=True, norm=0.1, batch_norm=0.1, features=0.1, group_consistency=0.1
)


def adam(params: Any) -> torch.optim.Optimizer:  # noqa: ANN401 - whatever torch takes
    return torch.optim.Adam(params, lr=0.1)


def searched(client: VictimClient, device: torch.device, folder: Path, log: Log, **settings: Any) -> GradientInversion:  # noqa: ANN401
    """A few steps without Lightning's trainer, which knows real devices alone."""
    attack = GradientInversion(client, **settings)
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=device, barrier=lambda: None), is_global_zero=True, max_steps=STEPS,
        state=SimpleNamespace(fn="fit"), global_rank=0, world_size=1, default_root_dir=str(folder / device.type),
    )  # fmt: skip
    attack.trainer = trainer  # type: ignore[assignment]
    attack.kept = trainer  # Lightning refers to it weakly
    attack.task, attack.resumed = client.task, False
    attack.allocate()
    attack.to(device)
    optimizers = attack.configure_optimizers()
    attack._collect_updates(client, record=True)
    attack.solver.step(optimizers, 0)
    log.clear()
    for number in range(1, STEPS):
        attack.solver.step(optimizers, number)
    return attack


UPDATE, SAMPLE = Privacy(0.1, 1e-3, "update"), Privacy(0.1, 1e-3, "sample")
LIKELIHOOD = {"distance": "likelihood", "boxed": False, "labels": "oracle"}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cosine, alone": ({}, {"chunk_size": 1, "signed": "hard"}),
    "cosine, together": ({}, {"chunk_size": 4, "signed": "soft", "schedule": "cosine"}),
    "every regularizer": ({"batch_norm": "eval"}, {"restarts": 2, "chunk_size": 4, "regularization": EVERYTHING}),
    "joint labels": ({}, {"distance": "euclidean", "labels": "joint", "boxed": False}),
    "likelihood": (
        {},
        LIKELIHOOD | {"basis": "balanced", "init": "mean", "regularization": Regularization(spectrum=1.0)},
    ),
    "likelihood of clipped samples": ({"privacy": SAMPLE}, LIKELIHOOD | {"basis": "spectrum", "init": "mean"}),
    "Laplace": ({"privacy": Privacy(0.1, 1e-3, "update", mechanism="laplace")}, LIKELIHOOD),
    "sums of clients": ({"aggregated": 2}, {"weigh_tensors": True}),
    "local steps": (
        {"local": LocalOptions(epochs=2, batch_size=2, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))},
        {"labels": "oracle"},
    ),
    "discrepancy": ({}, LIKELIHOOD | {"discrepancy": True}),
    "priors": ({}, {"priors": [DenoiserPrior(SmallDenoiser()), TotalVariation()]}),
    "L-BFGS of all": ({}, {"optimizer": BatchedLBFGS, "boxed": False, "distance": "euclidean"}),
}


# The checks of "mps" are those of "cuda" and one more.
@pytest.mark.parametrize("pretended", ["mps"], indirect=True)
@pytest.mark.parametrize("name", SETTINGS)
def test_iterations_run_on_the_device_alone(name: str, a_client: AClient, pretended: Device, tmp_path: Path) -> None:
    device, log = pretended
    of_client, of_attack = SETTINGS[name]
    lowest, images = [], []
    for where in (torch.device("cpu"), device):
        client = a_client(**{"privacy": UPDATE, "chunk_size": 1} | of_client)
        attack = searched(client, where, tmp_path, log, **{"optimizer": adam} | of_attack)
        assert not log.waits
        assert not log.uploads
        lowest.append(numbers_of(attack.search.lowest))
        found = attack.reconstructions()
        assert all(one.images.device.type == "cpu" for one in found)
        images.append(torch.stack([one.images for one in found]))
    assert lowest[0].isfinite().all()
    assert torch.equal(*lowest)
    assert torch.equal(*images)


def test_cuda_is_as_good(a_client: AClient, tmp_path: Path) -> None:
    """The one path of it that "mps" lacks: random states of the device are saved around dropout."""
    with pretend_device("cuda") as (device, log):
        attack = searched(a_client(privacy=UPDATE), device, tmp_path, log, optimizer=adam)
        assert not log.waits
        assert attack.search.lowest.isfinite().all()


def test_langevin_noise_is_drawn_on_the_cpu(a_client: AClient, pretended: Device, tmp_path: Path) -> None:
    """So that a search does not depend on the device: one copy in a step, and no wait."""
    device, log = pretended
    searched(a_client(privacy=UPDATE), device, tmp_path, log, optimizer=adam, langevin=0.01)
    assert not log.waits
    assert len(log.uploads) == STEPS - 1


def test_the_line_search_of_pytorch_waits(a_client: AClient, tmp_path: Path) -> None:
    """L-BFGS decides on the host, and the check sees it."""
    settings: dict[str, Any] = {"boxed": False, "distance": "euclidean", "optimizer": torch.optim.LBFGS}
    with pretend_device("cuda") as (device, log):
        searched(a_client(privacy=UPDATE), device, tmp_path, log, **settings)
        assert any(line.startswith("candidates.py") for line in log.waits)
