# SPDX-License-Identifier: Apache-2.0
"""Normalisation of images in [0, 1] before the target network.

The normalisation is a forward pre-hook of the network itself, so that parameters keep the names that they have in the
user's own model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn

from lightning_recon.errors import UserError

# One number for each channel of the images.
PerChannel = tuple[float, ...]


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel: images are normalised to (x - mean) / std.

    Args:
        mean: of each channel, of red, green and blue say, on the scale [0, 1].
        std: likewise, above 0.
    """

    mean: PerChannel
    std: PerChannel

    def __post_init__(self) -> None:
        """Convert whole numbers and lists, so that equal statistics compare equal."""
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))

    def check(self, channels: int = 3) -> None:
        """Refuse what cannot normalise images of so many channels.

        Args:
            channels: of the images.

        Raises:
            UserError: which number is wrong.
        """
        count = "three" if channels == 3 else str(channels)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != channels or not all(math.isfinite(value) for value in values):
                raise UserError(f"normalization.{name} is {list(values)}: give {count} finite numbers, one a channel")
        if min(self.std) <= 0:
            raise UserError(f"normalization.std is {list(self.std)}: give {count} numbers above 0")

    def of_channels(self, channels: int) -> "ChannelStatistics":
        """The same for another number of channels: for each the averages of mean and variance over these channels.

        Args:
            channels: of the images.
        """
        if channels == len(self.mean):
            return self
        mean, variance = fmean(self.mean), fmean(std**2 for std in self.std)
        return ChannelStatistics((mean,) * channels, (math.sqrt(variance),) * channels)


# "auto" is resolved by `resolve`: none for class paths, else what the network's published weights ask for.
Normalization = Literal["auto", "none", "imagenet"] | ChannelStatistics

IMAGENET_MEAN: PerChannel = (0.485, 0.456, 0.406)
IMAGENET_STD: PerChannel = (0.229, 0.224, 0.225)
IMAGENET = ChannelStatistics(IMAGENET_MEAN, IMAGENET_STD)


class Normalize:
    """The hook: normalises the images that a network is called with.

    Args:
        statistics: of the channels.
    """

    def __init__(self, statistics: ChannelStatistics) -> None:
        """Keep the statistics as tensors, shape (C, 1, 1), float32."""
        self.mean, self.std = (torch.tensor(one).view(-1, 1, 1) for one in (statistics.mean, statistics.std))

    def __call__(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """The network's arguments with the first of them, images (B, C, H, W), normalised."""
        images, *others = given
        return ((images - self.mean.to(images)) / self.std.to(images), *others)


def normalize_inputs(network: nn.Module, statistics: ChannelStatistics | None) -> nn.Module:
    """Let a network normalise the images that it is called with.

    Args:
        network: expects normalised images (B, C, H, W); it is changed in place.
        statistics: None leaves it as it is.

    Returns:
        The same network.
    """
    if statistics is not None:
        network.register_forward_pre_hook(Normalize(statistics))
    return network


def resolve(normalization: Normalization, name: str, network: nn.Module, channels: int = 3) -> ChannelStatistics | None:
    """The statistics that a network's images are normalised with; None if they are not.

    Published statistics are of RGB images: images of another number of channels are normalised with their averages.

    Args:
        normalization: as configured or announced.
        name: of the network, as in `networks.build_network`.
        network: as built; a network of timm carries the settings of its published weights.
        channels: of the images.

    Raises:
        UserError: statistics that cannot normalise images.
    """
    if isinstance(normalization, ChannelStatistics):
        normalization.check(channels)
        return normalization
    if normalization != "auto":
        published = IMAGENET if normalization == "imagenet" else None
    else:
        published = _published(name, network)
    return None if published is None else published.of_channels(channels)


def _published(name: str, network: nn.Module) -> ChannelStatistics | None:
    """What the network's published weights ask for; None for a class path."""
    if name in torchvision.models.list_models(module=torchvision.models):
        return _of_torchvision(name)
    settings: Mapping[str, Any] | None = getattr(network, "pretrained_cfg", None)
    if settings is not None:
        mean, std = settings.get("mean"), settings.get("std")
        return ChannelStatistics(tuple(mean), tuple(std)) if mean and std and len(mean) == 3 else IMAGENET
    return IMAGENET if "." not in name else None


def announced(statistics: ChannelStatistics | None) -> Normalization:
    """The value of a task's `normalization` for resolved statistics: "none", "imagenet", or the numbers."""
    if statistics is None:
        return "none"
    return "imagenet" if statistics == IMAGENET.of_channels(len(statistics.mean)) else statistics


def in_words(normalization: Normalization) -> str:
    """One phrase for the terminal."""
    if isinstance(normalization, ChannelStatistics):
        mean, std = (", ".join(f"{value:g}" for value in one) for one in (normalization.mean, normalization.std))
        return f"mean {mean} and standard deviation {std}"
    return {"auto": "as the network's weights ask for", "none": "none", "imagenet": "ImageNet's"}[normalization]


def _of_torchvision(name: str) -> ChannelStatistics:
    weights = getattr(torchvision.models.get_model_weights(name), "DEFAULT", None)
    transforms = None if weights is None else weights.transforms()
    if transforms is None or not hasattr(transforms, "mean"):
        return IMAGENET
    return ChannelStatistics(tuple(transforms.mean), tuple(transforms.std))


def without_wrapper(
    named: Mapping[str, Tensor], expected: set[str] | Mapping[str, Any], place: str = ""
) -> dict[str, Tensor]:
    """Tensors by the names of a network's own parameters.

    Until 0.1 the normalisation was a wrapper, which put "model." before every name. Files of those versions are still
    read; names that the network really has are left alone.

    Args:
        named: tensors by name.
        expected: the names that the network has.
        place: prefix of the network's own names in both: "network.", say.
    """
    prefix = f"{place}model."
    wrapped = {name for name in named if name.startswith(prefix)}
    if not wrapped or any(name in expected for name in wrapped):
        return dict(named)
    return {place + name.removeprefix(prefix) if name in wrapped else name: one for name, one in named.items()}
