# SPDX-License-Identifier: Apache-2.0
"""The objective's gradient is the derivative of its value, for every distance, penalty, basis and shipped network."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_recon.attack.inversion.classifier_head import find_head
from lightning_recon.attack.inversion.distances import Distance
from lightning_recon.attack.inversion.forward_model import client_update
from lightning_recon.attack.inversion.functional_model import FunctionalModel, functionalize
from lightning_recon.attack.inversion.objective import Candidates, GradientMatching
from lightning_recon.attack.inversion.parametrization import Basis, Parametrization
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.networks.construction import build_network
from lightning_recon.networks.differentiability import math_attention, twice_differentiable
from lightning_recon.priors.image_statistics import public_statistics
from lightning_recon.priors.regularizers import Regularization
from tests.local_sgd import local_sgd

Honest = Callable[..., VictimClient]
PLAIN = Regularization()
ALL = Regularization(0.1, True, 0.1, 0.1, 0.1, 0.1, 0.1)


def coordinates(basis: Basis, size: int) -> Parametrization:
    found = Parametrization(basis, public_statistics(size, size, False, None), torch.device("cpu"))
    for name, value in vars(found).items():
        if isinstance(value, Tensor):
            setattr(found, name, value.double())
    return found


def exact(network: torch.nn.Module, batch_statistics: bool = True) -> FunctionalModel:
    return functionalize(network.double(), batch_statistics)


def guesses(model: FunctionalModel, task: Task, basis: Parametrization, count: int, joint: bool = False) -> Candidates:
    """Random guesses, each beside the update of pictures and labels of its own."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, task.victims, *task.image_shape)
    labels = torch.randint(task.num_classes, shape[:2], generator=generator)
    true = torch.rand(shape, generator=generator, dtype=torch.float64)
    with math_attention():
        updates = [client_update(model, *one, task)[0] for one in zip(true, labels, strict=True)]
    seen = {name: torch.stack([one[name].detach() for one in updates]) for name in updates[0]}
    dummies = 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    logits = torch.randn(*shape[:2], task.num_classes, generator=generator, dtype=torch.float64) if joint else None
    return Candidates(dummies, logits, labels, seen, None, torch.zeros_like(dummies))


def difference(matching: GradientMatching, here: Candidates, along: Tensor, step: float = 1e-5) -> Tensor:
    up, down = (matching(replace(here, dummies=here.dummies + sign * step * along)).value for sign in (1, -1))
    return (up - down) / (2 * step)


@pytest.mark.parametrize("regularization", [PLAIN, ALL], ids=["plain", "all penalties"])
@pytest.mark.parametrize("basis", ["pixels", "spectrum"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean", "likelihood"])
def test_the_gradient_is_the_derivative(
    distance: Distance, basis: Basis, regularization: Regularization, honest: Honest
) -> None:
    privacy = Privacy(max_grad_norm=0.05, noise_multiplier=0.3)
    client = honest("smooth", count=2, privacy=privacy, local=local_sgd(2, 0.4), batch_norm="eval")
    model, where = exact(client.network, False), coordinates(basis, 8)
    head = find_head(model, torch.rand(2, 3, 8, 8, dtype=torch.float64))
    matching = GradientMatching(model, client.task, where, distance, regularization, head)
    here = guesses(model, client.task, where, 2, joint=True)
    found = matching(here)
    assert found.logits is not None
    assert here.logits is not None
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        along = torch.randn(here.dummies.shape, generator=generator, dtype=torch.float64)
        expected = difference(matching, here, along)
        assert torch.allclose((found.dummies * along).flatten(1).sum(1), expected, rtol=1e-4, atol=1e-8)
    turn = torch.randn(here.logits.shape, generator=generator, dtype=torch.float64)
    up, down = (matching(replace(here, logits=here.logits + sign * 1e-5 * turn)).value for sign in (1, -1))
    assert torch.allclose((found.logits * turn).flatten(1).sum(1), (up - down) / 2e-5, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "size", "smooth"),
    [
        ("convnet", 16, True),
        ("resnet18", 32, False),
        ("tiny_vit", 32, True),
        ("tiny_convnext", 32, True),
        ("tiny_efficientnet", 32, True),
    ],
)
def test_shipped_networks_can_be_differentiated_twice(name: str, size: int, smooth: bool) -> None:
    if name.startswith("tiny"):
        name = f"{__name__}.{name}"
    task = Task((3, size, size), 4, 2, 1, name, "update", False, None, 0.0, 1, 1)
    # By running statistics: those of two pictures of 1 x 1, deep in a network, are no statistics.
    model, where = exact(build_network(name, 4), False), coordinates("pixels", size)
    matching = GradientMatching(model, task, where, "cosine", PLAIN)
    here = guesses(model, task, where, 1)
    with twice_differentiable(name):
        found = matching(here)
        assert found.value.isfinite().all()
        assert found.dummies.isfinite().all()
        assert found.dummies.abs().max() > 0
        if smooth:
            along = found.dummies / found.dummies.norm()
            assert torch.allclose(found.dummies.norm(), difference(matching, here, along), rtol=1e-3)


def tiny_vit(num_classes: int) -> torch.nn.Module:
    """Torchvision's vision transformer, of two layers, without the zero weights that silence a fresh one's gradient."""
    from torchvision.models import VisionTransformer

    network = VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=num_classes)
    torch.nn.init.normal_(network.heads.head.weight, std=0.5)
    return network


def tiny_convnext(num_classes: int) -> torch.nn.Module:
    """torchvision's, of four blocks."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], layer_scale=1.0, num_classes=num_classes)


def tiny_efficientnet(num_classes: int) -> torch.nn.Module:
    """torchvision's, of two blocks, squeeze and excitation included."""
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    blocks = [MBConvConfig(1, 3, 1, 8, 8, 1, 1.0, 1.0), MBConvConfig(4, 3, 2, 8, 16, 1, 1.0, 1.0)]
    return EfficientNet(blocks, dropout=0.0, num_classes=num_classes, last_channel=32)


class Once(torch.autograd.Function):
    """Its backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx: object, given: Tensor) -> Tensor:
        return given.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class OnceOnly(torch.nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.head = torch.nn.Linear(3 * 8 * 8, 4), torch.nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(Once.apply(self.first(images.flatten(1)).square()))
        return logits


def test_a_network_without_second_derivatives_is_said_to_be_one() -> None:
    task = Task((3, 8, 8), 4, 1, 1, "mine", "update", False, None, 0.0, 1, 2)
    model, where = exact(build_network(f"{__name__}.OnceOnly", 4)), coordinates("pixels", 8)
    seen = {name: torch.stack([torch.ones_like(tensor)] * 2) for name, tensor in model.parameters.items()}
    shape = (2, 1, 3, 8, 8)
    dummies, labels = torch.zeros(shape, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.int64)
    matching = GradientMatching(model, task, where, "euclidean", PLAIN)
    with pytest.raises(UserError, match=r"'mine' cannot be differentiated twice"), twice_differentiable("mine"):
        matching(Candidates(dummies, None, labels, seen, None, None))
    # A single guess goes by plain autograd, which would leave out in silence what cannot be differentiated.
    alone = {name: tensor[:1] for name, tensor in seen.items()}
    with pytest.raises(UserError, match=r"'mine' cannot be differentiated twice"), twice_differentiable("mine"):
        matching.by_transforms(Candidates(dummies[:1], None, labels[:1], alone, None, None))


def test_fused_attention_alone_cannot() -> None:
    # Otherwise the message above would never be needed for attention.
    name = f"{__name__}.tiny_vit"
    task = Task((3, 32, 32), 4, 1, 1, name, "update", False, None, 0.0, 1, 1)
    model, where = exact(build_network(name, 4)), coordinates("pixels", 32)
    with pytest.raises(RuntimeError):
        GradientMatching(model, task, where, "cosine", PLAIN)(guesses(model, task, where, 1))
