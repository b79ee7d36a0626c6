# SPDX-License-Identifier: Apache-2.0
"""Per-sample gradients against a loop of single samples, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from lightning_recon.client.gradients import (
    clipped_sum,
    find_batch_coupling_layer,
    global_norm,
    mean_gradient,
    per_sample_gradients,
)
from lightning_recon.errors import UserError
from lightning_recon.networks.batch_norm import without_batch_norm
from lightning_recon.networks.construction import build_network
from lightning_recon.networks.normalization import IMAGENET, normalize_inputs
from lightning_recon.privacy.clipping import Clip

CLASSES = 5


def batch(size: int = 3, pixels: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(size, 3, pixels, pixels, generator=generator, dtype=torch.float64)
    return images, torch.arange(size) % CLASSES


def loop(model: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    """Textbook gradients, one backward pass for each sample."""
    found = []
    for index in range(len(images)):
        model.zero_grad()
        F.cross_entropy(model(images[index : index + 1]), labels[index : index + 1]).backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    model.zero_grad()
    return found


class SmallResNet(nn.Module):
    """One residual block, with ReLU and what becomes of batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, stride=2), BasicBlock(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.block(self.stem(images)).mean(dim=(2, 3)))
        return logits


@pytest.fixture(scope="module", params=["convnet", "resnet"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    network = (
        build_network("convnet", CLASSES) if request.param == "convnet" else normalize_inputs(SmallResNet(), IMAGENET)
    )
    return without_batch_norm(network).double()


def test_per_sample_gradients_equal_a_loop(model: nn.Module) -> None:
    images, labels = batch()
    each = per_sample_gradients(model, F.cross_entropy, images, labels)
    for index, single in enumerate(loop(model, images, labels)):
        for name, gradient in single.items():
            torch.testing.assert_close(each[name][index], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 2, 8])
def test_clipped_sum_equals_a_loop(model: nn.Module, chunk_size: int, per_layer: bool) -> None:
    images, labels = batch()
    singles = loop(model, images, labels)
    bound = 0.7 * global_norm(singles[0].values())
    expected = {name: torch.zeros_like(gradient) for name, gradient in singles[0].items()}
    for single in singles:
        whole = torch.cat([gradient.flatten() for gradient in single.values()]).norm()
        for name, gradient in single.items():
            limit = bound / len(single) ** 0.5 if per_layer else bound
            norm = gradient.norm() if per_layer else whole
            expected[name] += gradient * min(1.0, float(limit / norm))
    found, norms, loss = clipped_sum(model, F.cross_entropy, images, labels, Clip(bound, per_layer), chunk_size)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    assert [global_norm(single.values()) for single in singles] == pytest.approx(
        [sum(norm**2 for norm in sample.values()) ** 0.5 for sample in norms]
    )
    torch.testing.assert_close(loss, F.cross_entropy(model(images), labels).detach())


def test_unclipped_sum_is_batch_size_times_the_mean_gradient(model: nn.Module) -> None:
    images, labels = batch()
    total, _, _ = clipped_sum(model, F.cross_entropy, images, labels, Clip(None), 2)
    mean, _ = mean_gradient(model, F.cross_entropy, images, labels)
    for name, gradient in mean.items():
        torch.testing.assert_close(total[name] / len(images), gradient, rtol=1e-9, atol=1e-12)


def test_mean_gradient_equals_backward_and_touches_nothing() -> None:
    model = build_network("resnet18", CLASSES).double()
    images, labels = batch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found, _ = mean_gradient(model, F.cross_entropy, images, labels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    F.cross_entropy(model(images), labels).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_frozen_and_unused_parameters_have_gradients_too() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, CLASSES)).double().requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    images, labels = batch(pixels=4)
    found, _ = mean_gradient(model, F.cross_entropy, images, labels)
    assert torch.equal(found["unused"], torch.zeros(2, dtype=torch.float64))
    assert found["1.weight"].norm() > 0
    assert not model[1].weight.requires_grad


def test_batch_normalisation_is_refused_where_it_mixes() -> None:
    model = build_network("resnet18", CLASSES).double()
    images, labels = batch()
    assert find_batch_coupling_layer(model) == "bn1"
    for chunk_size in (1, 3):
        with pytest.raises(UserError, match=r"layer bn1 is batch normalization"):
            clipped_sum(model, F.cross_entropy, images, labels, Clip(1.0), chunk_size)
    with pytest.raises(UserError, match="mixes the samples"):
        per_sample_gradients(model, F.cross_entropy, images, labels)
    assert find_batch_coupling_layer(model.eval()) is None
