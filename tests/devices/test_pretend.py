# SPDX-License-Identifier: Apache-2.0
"""The pretend device finds what a real one refuses or waits for, and computes what the CPU computes."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tests.devices.pretend import Log, MixedDevices, Pretended, numbers_of, pretend_device

Device = tuple[torch.device, Log]


def test_it_names_itself_and_holds_numbers(pretended: Device) -> None:
    device, _ = pretended
    made = [
        torch.zeros(2, device=device),
        torch.tensor([1.0, 2.0], device=device),
        torch.ones(2).to(device),
        torch.rand(2).to(f"{device.type}:0"),
        nn.Linear(2, 2).to(device).weight.detach(),
    ]
    made += [torch.zeros_like(made[0]), made[0].new_full((3,), 2.0), torch.arange(3, device=made[0].device)]
    assert all(isinstance(one, Pretended) and one.device == device for one in made)
    assert made[1].tolist() == [1.0, 2.0]
    assert made[0].cpu().device.type == "cpu"
    assert torch.zeros(2).device.type == "cpu"


def test_autograd_and_transforms_compute_what_the_cpu_computes(pretended: Device) -> None:
    device, log = pretended
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([0, 2])

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, values, (image[None],)), label[None])

    def gradients(where: torch.device) -> list[Tensor]:
        values = {name: one.detach().to(where) for name, one in network.named_parameters()}
        network.to(where)
        each = vmap(grad(loss), in_dims=(None, 0, 0))(values, images.to(where), labels.to(where))
        whole = torch.autograd.grad(F.cross_entropy(network(images.to(where)), labels.to(where)), network.parameters())
        return [*each.values(), *whole]

    there = gradients(device)
    assert not log.waits
    assert all(one.device == device for one in there)
    here = gradients(torch.device("cpu"))
    assert all(torch.equal(one, numbers_of(other)) for one, other in zip(here, there, strict=True))


@pytest.mark.parametrize(
    "operation",
    [
        lambda one: (torch.fft.fft(one) * torch.fft.fft(one).conj()).real,
        lambda one: torch.fft.fft(one).conj().imag,
        lambda one: one[:, None].squeeze_(1).t_() * 2,
        lambda one: vmap(lambda left, right: left @ right)(one, one[..., None] + one[:, None]),
        lambda one: one.clone()[:2].add_(1).mul_(one[:2]),
        lambda one: one[[2, 0]][:, [3, 1]] + one.new_tensor([1, 2]),
    ],
)
def test_views_and_marks_on_tensors_are_followed(operation: Callable[[Tensor], Tensor], pretended: Device) -> None:
    one = torch.arange(12.0).view(3, 4)
    there = operation(one.to(pretended[0]))
    assert torch.equal(there.cpu(), operation(one))
    assert there.shape == numbers_of(there).shape


MIXED: list[Callable[[Tensor, torch.device], object]] = [
    lambda one, device: one + torch.ones(3),
    lambda one, device: torch.ones(3) * one,
    lambda one, device: torch.ones(3).add_(one),
    lambda one, device: torch.tensor(1.0).add_(one[0]),
    lambda one, device: torch.stack([one[0], torch.tensor(1.0)]),
    lambda one, device: torch.cat([one, torch.ones(3)]),
    lambda one, device: torch.where(torch.ones(3, dtype=torch.bool), one, 0.0),
    lambda one, device: torch.ones(3)[one.long()],
    lambda one, device: F.linear(one, torch.ones(2, 3)),
    lambda one, device: torch.randn(3, device=device, generator=torch.Generator()),
    lambda one, device: torch.searchsorted(torch.arange(3.0), one),
]


@pytest.mark.parametrize("operation", MIXED)
def test_a_planted_mixed_device_operation_is_found(
    operation: Callable[[Tensor, torch.device], object], pretended: Device
) -> None:
    with pytest.raises(MixedDevices):
        operation(torch.ones(3, device=pretended[0]), pretended[0])


ALLOWED: list[Callable[[Tensor], object]] = [
    lambda one: one * torch.tensor(2.0),
    lambda one: torch.where(one > 0, one, torch.tensor(0.0)),
    lambda one: one.masked_fill(one > 0, 1.0),
    lambda one: one.clone().index_fill_(0, torch.zeros(1, dtype=torch.int64).to(one.device), 1.0),
    lambda one: one.copy_(torch.zeros(3)),
    lambda one: one[torch.tensor([0, 1])],
    lambda one: one.sort().values.cumsum(0).max(),
    lambda one: one.clone().__setitem__(one > 0, 0.0),
]


@pytest.mark.parametrize("operation", ALLOWED)
def test_what_a_real_device_accepts_is_accepted_without_waiting(
    operation: Callable[[Tensor], object], pretended: Device
) -> None:
    device, log = pretended
    operation(torch.ones(3, device=device))
    assert not log.waits


WAITING: list[Callable[[Tensor], object]] = [
    lambda one: one.sum().item(),
    lambda one: float(one[0]),
    lambda one: bool((one > 0).any()),
    lambda one: one.tolist(),
    lambda one: one.cpu(),
    lambda one: one.to("cpu"),
    lambda one: torch.zeros(3).copy_(one),
    lambda one: one[one > 0],
    lambda one: torch.nonzero(one),
    lambda one: one.unique(),
    lambda one: torch.equal(one, one),
    lambda one: torch.allclose(one, one),
    lambda one: one.clone().__setitem__(one > 0, one),
    lambda one: torch.bincount(one.long()),
    lambda one: torch.where(one > 0),
    lambda one: one.repeat_interleave(one.long()),
    lambda one: torch.masked_select(one, one > 0),
]


@pytest.mark.parametrize("operation", WAITING)
def test_a_planted_host_synchronisation_is_found(operation: Callable[[Tensor], object], pretended: Device) -> None:
    device, log = pretended
    one = torch.ones(3, device=device)
    assert not log.waits
    operation(one)
    assert log.waits
    assert "test_pretend.py" in log.waits[0]  # the line is named


def test_float64_exists_on_cuda_alone() -> None:
    with pretend_device("cuda") as (device, _):
        assert torch.ones(2, device=device).double().sum().item() == 2.0
    with pretend_device("mps") as (device, _):
        one = torch.ones(2, device=device)
        for operation in (
            lambda: one.double(),
            lambda: torch.zeros(2, dtype=torch.float64, device=device),
            lambda: torch.zeros(2, dtype=torch.float64).to(device),
            lambda: torch.linalg.vector_norm(one, dtype=torch.float64),
        ):
            with pytest.raises(MixedDevices, match="does not exist on mps"):
                operation()
        assert torch.zeros(2, dtype=torch.float64).to(one).device == device


def test_a_tensor_that_left_is_refused() -> None:
    with pretend_device() as (device, _):
        one = torch.ones(2, device=device)
    with pytest.raises(MixedDevices, match="outside"):
        one + 1
