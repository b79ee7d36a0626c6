# SPDX-License-Identifier: Apache-2.0
"""Weights from files, and files that hold none."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.networks.construction import build_network
from lightning_recon.networks.weights_file import load_weights


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
