# SPDX-License-Identifier: Apache-2.0
"""Target networks by name, prepared so that they can be differentiated per sample and twice.

Whatever the network, it takes images in [0, 1]: the normalisation that it expects happens inside.
"""

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_recon.errors import UserError
from lightning_recon.networks.input_layer import adapt_input
from lightning_recon.networks.normalization import Normalization, normalize_inputs, resolve
from lightning_recon.networks.weights_file import load_weights
from lightning_recon.suggestions import closest

log = logging.getLogger(__name__)


class ConvNet(nn.Module):
    """A small network without batch normalisation, smooth everywhere: "convnet"."""

    def __init__(self, num_classes: int, channels: int = 3) -> None:
        """Build it with random weights.

        Args:
            num_classes: number of logits.
            channels: of the images.
        """
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(4),
        )
        self.classifier = nn.Linear(64 * 4 * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, height, width)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class PixelConvNet(nn.Module):
    """A small network for segmentation, without batch normalisation and smooth everywhere: "pixel_convnet"."""

    def __init__(self, num_classes: int, channels: int = 3) -> None:
        """Build it with random weights.

        Args:
            num_classes: number of channels of its output.
            channels: of the images.
        """
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.GELU(),
        )
        self.head = nn.Conv2d(64, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes, height, width) of images (B, 3, height, width)."""
        coarse = self.head(self.features(images))
        return F.interpolate(coarse, size=images.shape[2:], mode="bilinear", align_corners=False)


def build_network(
    name: str,
    num_classes: int,
    weights: str | Path | None = None,
    seed: int = 0,
    normalization: Normalization = "auto",
    image_size: tuple[int, int] | None = None,
    channels: int = 3,
) -> nn.Module:
    """Build a network that maps images in [0, 1] to logits.

    Args:
        name: "convnet", "pixel_convnet", a torchvision name (of networks for classification or segmentation), a timm
            name (if timm is installed), or a class path ("package.module.Class", called with `num_classes`).
        num_classes: number of logits, values or channels.
        weights: file with a state dict, see `load_weights`; None: random weights.
        seed: seed of the random weights; the global random state is left alone.
        normalization: of the images, inside the network; see `normalization.resolve`.
        image_size: height and width that the network is built for, in pixels; None: its own default. Only some
            networks take it, see `takes_size`.
        channels: of the images. A class path decides itself how many it takes; of other networks the first convolution
            is adapted, see `input_layer.adapt_input`.

    Returns:
        The network, in training mode, on the CPU, in float32, without in-place activations; what it returns is the
        logits, of networks with auxiliary outputs too. Its parameters have the names that the network gives them.

    Raises:
        UserError: unknown name, a network that takes no `image_size`, or weights that do not fit.
    """
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}: a network needs at least 1 output")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _find(name, num_classes, image_size, channels)
    _refuse_unusable(network, name)
    for module in network.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010 - in-place changes break torch.func transforms and second derivatives
    network.train()
    network = in_single_precision(network, name)
    normalize_inputs(network, resolve(normalization, name, network, channels))
    network.register_forward_hook(logits_of)
    if weights is not None:
        load_weights(network, weights)
    return network


def logits_of(module: nn.Module, given: tuple[Any, ...], output: object) -> object:
    """The hook: of an output with auxiliary parts (`output.logits`, `output["logits"]`) the logits alone.

    torchvision's networks for segmentation call them `output["out"]`.
    """
    for name in ("logits", "out"):
        if isinstance(output, Mapping) and name in output:
            return output[name]
    return getattr(output, "logits", output)


def in_single_precision(network: nn.Module, name: str) -> nn.Module:
    """The network in float32, in which clients compute: half and double precision are converted with a notice.

    Args:
        network: any network; it is converted in place.
        name: its name, for the notice.
    """
    kinds = {str(one.dtype).removeprefix("torch.") for one in network.parameters() if one.is_floating_point()}
    if other := sorted(kinds - {"float32"}):
        log.warning("Converted the network %s from %s to float32, in which clients compute.", name, " and ".join(other))
        network = network.float()
    return network


def copied(network: nn.Module) -> nn.Module:
    """A deep copy; tensors that the network keeps of an earlier pass come along without their graph."""
    kept = (value for module in network.modules() for value in vars(module).values())
    detached = {id(one): one.detach() for one in kept if isinstance(one, Tensor) and not one.is_leaf}
    return deepcopy(network, detached)


def is_class_path(name: str) -> bool:
    """Whether a name is none of torchvision's or timm's, so that building the network would import and call it."""
    if "." not in name or find_spec("timm") is None:
        return "." in name
    import timm

    return not timm.is_model(name)


def takes_size(name: str) -> bool:
    """Whether a network may be one that is built for images of one size: torchvision's transformers, any of timm."""
    if name in ("convnet", "pixel_convnet") or name in torchvision.models.list_models(module=torchvision.models):
        return name.startswith("vit_")
    return not is_class_path(name)


def _find(name: str, num_classes: int, image_size: tuple[int, int] | None, channels: int) -> nn.Module:
    if name == "convnet":
        return ConvNet(num_classes, channels)
    if name == "pixel_convnet":
        return PixelConvNet(num_classes, channels)
    known = torchvision.models.list_models(module=torchvision.models.segmentation)
    if name in known:
        # Without `weights_backbone`, torchvision would download weights.
        settings: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": num_classes}
        segmenting = cast(nn.Module, torchvision.models.get_model(name, **settings))
        adapt_input(segmenting, channels)
        return segmenting
    known = torchvision.models.list_models(module=torchvision.models)
    if name in known:
        settings = {"num_classes": num_classes, **_quiet(name)}
        built = _sized(partial(torchvision.models.get_model, name, weights=None, **settings), "image_size", image_size)
        if name == "inception_v3":  # its auxiliary head needs large images, and its output is not used
            built.get_submodule("AuxLogits").forward = _nothing
        adapt_input(built, channels)
        return built
    if find_spec("timm") is not None:
        import timm

        if timm.is_model(name):
            options: dict[str, Any] = {"num_classes": num_classes}
            if channels != 3:
                options["in_chans"] = channels
            return _sized(partial(timm.create_model, name, **options), "img_size", image_size)
        known += timm.list_models()
    if "." in name:
        return _from_path(name, num_classes)
    near = closest(name, ["convnet", "pixel_convnet", *known])
    hint = f"did you mean {near}?" if near else "no name comes near."
    raise UserError(f"unknown network {name!r}: {hint} Give a torchvision or timm name, convnet, or a class path")


def _sized(build: Callable[..., nn.Module], option: str, image_size: tuple[int, int] | None) -> nn.Module:
    """Build a library's network; for images of a size, if one is given, by the option that the library has for it."""
    if image_size is None:
        return build()
    height, width = image_size
    try:
        # torchvision's transformers take images of one side.
        return build(**{option: image_size if height != width or option == "img_size" else height})
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError) as error:
        raise UserError(
            f"it is not built for images of {height} x {width}: {' '.join(str(error).split())[:200]}"
        ) from error


def _refuse_unusable(network: nn.Module, name: str) -> None:
    """Refuse, in one line, networks that hooks or `torch.func` cannot handle."""
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(
            f"network {name!r} is a TorchScript module, which torch.func cannot take: give its Python class"
        )
    if isinstance(network, nn.DataParallel):
        raise UserError(f"network {name!r} is wrapped in DataParallel: give the network within")
    if any(not is_lazy(one) and one.is_inference() for one in network.parameters()):
        raise UserError(f"network {name!r} was built in inference mode and has no gradients: build it outside of it")


def _nothing(features: Tensor) -> None:
    """Replaces an auxiliary head's output; it keeps its parameters, whose gradient is zero."""


def _quiet(name: str) -> dict[str, bool]:
    # torchvision warns that these two networks' default initialisation will change, unless the argument names one.
    return {"init_weights": True} if name in ("googlenet", "inception_v3") else {}


def _from_path(name: str, num_classes: int) -> nn.Module:
    module, _, attribute = name.rpartition(".")
    try:
        built = getattr(import_module(module), attribute)(num_classes=num_classes)
    except Exception as error:  # the constructor of a user's class may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"network {name!r} cannot be built ({reason}): give the path of a class that takes num_classes"
        ) from error
    if not isinstance(built, nn.Module):
        raise UserError(f"network {name!r} builds a {type(built).__name__}: give the path of a torch.nn.Module class")
    return built
