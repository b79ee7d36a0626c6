# SPDX-License-Identifier: Apache-2.0
"""Layers that take less work compute the same, with their derivatives."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lightning_recon.attack.inversion import matmul_layers
from lightning_recon.attack.inversion.functional_model import functionalize


def layers() -> nn.Sequential:
    """Strides, paddings, dilations, one without bias, and poolings that change the size and do not."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(4, 6, (3, 2), padding=(2, 0), dilation=2, bias=False),
        nn.GELU(),
        nn.Conv2d(6, 6, 1, groups=2),
        nn.AdaptiveAvgPool2d((8, 6)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    ).double()


def second(network: nn.Module, pictures: Tensor) -> Tensor:
    """Derivative by the picture of a function of the gradient by the weights."""

    def size(one: Tensor) -> Tensor:
        def loss(values: dict[str, Tensor]) -> Tensor:
            return functional_call(network, values, (one,)).square().sum()

        return sum((part**3).sum() for part in grad(loss)(dict(network.named_parameters())).values())

    return vmap(grad(size))(pictures)


@pytest.mark.parametrize("batch", [1, 3])
def test_lightened_layers_compute_the_same(batch: int) -> None:
    plain, light = layers(), copy.deepcopy(layers())
    matmul_layers.lighten(light)
    pictures = torch.rand(2, batch, 3, 16, 16, dtype=torch.float64)
    assert ["forward" in vars(layer) for layer in light] == [True, False, True, False, False, True, True, False]
    torch.testing.assert_close(light(pictures[0]), plain(pictures[0]))
    torch.testing.assert_close(second(light, pictures), second(plain, pictures))


def test_large_inputs_are_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    light = layers()
    matmul_layers.lighten(light)
    monkeypatch.setattr(matmul_layers, "_SMALL", 0)
    monkeypatch.setattr(matmul_layers.F, "unfold", None)  # a call would fail
    torch.testing.assert_close(light(torch.ones(1, 3, 16, 16).double()), layers()(torch.ones(1, 3, 16, 16).double()))


def test_shared_parameters_are_replaced_wherever_they_are() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    model = functionalize(Shared(), batch_statistics=False)
    x, other = torch.rand(2, 3), {name: value + 1 for name, value in model.parameters.items()}
    before = model.network(x)
    torch.testing.assert_close(model.at(other, x), functional_call(model.network, other, (x,)))
    assert not torch.equal(model.at(other, x), before)
    torch.testing.assert_close(model.network(x), before)
