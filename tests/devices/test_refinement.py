# SPDX-License-Identifier: Apache-2.0
"""Refinement on an accelerator: a step copies nothing, waits for nothing, and computes what the CPU computes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_recon.attack import LargeDenoiser, ReconstructionAttack, SmallDenoiser, TotalVariation
from lightning_recon.attack.malicious_server import whole_way
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.priors.base import Prior
from lightning_recon.priors.image_statistics import public_statistics
from lightning_recon.structure import SeedPaper, Structure, WaterFilling
from lightning_recon.structure.refinement import LeakedMoments, Objective, Posterior, Refinement
from tests.devices.pretend import Log, MixedDevices, numbers_of

Device = tuple[torch.device, Log]
AClient = Callable[..., VictimClient]
SIZE, COUNT, STEPS = 16, 3, 3
STATISTICS = public_statistics(SIZE, SIZE, subjects=False)


def posterior() -> tuple[Refinement, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prior = STATISTICS.variance.expand(COUNT, -1, -1, -1).clone()
    gain = prior / (prior + 0.05**2)
    mean = gain * (prior.sqrt() * torch.randn(prior.shape, generator=generator))
    found = Posterior(mean, prior * (1 - gain), prior, torch.zeros_like(prior))
    return found, STATISTICS.transform.synthesise(mean)


def leaked() -> tuple[Refinement, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return LeakedMoments(torch.rand(COUNT, 3, 3, generator=generator)), torch.rand(
        COUNT, 3, SIZE, SIZE, generator=generator
    )


def objective(made: Callable[[], tuple[Refinement, Tensor]], denoiser: Prior, device: torch.device) -> Objective:
    refinement, initial = made()
    transform = STATISTICS.transform.to(device)
    return refinement.to(device).objective(initial.to(device), transform, denoiser.to(device))


def stepped(of: Objective, dummies: Tensor, optimizer: torch.optim.Optimizer) -> None:
    for step in range(STEPS):
        optimizer.zero_grad()
        losses = of.losses(dummies, step)
        torch.autograd.backward(losses.sum())
        optimizer.step()


@pytest.mark.parametrize("made", [posterior, leaked])
@pytest.mark.parametrize("denoiser", [SmallDenoiser, LargeDenoiser, TotalVariation])
def test_steps_run_on_the_device_alone(
    made: Callable[[], tuple[Refinement, Tensor]], denoiser: Callable[[], Prior], pretended: Device
) -> None:
    device, log = pretended
    found = []
    for where in (torch.device("cpu"), device):
        of = objective(made, denoiser().eval().requires_grad_(False), where)
        dummies = torch.zeros(COUNT, 3, SIZE, SIZE).to(where).requires_grad_()
        optimizer = torch.optim.Adam([dummies], lr=5e-3) if of.needs_optimizer else torch.optim.SGD([dummies], lr=1.0)
        of.losses(dummies, 0)  # what the first step prepares, such as a matrix on the device, is kept
        log.clear()
        stepped(of, dummies, optimizer)
        assert not log.waits
        assert not log.uploads
        found.append(numbers_of(of.images(dummies.detach())))
    assert torch.equal(*found)


def test_a_planted_fault_of_a_denoiser_is_found(pretended: Device) -> None:
    class Waits(TotalVariation):
        def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
            return super().forward(x, sigma) if float(torch.as_tensor(sigma).max()) > 0 else x

    class Mixes(TotalVariation):
        def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
            return super().forward(x, sigma) + torch.zeros(SIZE)

    device, log = pretended
    dummies = torch.zeros(COUNT, 3, SIZE, SIZE, device=device)
    objective(posterior, Waits(), device).losses(dummies, 0)
    assert any("test_refinement.py" in line for line in log.waits)
    with pytest.raises(MixedDevices, match=r"test_refinement\.py"):
        objective(posterior, Mixes(), device).losses(dummies, 0)


# The checks of "mps" are those of "cuda" and one more.
@pytest.mark.parametrize("pretended", ["mps"], indirect=True)
@pytest.mark.parametrize(
    ("structure", "optimizer"),
    [(WaterFilling(), whole_way), (SeedPaper(moments=True), lambda params: torch.optim.Adam(params, lr=5e-3))],
    ids=["linear", "seed paper"],
)
def test_the_attack_works_on_the_device(
    structure: Structure, optimizer: OptimizerCallable, a_client: AClient, pretended: Device, tmp_path: Path
) -> None:
    """From the payload to the images, without Lightning's trainer, which knows real devices alone.

    Decoding runs in host memory on purpose: it takes float64, which not every device has.
    """
    device, log = pretended
    found = []
    for where in (torch.device("cpu"), device):
        client = a_client(privacy=Privacy(10.0, 1e-3, "update"))
        attack = ReconstructionAttack(client, structure, optimizer=optimizer)
        trainer = SimpleNamespace(
            strategy=SimpleNamespace(root_device=where, barrier=lambda: None), is_global_zero=True, max_steps=STEPS,
            state=SimpleNamespace(fn="fit"), global_rank=0, world_size=1, global_step=0,
            default_root_dir=str(tmp_path / where.type),
        )  # fmt: skip
        attack.trainer = trainer  # type: ignore[assignment]
        attack.task = client.task
        attack.allocate()
        attack.to(where)
        attack._collect_updates(client, record=True)
        steps = attack.configure_optimizers()
        attack.training_step(0, 0)
        log.clear()
        for step in range(STEPS):
            trainer.global_step = step
            steps.zero_grad()
            torch.autograd.backward(attack.training_step(step, step))
            steps.step()
        assert not log.waits
        assert attack.dummies.detach().abs().sum() > 0
        trainer.global_step = STEPS
        (one,) = (one for one in attack.reconstructions() if one.client == 0)
        assert one.images.device.type == "cpu"
        found.append((one.initial, one.images))
    for here, there in zip(*found, strict=True):
        assert torch.equal(here, there)
