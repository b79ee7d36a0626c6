# SPDX-License-Identifier: Apache-2.0
"""Networks have second derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad
from torchvision.models.vision_transformer import VisionTransformer

from lightning_recon.networks.construction import build_network
from lightning_recon.networks.differentiability import math_attention


class TinyTransformer(VisionTransformer):
    """A vision transformer small enough for a test."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(32, 16, 1, 2, 16, 32, num_classes=num_classes)
        nn.init.normal_(self.heads.head.weight)  # torchvision starts it at zero, which hides all other gradients


TINY = f"{__name__}.TinyTransformer"


@pytest.mark.parametrize("name", ["convnet", "resnet18", TINY])
def test_second_derivatives_are_finite(name: str) -> None:
    """What an attack by optimisation needs: the gradient of a gradient's norm with respect to the image."""
    network = build_network(name, 5).double().eval()
    parameters = {key: parameter.detach() for key, parameter in network.named_parameters()}
    images = torch.rand(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)

    def loss(parameters: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(network, parameters, (images,)), torch.tensor([1]))

    with math_attention():
        gradients = grad(loss)(parameters, images)
        (second,) = torch.autograd.grad(sum(g.square().sum() for g in gradients.values()), images)
    assert second.isfinite().all()
    assert second.abs().max() > 0
