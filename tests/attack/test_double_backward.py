# SPDX-License-Identifier: Apache-2.0
"""Convolutions that leave out what nobody asks for give the same second derivatives as PyTorch's own."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from lightning_recon.attack.inversion.double_backward import LeanConvolutions


def derivatives(lean: bool, mixed: bool) -> list[Tensor]:
    """The squared length of a network's gradient, and its gradient with respect to the pictures."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(4, 6, 3, padding="same", groups=2),
        nn.GELU(),
        nn.Conv2d(6, 4, 3, dilation=2, bias=False),
    )
    pictures = torch.randn(2, 3, 16, 16, requires_grad=True)
    weights = list(network.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        with LeanConvolutions() if lean else nullcontext():
            loss = network(2 * pictures).float().square().mean()
        update = torch.autograd.grad(loss, weights, create_graph=True)
        length = torch.stack([one.float().square().sum() for one in update]).sum()
    return [length.detach(), *torch.autograd.grad(length, [pictures])]


@pytest.mark.parametrize("mixed", [False, True])
def test_second_derivatives_are_pytorch_s(mixed: bool) -> None:
    for lean, plain in zip(derivatives(True, mixed), derivatives(False, mixed), strict=True):
        assert lean.abs().sum() > 0
        assert torch.allclose(lean, plain, rtol=0.02 if mixed else 1e-5, atol=1e-6)


def test_weights_that_depend_on_the_pictures() -> None:
    """As after a client's own first step: there the gradient with respect to the weights does count."""

    def second_step(lean: bool) -> Tensor:
        torch.manual_seed(0)
        pictures, weight = torch.randn(1, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3)
        moved = weight * pictures.mean()
        inner = moved.view_as(moved)
        with LeanConvolutions() if lean else nullcontext():
            hidden = torch.conv2d(2 * pictures, inner, padding=1).tanh()
            loss = torch.conv2d(hidden, inner.transpose(0, 1) * 1.0).square().mean()
        update = torch.autograd.grad(loss, inner, create_graph=True)[0]
        return torch.autograd.grad(update.square().sum(), pictures)[0]

    assert torch.allclose(second_step(True), second_step(False), rtol=1e-4, atol=1e-6)
