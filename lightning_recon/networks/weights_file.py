# SPDX-License-Identifier: Apache-2.0
"""A network's weights from a file: a state dict, or a checkpoint of a trained client."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.files.faults import FAULTS, reason_of
from lightning_recon.files.serialization import read_safetensors
from lightning_recon.networks.input_layer import adapt_weights, first_convolution
from lightning_recon.networks.wrappers import common_prefix, plain_name

# Entries in which programs keep the state dict among other things.
_ENTRIES = ("state_dict", "model_state_dict", "model", "network", "net")


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a state dict into the network, every tensor of it.

    Weights of the same network for RGB images are adapted to its number of channels, see `input_layer.adapt_weights`.

    Args:
        network: network to fill.
        path: `.safetensors`, or a file of `torch.save`: a bare state dict, or a checkpoint that holds one, such as that
            of a trained `VictimClient`. Names may have the prefixes of wrappers, such as "module.", "_orig_mod." and
            "_module.". Reading it executes no code.

    Raises:
        UserError: the file is missing, cannot be read, or belongs to another network.
    """
    path = Path(path)
    content = _own_names(_read(path), network)
    try:
        network.load_state_dict(adapt_weights(content, network))
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"weights {path} do not fit the network ({reason[:300]}): check that they are of this network with as many "
            "classes, running statistics included; granularity sample replaces batch normalization"
        ) from error


def channels_of_weights(path: str | Path, network: nn.Module) -> int:
    """Channels of the images that the network of a file took; those of `network` where the file does not tell.

    Args:
        path: as for `load_weights`.
        network: the same network, with any number of channels.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    found = first_convolution(network)
    if found is None:
        return 3
    weight = _own_names(_read(Path(path)), network).get(f"{found[0]}.weight".removeprefix("."))
    return int(weight.shape[1]) if weight is not None and weight.dim() == 4 else found[1].in_channels


def _read(path: Path) -> dict[str, Tensor]:
    """The finite tensors of a file; anything else is a `UserError`."""
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
    return content


def _own_names(content: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Tensors by the names of the network's own parameters."""
    # Names as in the user's own model, in a client's checkpoint, or of a network in wrappers.
    own = network.state_dict().keys()
    if not set(own) <= content.keys():
        content = {plain_name(key): value for key, value in content.items()}
    prefix = common_prefix(content, own)
    return {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a file.

    Raises:
        ValueError: it holds something else.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    content: object = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, dict):
        content = next((content[name] for name in _ENTRIES if isinstance(content.get(name), dict)), content)
    if not isinstance(content, dict) or not content:
        raise ValueError("it holds no state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"its entry {str(name)[:50]!r} is no tensor with a name")
    return content
