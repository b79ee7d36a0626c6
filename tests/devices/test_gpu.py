# SPDX-License-Identifier: Apache-2.0
"""On a real GPU results are those of the CPU but for rounding; `scripts/gpu_check.py` runs these tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_recon.attack import SmallDenoiser
from lightning_recon.attack.inversion.batched_lbfgs import BatchedLBFGS
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.exchange import ServerPayload
from lightning_recon.structure import Digital, WaterFilling
from tests.devices.pretend import Log
from tests.devices.test_inversion import searched
from tests.devices.test_refinement import objective, posterior, stepped

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
AClient = Callable[..., VictimClient]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TF32, whose ten bits would hide a fault."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def check_close(there: Tensor, here: Tensor) -> None:
    assert float((there.cpu() - here).norm() / here.norm().clamp(min=1e-12)) < 1e-3


@pytest.mark.parametrize("granularity", ["update", "sample"])
@pytest.mark.parametrize("structure", [None, Digital(), WaterFilling()])
def test_a_client_releases_what_it_releases_on_the_cpu(structure: Any, granularity: Any, a_client: AClient) -> None:  # noqa: ANN401
    client = a_client(network="convnet", privacy=Privacy(1.0, 1e-4, granularity))
    payload = ServerPayload() if structure is None else structure.payload(client.task)
    there, here = (client.to(device).share(payload, 0, 0, 0).gradient for device in (CUDA, CPU))
    assert all(tensor.device == CUDA for tensor in there.values())
    check_close(*(torch.cat([one.flatten().cpu() for one in update.values()]) for update in (there, here)))


def test_refinement_leads_where_it_leads_on_the_cpu() -> None:
    found = []
    for device in (CUDA, CPU):
        of = objective(posterior, SmallDenoiser().eval().requires_grad_(False), device)
        dummies = torch.zeros(3, 3, 16, 16, device=device, requires_grad=True)
        stepped(of, dummies, torch.optim.SGD([dummies], lr=1.0))
        found.append(of.images(dummies.detach()))
    check_close(*found)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_inversion_searches_as_on_the_cpu(chunk_size: int, a_client: AClient, tmp_path: Path) -> None:
    """Two iterations: after many, rounding grows with every step."""
    found = []
    for device in (CUDA, CPU):
        client = a_client(network="convnet", privacy=Privacy(0.1, 1e-3, "update"))
        settings: dict[str, Any] = {"optimizer": BatchedLBFGS, "boxed": False, "chunk_size": chunk_size}
        found.append(searched(client, device, tmp_path, Log(), **settings).search.lowest)
    check_close(*found)
