# SPDX-License-Identifier: Apache-2.0
"""Target networks by name, prepared so that they can be differentiated per sample and twice.

Whatever the network, it takes images in [0, 1]: the normalisation that it expects happens inside.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from lightning_recon.errors import UserError
from lightning_recon.files.faults import FAULTS, reason_of
from lightning_recon.files.serialization import read_safetensors
from lightning_recon.networks.normalization import Normalization, normalize_inputs, resolve
from lightning_recon.suggestions import closest

# What torch says of an operation whose backward pass cannot be differentiated, or not within `torch.func`.
_ONCE = ("is not implemented", "double backward", "differentiate twice", "functorch transforms")

# Prefixes of a network's own names in a file of weights.
_PREFIXES = ("", "network.", "model.", "network.model.")

log = logging.getLogger(__name__)


class ConvNet(nn.Module):
    """A small network without batch normalisation, smooth everywhere: "convnet"."""

    def __init__(self, num_classes: int) -> None:
        """Build it with random weights.

        Args:
            num_classes: number of logits.
        """
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(4),
        )
        self.classifier = nn.Linear(64 * 4 * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, height, width)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def build_network(
    name: str,
    num_classes: int,
    weights: str | Path | None = None,
    seed: int = 0,
    normalization: Normalization = "auto",
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """Build a network that maps images in [0, 1] to logits.

    Args:
        name: "convnet", a torchvision name, a timm name (if timm is installed), or a class path
            ("package.module.Class", called with `num_classes`).
        num_classes: number of logits, at least 2.
        weights: file with a state dict, see `load_weights`; None: random weights.
        seed: seed of the random weights; the global random state is left alone.
        normalization: of the images, inside the network; see `normalization.resolve`.
        image_size: height and width that the network is built for, in pixels; None: its own default. Only some
            networks take it, see `takes_size`.

    Returns:
        The network, in training mode, on the CPU, in float32, without in-place activations; what it returns is the
        logits, of networks with auxiliary outputs too. Its parameters have the names that the network gives them.

    Raises:
        UserError: unknown name, a network that takes no `image_size`, or weights that do not fit.
    """
    if num_classes < 2:
        raise UserError(f"num_classes is {num_classes}: a network needs at least 2 classes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _find(name, num_classes, image_size)
    _refuse_unusable(network, name)
    for module in network.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010 - in-place changes break torch.func transforms and second derivatives
    network.train()
    network = in_single_precision(network, name)
    normalize_inputs(network, resolve(normalization, name, network))
    network.register_forward_hook(logits_of)
    if weights is not None:
        load_weights(network, weights)
    return network


def logits_of(module: nn.Module, given: tuple[Any, ...], output: object) -> object:
    """The hook: of an output with auxiliary parts (`output.logits`, `output["logits"]`) the logits alone."""
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
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


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a state dict into the network, every tensor of it.

    Args:
        network: network to fill.
        path: `.safetensors`, or a file of `torch.save`: a bare state dict, or a checkpoint of a trained `VictimClient`.
            Reading it executes no code.

    Raises:
        UserError: the file is missing, cannot be read, or belongs to another network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights {path} do not exist: give the path of a state dict (.safetensors or .pt)")
    try:
        content = _state_dict(path)
    except FAULTS as error:
        reason = reason_of(error)[:300]
        raise UserError(f"weights {path} cannot be read ({reason}): give a .safetensors or .pt state dict") from error
    except UnpicklingError as error:
        raise UserError(f"weights {path} hold more than plain tensors: save them as .safetensors") from error
    for name, value in content.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"weights {path} hold NaN or infinity in {name}: give those of a network that was trained")
    # Names as in the user's own model, in a client's checkpoint, or of the time when a wrapper normalised the images.
    own = network.state_dict().keys()
    prefix = max(_PREFIXES, key=lambda one: sum(key.startswith(one) and key[len(one) :] in own for key in content))
    content = {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}
    try:
        network.load_state_dict(content)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"weights {path} do not fit the network ({reason[:300]}): check that they are of this network with as many "
            "classes, running statistics included; granularity sample replaces batch normalisation"
        ) from error


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a file.

    Raises:
        ValueError: it holds something else.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    content: object = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not content:
        raise ValueError("it holds no state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"its entry {str(name)[:50]!r} is no tensor with a name")
    return content


def without_batch_norm(network: nn.Module) -> nn.Module:
    """Replace batch normalisation, under which no sample has a gradient of its own, by group normalisation.

    Args:
        network: any network; one without batch normalisation is returned as it is.

    Returns:
        The network or a converted copy. The new layers have fresh scales (1) and shifts (0).

    Raises:
        UserError: a kind of batch normalisation that cannot be converted.
    """
    found = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not found:
        return network
    from opacus.validators import ModuleValidator  # takes seconds to import, and most runs do without

    fixed = ModuleValidator.fix(network)
    if left := [type(module).__name__ for module in fixed.modules() if isinstance(module, _BatchNorm)]:
        raise UserError(
            f"the network's {left[0]} layers cannot be converted for --model.client.privacy.granularity sample: choose "
            "another network, or granularity update"
        )
    log.warning("Replaced %d batch normalisation layers by group normalisation (granularity: sample).", len(found))
    result: nn.Module = fixed
    return result


def copied(network: nn.Module) -> nn.Module:
    """A deep copy; tensors that the network keeps of an earlier pass come along without their graph."""
    kept = (value for module in network.modules() for value in vars(module).values())
    detached = {id(one): one.detach() for one in kept if isinstance(one, Tensor) and not one.is_leaf}
    return deepcopy(network, detached)


@contextmanager
def math_attention() -> Iterator[None]:
    """Within it attention is computed by plain products, which can be differentiated per sample and twice."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def twice_differentiable(network: str) -> Iterator[None]:
    """Within it attention is computed by plain products, and a network without second derivatives is said to be one.

    Args:
        network: its name, for the message.

    Raises:
        UserError: something in the network cannot be differentiated twice.
    """
    try:
        with math_attention():
            yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _ONCE):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"network {network!r} cannot be differentiated twice, as inverting a gradient needs ({reason}): choose "
            "another network, or an attack with a structure"
        ) from error


def is_class_path(name: str) -> bool:
    """Whether a name is none of torchvision's or timm's, so that building the network would import and call it."""
    if "." not in name or find_spec("timm") is None:
        return "." in name
    import timm

    return not timm.is_model(name)


def takes_size(name: str) -> bool:
    """Whether a network may be one that is built for images of one size: torchvision's transformers, any of timm."""
    if name == "convnet" or name in torchvision.models.list_models(module=torchvision.models):
        return name.startswith("vit_")
    return not is_class_path(name)


def _find(name: str, num_classes: int, image_size: tuple[int, int] | None) -> nn.Module:
    if name == "convnet":
        return ConvNet(num_classes)
    known = torchvision.models.list_models(module=torchvision.models)
    if name in known:
        settings: dict[str, Any] = {"num_classes": num_classes, **_quiet(name)}
        built = _sized(partial(torchvision.models.get_model, name, weights=None, **settings), "image_size", image_size)
        if name == "inception_v3":  # its auxiliary head needs large images, and its output is not used
            built.get_submodule("AuxLogits").forward = _nothing
        return built
    if find_spec("timm") is not None:
        import timm

        if timm.is_model(name):
            return _sized(partial(timm.create_model, name, num_classes=num_classes), "img_size", image_size)
        known += timm.list_models()
    if "." in name:
        return _from_path(name, num_classes)
    near = closest(name, ["convnet", *known])
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
    """Say in one line what hooks and `torch.func` cannot work with."""
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
    # torchvision warns that these two networks' default initialisation will change, unless told which one to use.
    return {"init_weights": True} if name in ("googlenet", "inception_v3") else {}


def _from_path(name: str, num_classes: int) -> nn.Module:
    module, _, attribute = name.rpartition(".")
    try:
        built = getattr(import_module(module), attribute)(num_classes=num_classes)
    except Exception as error:  # whatever the constructor of a class that is not ours may raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"network {name!r} cannot be built ({reason}): give the path of a class that takes num_classes"
        ) from error
    if not isinstance(built, nn.Module):
        raise UserError(f"network {name!r} builds a {type(built).__name__}: give the path of a torch.nn.Module class")
    return built
