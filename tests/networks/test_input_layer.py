# SPDX-License-Identifier: Apache-2.0
"""Networks for RGB images become networks for other numbers of channels."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_recon.client import VictimClient
from lightning_recon.errors import UserError
from lightning_recon.networks.construction import build_network
from lightning_recon.networks.input_layer import adapt_weights, first_convolution
from lightning_recon.networks.normalization import IMAGENET, ChannelStatistics, announced, resolve
from lightning_recon.networks.target_network import TargetNetwork

SHAPE = (1, 32, 32)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@pytest.mark.parametrize("name", ["convnet", "resnet18", "vit_tiny_patch16_224.augreg_in21k"])
def test_networks_are_built_for_any_number_of_channels(name: str, channels: int) -> None:
    if "." in name:
        pytest.importorskip("timm")
    size = (224, 224) if "." in name else None
    network = build_network(name, 5, image_size=size, channels=channels)
    assert network(torch.rand(2, channels, *(size or (32, 32)))).shape == (2, 5)
    again = build_network(name, 5, image_size=size, channels=channels)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_a_grey_network_with_rgb_weights_sees_grey_as_the_rgb_network_does(tmp_path: Path) -> None:
    rgb = build_network("convnet", 5, seed=3, normalization="none").eval()
    save_file(rgb.state_dict(), tmp_path / "rgb.safetensors")
    target = TargetNetwork("convnet", 5, tmp_path / "rgb.safetensors", 0, "none", True)
    grey = target.fit(*target.build_before_data(), SHAPE, 1).eval()
    image = torch.rand(2, *SHAPE)
    torch.testing.assert_close(grey(image), rgb(image.expand(-1, 3, -1, -1)))
    save_file(grey.state_dict(), tmp_path / "grey.safetensors")
    trained = TargetNetwork("convnet", 5, tmp_path / "grey.safetensors", 0, "none", True)
    again = trained.fit(*trained.build_before_data(), SHAPE, 1).eval()
    torch.testing.assert_close(again(image), grey(image))
    with pytest.raises(UserError, match="do not fit the network"):
        trained.fit(*trained.build_before_data(), (4, 32, 32), 1)


def test_weights_are_repeated_for_many_channels() -> None:
    rgb, five = build_network("convnet", 5), build_network("convnet", 5, channels=5)
    found = first_convolution(rgb)
    assert found is not None
    name, layer = f"{found[0]}.weight", found[1].weight
    weight = adapt_weights(rgb.state_dict(), five)[name]
    torch.testing.assert_close(weight, layer[:, [0, 1, 2, 0, 1]] * 0.6)
    five.load_state_dict(adapt_weights(rgb.state_dict(), five))


def test_published_statistics_become_averages() -> None:
    network = build_network("resnet18", 5, channels=1)
    found = resolve("auto", "resnet18", network, 1)
    assert found is not None
    assert found.mean == pytest.approx((sum(IMAGENET.mean) / 3,))
    assert announced(found) == "imagenet"
    assert resolve("imagenet", "resnet18", network, 4) == IMAGENET.of_channels(4)
    own = ChannelStatistics((0.3,), (0.2,))
    assert announced(resolve(own, "resnet18", network, 1)) == own
    with pytest.raises(UserError, match="give 2 finite numbers"):
        resolve(own, "resnet18", network, 2)
    client = VictimClient(network="convnet", num_classes=5, normalization=own)
    client._fit_network(SHAPE, 1, None)
    assert client.network(torch.rand(1, *SHAPE)).shape == (1, 5)
