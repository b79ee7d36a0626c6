# SPDX-License-Identifier: Apache-2.0
"""Networks by name, their weights, and whether they can be differentiated as the rooms next door need."""

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call, grad
from torchvision.models import resnet18
from torchvision.models.vision_transformer import VisionTransformer

from lightning_recon.errors import UserError
from lightning_recon.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalized,
    build_network,
    load_weights,
    math_attention,
    without_batch_norm,
)
from lightning_recon.victim.gradients import mixing_layer


class TinyTransformer(VisionTransformer):
    """A vision transformer small enough for a test."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(32, 16, 1, 2, 16, 32, num_classes=num_classes)
        nn.init.normal_(self.heads.head.weight)  # torchvision starts it at zero, which hides all other gradients


class NotCalledRight(nn.Module):
    """A class that does not take num_classes."""


TINY = f"{__name__}.TinyTransformer"


def test_normalisation_happens_inside() -> None:
    network = Normalized(nn.Flatten())
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    assert torch.equal(network(mean.expand(2, 3, 2, 2)), torch.zeros(2, 12))
    torch.testing.assert_close(network((mean + std).expand(2, 3, 2, 2)), torch.ones(2, 12))
    assert network.state_dict() == {}


def test_seed_decides_the_weights_and_global_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    first, same, other = (build_network("convnet", 7, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(same[name], tensor) for name, tensor in first.items())
    assert any(not torch.equal(other[name], tensor) for name, tensor in first.items())


def test_torchvision_names_give_torchvision_networks() -> None:
    network = build_network("resnet18", 7)
    assert network.model.state_dict().keys() == resnet18(num_classes=7).state_dict().keys()
    assert not any(getattr(module, "inplace", False) for module in network.modules())


def test_timm_names() -> None:
    pytest.importorskip("timm")
    network = build_network("vit_tiny_patch16_224.augreg_in21k", 7)
    assert network.model.num_classes == 7


def test_auxiliary_heads_are_ignored() -> None:
    assert build_network("googlenet", 5)(torch.rand(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt18", "did you mean resnet18"),
        ("qqqqqqqqqqqqqq", "no name comes near"),
        ("fasterrcnn_resnet50_fpn", "unknown network"),
        ("nowhere.Net", "cannot be built"),
        ("torch.nn.Nothing", "cannot be built"),
        (f"{__name__}.NotCalledRight", "takes num_classes"),
        ("builtins.dict", "builds a dict"),
    ],
)
def test_unknown_networks(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_network(name, 10)


def test_one_class_is_refused() -> None:
    with pytest.raises(UserError, match="num_classes is 1"):
        build_network("convnet", 1)


@pytest.mark.parametrize("kind", ["w.safetensors", "w.pt", "checkpoint.ckpt"])
def test_weights_are_loaded(tmp_path: Path, kind: str) -> None:
    source, path = build_network("convnet", 7, seed=1), tmp_path / kind
    state = source.model.state_dict()
    if kind == "w.safetensors":
        save_file(state, path)
    elif kind == "w.pt":
        torch.save(state, path)
    else:
        prefixed = {f"network.model.{name}": tensor for name, tensor in state.items()}
        torch.save({"state_dict": {**prefixed, "other": torch.ones(1)}, "epoch": 3}, path)
    loaded = build_network("convnet", 7, weights=str(path), seed=2).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_weights_that_do_not_serve(tmp_path: Path) -> None:
    network, path = build_network("convnet", 7), tmp_path / "w.pt"
    with pytest.raises(UserError, match="do not exist"):
        load_weights(network, path)
    torch.save(build_network("convnet", 8).model.state_dict(), path)
    with pytest.raises(UserError, match="do not fit the network"):
        load_weights(network, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(network, path)
    for content in (network, [1, 2]):  # a pickled module would execute code; a list is no state dict
        torch.save(content, path)
        with pytest.raises(UserError, match=r"state dict|plain tensors") as raised:
            load_weights(network, path)
        assert "\n" not in str(raised.value)


def test_batch_normalisation_is_replaced_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    network = build_network("resnet18", 5)
    with caplog.at_level(logging.WARNING):
        converted = without_batch_norm(network)
    assert [record.getMessage() for record in caplog.records] == [
        "Replaced 20 batch normalisation layers by group normalisation (granularity: sample)."
    ]
    assert mixing_layer(converted) is None
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(converted(images)[1:], converted(images[1:]))  # nobody depends on the others
    assert torch.equal(converted.model.conv1.weight, network.model.conv1.weight)
    convnet = build_network("convnet", 5)
    assert without_batch_norm(convnet) is convnet


@pytest.mark.parametrize("name", ["convnet", "resnet18", TINY])
def test_second_derivatives_are_finite(name: str) -> None:
    """What an attack by optimisation needs: the gradient of a gradient's norm with respect to the picture."""
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
