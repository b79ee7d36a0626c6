# SPDX-License-Identifier: Apache-2.0
"""Networks by name, and names that are none."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from lightning_recon.errors import UserError
from lightning_recon.networks.construction import build_network


class NotCalledRight(nn.Module):
    """A class that does not take num_classes."""


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


def test_no_output_is_refused() -> None:
    with pytest.raises(UserError, match="num_classes is 0"):
        build_network("convnet", 0)
