# SPDX-License-Identifier: Apache-2.0
"""Without the private parts of PyTorch the results are the same."""

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lightning_recon
from lightning_recon.attack.inversion.double_backward import LeanConvolutions
from lightning_recon.networks import torch_internals
from lightning_recon.networks.torch_internals import call_with, places_of, version_of, version_of_tensors

PACKAGE = Path(lightning_recon.__file__).parent


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(images))
        return found


def second_derivative() -> Tensor:
    torch.manual_seed(0)
    network, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 3)), torch.randn(1, 3, 8, 8)
    images.requires_grad_()
    with LeanConvolutions():
        loss = network(images).square().sum()
    update = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    return torch.autograd.grad(sum(one.square().sum() for one in update), images)[0]


def test_convolutions_without_the_engines_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_internals._WILL_EXECUTE is not None
    usual = second_derivative()
    monkeypatch.setattr(torch_internals, "_WILL_EXECUTE", None)
    torch.testing.assert_close(second_derivative(), usual)


def test_other_parameters_without_the_modules_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, images = Shared(), torch.randn(2, 3)
    places = places_of(network)
    assert [name for *_, name in places] == ["first.weight", "first.bias", "first.weight"]
    own, values = network(images), {name: value.detach() + 1 for name, value in network.named_parameters()}
    usual = call_with(network, places, values, images)
    assert not torch.allclose(usual, own)
    assert torch.equal(network(images), own)
    monkeypatch.setattr(torch_internals, "_KEEPS_PARAMETERS", False)
    torch.testing.assert_close(call_with(network, places, values, images), usual)


def test_versions_change_with_the_tensors_and_without_counters_always(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Shared()
    network.register_buffer("mean", torch.zeros(2))
    before = version_of(network)
    assert version_of(network) == before
    with torch.no_grad():
        network.first.weight.add_(1)
    changed = version_of(network)
    network.get_buffer("mean").add_(1)
    assert len({before, changed, version_of(network)}) == 3
    with torch.inference_mode():
        unversioned = torch.zeros(2)
    assert version_of_tensors(unversioned) != version_of_tensors(unversioned)
    monkeypatch.setattr(torch_internals, "_COUNTS_VERSIONS", False)
    assert version_of(network) != version_of(network)


def test_no_other_module_uses_them() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and path.stem != "torch_internals":
                assert node.attr not in {"_C", "_parameters", "_version", "_BatchNorm"}, path
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
                assert not any(alias.name.startswith("_") for alias in node.names), path
