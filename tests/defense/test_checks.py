# SPDX-License-Identifier: Apache-2.0
"""Each check finds what its docstring says, and misses what it says, on models with a known answer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_recon.defense.checks import (
    constant_inputs,
    energy_share,
    false_gradient,
    linear_gradient,
    repeated_rows,
    silent_layer,
    zero_gradient,
)
from lightning_recon.defense.probes import gradient_of, randomize_zero_weights
from lightning_recon.networks.construction import ConvNet

CLASSES, PIXELS = 5, 3 * 12 * 12
IMAGES = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(4)


class Beside(nn.Module):
    """A layer with large gradients beside a small network; `copy` says how its output is cancelled."""

    copied_weight: Tensor

    def __init__(self, copy: str, strength: float = 100.0, encode: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.network, self.added = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES)), nn.Module()
        self.added = Added(copy, strength, encode or (lambda pictures: pictures))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images) + self.added(images)
        return logits


class Added(nn.Module):
    copied_weight: Tensor

    def __init__(self, copy: str, strength: float, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.copy, self.strength, self.encode = copy, strength, encode
        self.weight = nn.Parameter(0.01 * torch.randn(3, PIXELS, generator=torch.Generator().manual_seed(2)))
        self.register_buffer("copied_weight", self.weight.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        inputs = self.encode(images.flatten(1))
        copy = {"hidden": self.weight.detach(), "frozen": self.copied_weight, "none": torch.zeros_like(self.weight)}
        output = (inputs @ self.weight.T - inputs @ copy[self.copy].T).sum(dim=1, keepdim=True)
        return self.strength * output * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).to(output)


@pytest.fixture
def convnet() -> nn.Module:
    torch.manual_seed(0)
    return ConvNet(CLASSES)


def test_rows_that_are_alike_are_counted() -> None:
    layer = nn.Linear(32, 8)
    assert repeated_rows(layer).value == 0
    with torch.no_grad():
        layer.weight[2], layer.weight[5], layer.weight[6] = layer.weight[1], -3 * layer.weight[1], 0
    assert repeated_rows(layer) == (pytest.approx(3 / 7), "weight")  # rows of zeros measure nothing
    assert repeated_rows(nn.Linear(1, 8)).value == 0  # all rows of one number are parallel


def test_a_little_jitter_hides_repeated_rows() -> None:
    layer = nn.Linear(512, 8)
    with torch.no_grad():
        layer.weight[:] = 1 + 0.1 * torch.randn(8, 512, generator=torch.Generator().manual_seed(0))
    assert repeated_rows(layer).value == 0


def test_constant_inputs_are_counted_but_dead_ones_are_not() -> None:
    class Piloted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(PIXELS + 5, CLASSES)

        def forward(self, images: Tensor) -> Tensor:
            constants = torch.tensor([0.5, 2.0, 0.0, 0.0, 0.0]).expand(len(images), -1)
            logits: Tensor = self.layer(torch.cat([images.flatten(1), constants], dim=1))
            return logits

    assert constant_inputs(Piloted(), IMAGES).value == 2
    assert constant_inputs(Piloted(), IMAGES[:1]).value == 2
    assert constant_inputs(Beside("none").network, IMAGES[:1]) == (0, "")


def test_energy_is_shared_within_a_layer_and_among_tensors_of_one_shape() -> None:
    ones, twos = torch.ones(2, 2), torch.full((2, 2), 2.0)
    assert energy_share({"a": ones, "b": twos, "c": torch.ones(5)}) == (pytest.approx(20 / 25), "b")
    assert energy_share({"a": torch.ones(3), "b": torch.ones(9)}) == (pytest.approx(9 / 12), "b")
    assert energy_share({"a.x": ones, "a.y": torch.ones(7), "b": torch.ones(9)}) == (pytest.approx(11 / 20), "a.y")


@pytest.mark.parametrize("strength", [0.1, 1.0, 1000.0])
def test_the_false_part_of_a_gradient_is_its_share_of_the_energy(strength: float) -> None:
    model = Beside("hidden", strength)
    energies = {name: float(tensor.square().sum()) for name, tensor in gradient_of(model, IMAGES, LABELS).items()}
    share = energies["added.weight"] / sum(energies.values())
    assert false_gradient(model, IMAGES, LABELS).value == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize("copy", ["frozen", "none"])
def test_a_gradient_that_is_one_is_not_called_false(copy: str, convnet: nn.Module) -> None:
    assert false_gradient(Beside(copy), IMAGES, LABELS).value < 1e-4
    assert false_gradient(convnet, IMAGES, LABELS).value < 1e-6


@pytest.mark.parametrize("copy", ["hidden", "frozen"])
def test_a_layer_that_only_its_gradient_betrays_is_silent(copy: str) -> None:
    model = Beside(copy)
    reading = silent_layer(model, IMAGES, gradient_of(model, IMAGES, LABELS))
    assert reading.where == "added"
    assert reading.value > 0.99


def test_layers_that_count_are_not_silent(convnet: nn.Module) -> None:
    for model in (convnet, Beside("none")):
        assert silent_layer(model, IMAGES, gradient_of(model, IMAGES, LABELS)) == (0, "")


def test_a_copy_of_the_image_is_linear_in_it_and_features_are_not(convnet: nn.Module) -> None:
    found = linear_gradient(Beside("hidden"), IMAGES, LABELS)
    assert found.where == "added.weight"
    assert found.value > 0.99
    assert linear_gradient(Beside("hidden"), IMAGES[:1], LABELS[:1]).value > 0.99
    assert linear_gradient(convnet, IMAGES, LABELS) == (0, "")


def test_an_encoding_that_bends_is_not_seen() -> None:
    bent = Beside("hidden", encode=lambda pictures: pictures + 0.1 * pictures.square())
    assert linear_gradient(bent, IMAGES, LABELS).value < 0.01


def test_only_weights_of_zeros_are_randomized_and_only_in_a_copy(convnet: nn.Module) -> None:
    assert isinstance(convnet, ConvNet)
    with torch.no_grad():
        convnet.classifier.weight.zero_()
        convnet.classifier.bias.zero_()
    randomized = randomize_zero_weights(convnet)
    assert not convnet.classifier.weight.any()
    changed = {name for name, value in randomized.state_dict().items() if not value.equal(convnet.state_dict()[name])}
    assert changed == {"classifier.weight"}
    assert (
        energy_share(gradient_of(convnet, IMAGES, LABELS)).value
        > energy_share(gradient_of(randomized, IMAGES, LABELS)).value
    )


def test_only_weights_that_move_the_logits_count_as_detached() -> None:
    class Network(nn.Module):
        def __init__(self, detached: bool) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(PIXELS, 8), nn.Linear(8, CLASSES)
            self.unused, self.detached = nn.Linear(PIXELS, 8), detached
            self.closed = nn.Parameter(torch.zeros(()))  # a branch that starts at zero, whose weights have no gradient

        def forward(self, images: Tensor) -> Tensor:
            pixels = images.flatten(1)
            features = self.first(pixels)
            if self.detached:
                features = features.detach()
            logits: Tensor = self.head(features + self.closed * self.unused(pixels))
            return logits

    torch.manual_seed(0)
    for detached in (False, True):
        model = Network(detached)
        gradient = gradient_of(model, IMAGES, LABELS)
        assert not gradient["unused.weight"].any()
        found = zero_gradient(model, IMAGES, gradient)
        # The head has a gradient of its own, so the share is not all.
        assert (0.3 < found.value < 1) if detached else found == (0, "")
        assert found.where == ("first.weight" if detached else "")
