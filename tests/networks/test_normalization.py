# SPDX-License-Identifier: Apache-2.0
"""Normalisation inside of networks."""

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.networks.construction import build_network, copied
from lightning_recon.networks.normalization import (
    IMAGENET,
    ChannelStatistics,
    Normalization,
    announced,
    normalize_inputs,
    resolve,
    without_wrapper,
)


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
    resolved = announced(expected)
    task = Task((3, 8, 8), 4, 1, 1, name, "update", False, None, 0.0, 1, 1)
    record = asdict(task) | {"normalization": resolved if isinstance(resolved, str) else asdict(resolved)}
    assert Task.from_record(json.loads(json.dumps(record))).normalization == resolved
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


def test_names_of_versions_with_a_wrapper_are_read() -> None:
    tensors = {"network.model.model.weight": torch.ones(1), "structure.weight": torch.ones(1)}
    expected = {"network.model.weight": ()}
    assert without_wrapper(tensors, expected, "network.").keys() == {"network.model.weight", "structure.weight"}
    today = {"network.model.weight": torch.ones(1)}
    assert without_wrapper(today, expected, "network.").keys() == today.keys()
