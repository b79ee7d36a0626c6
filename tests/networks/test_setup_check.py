# SPDX-License-Identifier: Apache-2.0
"""Whether a network can be trained on the pictures at hand is said in one line before anything is computed."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data.sources import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload

CLASSES = 5


class Base(nn.Module):
    """A convolution and a classifier, for pictures of any size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, 4)."""
        return torch.tanh(self.conv(images)).mean((2, 3))

    def forward(self, images: Tensor) -> object:
        """Logits."""
        return self.head(self.features(images))


class LogitsAndMore(Base):
    def forward(self, images: Tensor) -> object:
        return {"logits": super().forward(images), "features": self.features(images)}


class Named(Base):
    def forward(self, images: Tensor) -> object:
        return SimpleNamespace(logits=super().forward(images))


class Pair(Base):
    def forward(self, images: Tensor) -> object:
        return super().forward(images), self.features(images)


class Ambiguous(Base):
    def forward(self, images: Tensor) -> object:
        return {"scores": super().forward(images)}


class Lazy(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.head = nn.LazyConv2d(4, 3, 2, 1), nn.LazyLinear(num_classes)

    def forward(self, images: Tensor) -> object:
        return self.head(torch.tanh(self.conv(images)).flatten(1))


class Double(Base):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.double()


class DoubleInside(Double):
    def forward(self, images: Tensor) -> object:
        return super().forward(images.double())


class Grey(Base):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv = nn.Conv2d(1, 4, 3)


class Wide(Base):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes + 2)


class Maps(Base):
    def forward(self, images: Tensor) -> object:
        return self.conv(images)


class Fixed(Base):
    """For pictures of 96 pixels a side alone."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.Linear(4 * 48 * 48, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return torch.tanh(self.conv(images)).flatten(1)


class Nan(Base):
    def features(self, images: Tensor) -> Tensor:
        return super().features(images) * torch.nan


class Detached(Base):
    def forward(self, images: Tensor) -> object:
        with torch.no_grad():
            return super().forward(images)


class Empty(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()

    def forward(self, images: Tensor) -> object:
        return images.mean((2, 3)).repeat(1, 2)[:, :CLASSES]


class Whole(Base):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.count = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)


class Spread(Base):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))


class Counting(Base):
    """Changes a buffer in every pass, and decides by a number that it takes out of a tensor."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, images: Tensor) -> object:
        self.passes += 1
        return super().forward(images if float(images.sum()) > 0 else -images)


def scripted(num_classes: int) -> nn.Module:
    return torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes)), torch.rand(1, 3, 2, 2))  # type: ignore[no-any-return]


def client(name: str, side: int = 16, count: int = 2, **settings: object) -> VictimClient:
    found = VictimClient(name if "." in name or name.islower() else f"{__name__}.{name}", CLASSES, **settings)  # type: ignore[arg-type]
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(count, 1, side, side, dtype=torch.bool)
    found.bind([ClientBatch(images, images, mask, torch.arange(count), [""] * count)])
    return found


@pytest.mark.parametrize("name", ["Base", "LogitsAndMore", "Named", "Lazy", "Double", "Counting"])
def test_networks_that_can_be_used(name: str) -> None:
    found = client(name)
    assert found.network.training
    assert all(not buffer.any() for buffer in found.network.buffers())
    update = found.share(ServerPayload(), 0, 0, 0)
    assert all(tensor.dtype == torch.float32 for tensor in update.gradient.values())
    assert torch.stack([tensor.norm() for tensor in update.gradient.values()]).min() > 0
    again = client(name).share(ServerPayload(), 0, 0, 0)
    assert all(torch.equal(tensor, again.gradient[key]) for key, tensor in update.gradient.items())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Pair", "returns a tuple, which may hold more than logits"),
        ("Ambiguous", "under the name logits"),
        ("DoubleInside", "nor of any size up to 299"),
        ("Grey", "takes 1 channel"),
        ("Wide", "set num_classes 7"),
        ("Maps", r"returns the shape \(2, 4, 8, 8\) for 2 images"),
        ("Fixed", r"cannot take images of 16 x 16 .*set image_size 96"),
        ("Nan", "returns NaN or infinity"),
        ("Detached", "without a gradient"),
        ("Empty", "has no parameters"),
        ("Whole", "holds int64 numbers in count"),
        ("Spread", "holds complex64 numbers in phase"),
        (f"{__name__}.scripted", "is a TorchScript module"),
        ("inception_v3", "set image_size 96"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_networks_that_cannot_are_answered_in_one_line(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        client(name)
    assert "\n" not in str(raised.value)


def test_layers_that_cannot_be_mapped_are_named_with_the_way_out() -> None:
    settings = {"privacy": Privacy(granularity="sample")}
    with pytest.raises(UserError) as raised:
        client("Counting", chunk_size=2, **settings).share(ServerPayload(), 0, 0, 0)
    assert "--model.client.chunk_size 1" in raised.value.for_command_line
    assert client("Counting", chunk_size=1, **settings).share(ServerPayload(), 0, 0, 0).gradient


def test_networks_built_for_one_size_are_built_for_the_pictures(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("timm")
    with caplog.at_level(logging.WARNING):
        found = client("vit_tiny_patch16_224", side=32)
    assert "for images of 32 x 32" in caplog.text
    assert found.share(ServerPayload(), 0, 0, 0).gradient["network.pos_embed"].shape == (1, 5, 192)
