# SPDX-License-Identifier: Apache-2.0
"""Networks by name, their weights, and whether they can be differentiated as the rooms next door need."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call, grad
from torchvision.models import resnet18
from torchvision.models.vision_transformer import VisionTransformer

from lightning_recon.client.gradients import find_batch_coupling_layer
from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.networks.batch_norm import without_batch_norm
from lightning_recon.networks.construction import build_network, copied
from lightning_recon.networks.differentiability import math_attention
from lightning_recon.networks.normalization import (
    IMAGENET,
    ChannelStatistics,
    Normalization,
    announced,
    normalize_inputs,
    resolve,
    without_wrapper,
)
from lightning_recon.networks.weights_file import load_weights


class TinyTransformer(VisionTransformer):
    """A vision transformer small enough for a test."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(32, 16, 1, 2, 16, 32, num_classes=num_classes)
        nn.init.normal_(self.heads.head.weight)  # torchvision starts it at zero, which hides all other gradients


class NotCalledRight(nn.Module):
    """A class that does not take num_classes."""


TINY = f"{__name__}.TinyTransformer"


class Plain(nn.Module):
    """A network of a user's own, with a child called model, as a wrapper's would be."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.model = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.model(images.mean((2, 3)))
        return logits


PLAIN = f"{__name__}.Plain"


def test_normalisation_happens_inside() -> None:
    network = normalize_inputs(nn.Flatten(), IMAGENET)
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (IMAGENET.mean, IMAGENET.std))
    for same in (network, copied(network)):
        assert torch.equal(same(mean.expand(2, 3, 2, 2)), torch.zeros(2, 12))
        torch.testing.assert_close(same((mean + std).expand(2, 3, 2, 2).double()), torch.ones(2, 12).double())
    assert network.state_dict() == {}


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("convnet", "auto", IMAGENET),
        ("resnet18", "auto", IMAGENET),
        ("resnet18", "none", None),
        (PLAIN, "auto", None),
        (PLAIN, "imagenet", IMAGENET),
        (PLAIN, ChannelStatistics((0.1, 0.2, 0.3), (1, 2, 3)), ChannelStatistics((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))),
        ("vit_tiny_patch16_224", "auto", ChannelStatistics((0.5,) * 3, (0.5,) * 3)),
    ],
)
def test_who_normalises_how(name: str, asked: Normalization, expected: ChannelStatistics | None) -> None:
    if name.startswith("vit"):
        pytest.importorskip("timm")
    network, bare = (build_network(name, 4, normalization=one) for one in (asked, "none"))
    assert resolve(asked, name, network) == expected
    told = announced(expected)
    task = Task((3, 8, 8), 4, 1, 1, name, "update", False, None, 0.0, 1, 1)
    record = asdict(task) | {"normalization": told if isinstance(told, str) else asdict(told)}
    assert Task.from_record(json.loads(json.dumps(record))).normalization == told
    images, mode = torch.rand(2, 3, 224 if "224" in name else 32, 224 if "224" in name else 32), network.eval()
    scaled = images if expected is None else normalize_inputs(nn.Identity(), expected)(images)
    torch.testing.assert_close(mode(images), bare.eval()(scaled))
    assert [key for key, _ in network.named_parameters()] == [key for key, _ in bare.named_parameters()]


@pytest.mark.parametrize(
    "wrong", [{"mean": (0, 0, 0), "std": (1, 0, 1)}, {"mean": (0, 0, float("nan")), "std": (1,) * 3}]
)
def test_statistics_that_normalise_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="normalization"):
        build_network("convnet", 4, normalization=ChannelStatistics(**wrong))


def test_names_of_the_time_of_a_wrapper_are_read() -> None:
    tensors = {"network.model.model.weight": torch.ones(1), "structure.weight": torch.ones(1)}
    expected = {"network.model.weight": ()}
    assert without_wrapper(tensors, expected, "network.").keys() == {"network.model.weight", "structure.weight"}
    today = {"network.model.weight": torch.ones(1)}
    assert without_wrapper(today, expected, "network.").keys() == today.keys()


def test_seed_decides_the_weights_and_global_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    first, same, other = (build_network("convnet", 7, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(same[name], tensor) for name, tensor in first.items())
    assert any(not torch.equal(other[name], tensor) for name, tensor in first.items())


def test_torchvision_names_give_torchvision_networks() -> None:
    network = build_network("resnet18", 7)
    assert network.state_dict().keys() == resnet18(num_classes=7).state_dict().keys()
    assert not any(getattr(module, "inplace", False) for module in network.modules())


def test_timm_names() -> None:
    pytest.importorskip("timm")
    network = build_network("vit_tiny_patch16_224.augreg_in21k", 7)
    assert network.num_classes == 7


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


@pytest.mark.parametrize("prefix", ["", "network.", "model.", "network.model."])
@pytest.mark.parametrize("kind", ["w.safetensors", "w.pt", "checkpoint.ckpt"])
def test_weights_are_loaded(tmp_path: Path, kind: str, prefix: str) -> None:
    name = PLAIN if kind == "w.pt" else "convnet"
    source, path = build_network(name, 7, seed=1), tmp_path / kind
    own = source.state_dict()
    state = {f"{prefix}{key}": tensor for key, tensor in own.items()}
    if kind == "w.safetensors":
        save_file(state, path)
    elif kind == "w.pt":
        torch.save(state, path)
    else:
        torch.save({"state_dict": {**state, **({"other": torch.ones(1)} if prefix else {})}, "epoch": 3}, path)
    loaded = build_network(name, 7, weights=str(path), seed=2).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in own.items())


def test_weights_that_do_not_serve(tmp_path: Path) -> None:
    network, path = build_network("convnet", 7), tmp_path / "w.pt"
    with pytest.raises(UserError, match="do not exist"):
        load_weights(network, path)
    torch.save(build_network("convnet", 8).state_dict(), path)
    with pytest.raises(UserError, match="do not fit the network"):
        load_weights(network, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(network, path)
    for content in (
        network,
        [1, 2],
        {1: torch.ones(1)},
        {"state_dict": None},
    ):  # a pickled module would execute code; a list is no state dict
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
    assert find_batch_coupling_layer(converted) is None
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(converted(images)[1:], converted(images[1:]))  # nobody depends on the others
    assert torch.equal(converted.conv1.weight, network.conv1.weight)
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
