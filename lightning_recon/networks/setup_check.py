# SPDX-License-Identifier: Apache-2.0
"""Check by one forward pass, before anything else is computed, whether a network can be trained on the given images."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from lightning_recon.errors import UserError
from lightning_recon.networks.batch_norm import BatchNorm
from lightning_recon.plural import counted

Build = Callable[[tuple[int, int]], nn.Module]

_SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 299)  # sides that are tried where a network cannot take the images'
# The fault of batch normalization that `explained_batch_norm` names, for whoever tells it from others.
SINGLE_NUMBER = "a batch normalization layer has a single number to normalize by its batch"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Wanted:
    """What a network is to return, and for how many images; see `fit_to_images`."""

    num_classes: int
    count: int
    seed: int
    maps: bool | None


class _Unfit(Exception):
    """The network cannot be used, whatever the size of the images."""


def fit_to_images(
    network: nn.Module,
    rebuild: Build | None,
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    count: int = 2,
    seed: int = 0,
    maps: bool | None = False,
) -> nn.Module:
    """The network, or one that is built for the images' size if this one is not.

    Args:
        network: maps images to logits or other outputs; layers that learn their shape from the first images do so now.
        rebuild: builds the same network for images of a height and width, or raises `UserError`; None: there is no
            other.
        name: of the network, for messages.
        image_shape: of an image: channels, height, width.
        num_classes: number of logits, values or channels that are expected.
        count: how many images go through it at a time, at least 1; two show more than one.
        seed: of the weights of layers that learn their shape now.
        maps: whether it has to return them for each pixel of the images; None: either will do.

    Raises:
        UserError: it cannot be trained on such images; what is wrong, and what size it takes.
    """
    wanted = _Wanted(num_classes, count, seed, maps)
    try:
        try:
            _forward(network, image_shape, wanted)
            return network
        except _Unfit:
            raise
        except Exception as error:  # a network of the user's may raise anything
            reason = _line(error)
        height, width = image_shape[1:]
        if rebuild is not None and (sized := _rebuilt(rebuild, image_shape, wanted)) is not None:
            log.warning("Built the network %s for images of %d x %d.", name, height, width)
            return sized
        advice = _advice(network, rebuild, image_shape[0], wanted)
    except _Unfit as error:
        raise UserError(f"network {name!r} {error}") from error
    raise UserError(f"network {name!r} cannot take images of {height} x {width} ({reason}); {advice}")


def _rebuilt(rebuild: Build, image_shape: tuple[int, int, int], wanted: _Wanted) -> nn.Module | None:
    try:
        sized = rebuild((image_shape[1], image_shape[2]))
        _forward(sized, image_shape, wanted)
    except Exception:  # then it is no help, and the first reason is the better one
        return None
    return sized


def _advice(network: nn.Module, rebuild: Build | None, channels: int, wanted: _Wanted) -> str:
    """A remedy for a network that raises: another size, if one works."""
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is not None and first.in_channels != channels:
        return (
            f"its first convolution takes {counted(first.in_channels, 'channel')} and images have {channels}: set "
            f"--data.channels {first.in_channels}, or let it convert them itself"
        )
    for side in _SIZES:
        try:
            _forward(network, (channels, side, side), wanted)
        except _Unfit:
            raise
        except Exception:  # a network of the user's may raise anything
            if rebuild is None or _rebuilt(rebuild, (channels, side, side), wanted) is None:
                continue
        return f"of {', '.join(map(str, _SIZES))} the smallest that it takes is {side}: set --data.image_size {side}"
    return f"nor of any size up to {_SIZES[-1]} that was tried: choose another network, or fix its forward pass"


@contextmanager
def explained_batch_norm() -> Iterator[None]:
    """Turn PyTorch's error about batch normalisation over a single value per channel into one that names a remedy.

    Raises:
        UserError: A layer in training mode has one value per channel, so that its variance is undefined.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"{SINGLE_NUMBER}: set --model.client.batch_norm eval, more images a step, or larger ones"
        ) from error


def _forward(network: nn.Module, image_shape: tuple[int, int, int], wanted: _Wanted) -> None:
    """One pass in training mode that leaves modes, buffers and random state alone; raises if it shows a fault."""
    modes = {module: module.training for module in network.modules()}
    device = next((one.device for one in network.parameters()), torch.device("cpu"))
    if device.type == "meta":
        raise _Unfit("is on the device meta, without values: build it on the CPU")
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        torch.manual_seed(wanted.seed)
        # An image of random pixels, since layers that normalise a flat one divide by zero.
        images = torch.rand(wanted.count, *image_shape).to(device)
        try:
            network.train()
            for module in network.modules():
                if isinstance(module, BatchNorm):
                    module.eval()
            if any(is_lazy(one) for one in (*network.parameters(), *network.buffers())):
                with torch.no_grad():
                    network(images)
            parameters = _parameters(network)
            buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
            with torch.enable_grad():
                output = functional_call(network, (parameters, buffers), (images,))
        finally:
            for module, training in modes.items():
                module.training = training
    _check_output(output, wanted, (image_shape[1], image_shape[2]))


def _parameters(network: nn.Module) -> dict[str, Tensor]:
    """The parameters as leaves that can be differentiated."""
    found = {}
    for name, parameter in network.named_parameters():
        if is_lazy(parameter):
            raise _Unfit(f"does not use its parameter {name}, whose shape stays unknown: take it out")
        if not parameter.is_floating_point():
            kind = str(parameter.dtype).removeprefix("torch.")
            raise _Unfit(f"holds {kind} numbers in {name}, and clients send gradients of real ones: make it a buffer")
        found[name] = parameter.detach().requires_grad_()
    if not found:
        raise _Unfit("has no parameters, so a client has no gradient to send: choose another")
    return found


def _check_output(output: object, wanted: _Wanted, size: tuple[int, int]) -> None:
    if not isinstance(output, Tensor):
        raise _Unfit(
            f"returns a {type(output).__name__}, which may hold more than logits: let it return them "
            "alone, or under the name logits or out"
        )
    shape, vector = tuple(output.shape), (wanted.count, wanted.num_classes)
    kind, possible = ("logits for an image", (2,)) if wanted.maps is False else ("outputs", (2, 4))
    if shape[:1] == vector[:1] and len(shape) in possible and shape[1] != wanted.num_classes:
        raise _Unfit(
            f"returns {shape[1]} {kind}, and there are {wanted.num_classes} classes: let it make as many as "
            f"num_classes says, or set --model.client.num_classes {shape[1]}"
        )
    whole = (*vector, *size)
    if shape not in [found for found, maps in ((vector, False), (whole, True)) if wanted.maps in (None, maps)]:
        raise _Unfit(f"returns the shape {shape} for {wanted.count} images: it must be {_remedy(shape, vector, whole)}")
    if not output.is_floating_point():
        raise _Unfit(f"returns numbers of type {str(output.dtype).removeprefix('torch.')}, and logits are real numbers")
    if not bool(output.isfinite().all()):
        raise _Unfit("returns NaN or infinity for random images: check its weights")
    if not output.requires_grad:
        raise _Unfit("returns logits without a gradient, so a client has none to send: take no_grad and detach out")


def _remedy(shape: tuple[int, ...], vector: tuple[int, ...], whole: tuple[int, ...]) -> str:
    """The shape that an output should have, and how it comes about.

    Args:
        shape: what it has.
        vector: the shape of outputs for an image.
        whole: the shape of outputs for every pixel.
    """
    if shape == vector:
        return f"{whole}, since targets are of every pixel: choose a network for segmentation, or other --data.targets"
    if shape == whole:
        return f"{vector}, since targets are of whole images: set --data.targets masks, or choose another network"
    return f"{vector}, logits"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
