# SPDX-License-Identifier: Apache-2.0
"""Target networks by name, prepared so that they can be differentiated per sample and twice.

Whatever the network, it takes pictures in [0, 1]: the normalisation that it expects happens inside.
"""

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_recon.errors import UserError
from lightning_recon.storage import FAULTS, read_safetensors, reason_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# What torch says of an operation whose backward pass cannot be differentiated, or not within `torch.func`.
_ONCE = ("is not implemented", "double backward", "differentiate twice", "functorch transforms")

log = logging.getLogger(__name__)


class Normalized(nn.Module):
    """A network that takes pictures in [0, 1] and normalises them itself, with the statistics of ImageNet."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module) -> None:
        """Wrap a network.

        Args:
            model: network that expects normalised pictures (B, 3, height, width) and returns logits (B, classes).
        """
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of pictures (B, 3, height, width) in [0, 1]."""
        output = self.model((images - self.mean) / self.std)
        logits: Tensor = getattr(output, "logits", output)  # GoogLeNet and Inception add auxiliary heads in training
        return logits


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
        """Logits (B, num_classes) of pictures (B, 3, height, width)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def build_network(name: str, num_classes: int, weights: str | Path | None = None, seed: int = 0) -> Normalized:
    """Build a network that maps pictures in [0, 1] to logits.

    Args:
        name: "convnet", a torchvision name, a timm name (if timm is installed), or a class path
            ("package.module.Class", called with `num_classes`).
        num_classes: number of logits, at least 2.
        weights: file with a state dict, see `load_weights`; None: random weights.
        seed: seed of the random weights; the global random state is left alone.

    Returns:
        The network, in training mode, on the CPU, without in-place activations.

    Raises:
        UserError: unknown name, or weights that do not fit.
    """
    if num_classes < 2:
        raise UserError(f"num_classes is {num_classes}: a network needs at least 2 classes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Normalized(_find(name, num_classes))
    for module in network.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010 - in-place changes break torch.func transforms and second derivatives
    if weights is not None:
        load_weights(network, weights)
    return network


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a state dict into the network, every tensor of it.

    Args:
        network: network to fill, a `Normalized`.
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
    for prefix in ("network.model.", "model."):  # of a client's checkpoint, and of a `Normalized`
        if any(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}
            break
    try:
        network.get_submodule("model").load_state_dict(content)
    except (RuntimeError, TypeError) as error:
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


def without_batch_norm(network: Normalized) -> Normalized:
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
    return Normalized(fixed.model)


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


def _find(name: str, num_classes: int) -> nn.Module:
    if name == "convnet":
        return ConvNet(num_classes)
    known = torchvision.models.list_models(module=torchvision.models)
    if name in known:
        built: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **_quiet(name))
        return built
    if find_spec("timm") is not None:
        import timm

        if timm.is_model(name):
            return timm.create_model(name, num_classes=num_classes)
        known += timm.list_models()
    if "." in name:
        return _from_path(name, num_classes)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "no name comes near."
    raise UserError(f"unknown network {name!r}: {hint} Give a torchvision or timm name, convnet, or a class path")


def _quiet(name: str) -> dict[str, bool]:
    # torchvision warns that these two networks' default initialisation will change, unless told which one to use.
    return {"init_weights": True} if name in ("googlenet", "inception_v3") else {}


def _from_path(name: str, num_classes: int) -> nn.Module:
    module, _, attribute = name.rpartition(".")
    try:
        built = getattr(import_module(module), attribute)(num_classes=num_classes)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"network {name!r} cannot be built ({error}): give the path of a class that takes num_classes"
        ) from error
    if not isinstance(built, nn.Module):
        raise UserError(f"network {name!r} builds a {type(built).__name__}: give the path of a torch.nn.Module class")
    return built
