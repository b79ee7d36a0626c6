# SPDX-License-Identifier: Apache-2.0
"""A pretend accelerator: tensors that say that they are on "cuda" or "mps" and hold their numbers in host memory.

On a machine without a GPU, PyTorch's FakeTensorMode propagates shapes on "cuda", but not gradients: the autograd engine
asks the driver for the device's context, and PyTorch 2.14 raises or aborts. So these tensors belong to the device
"meta" as far as PyTorch's C++ code knows, which needs no driver, and every operation computes real numbers on the CPU.
Python code sees the pretended device, in `Tensor.device` and in every argument called `device`. Because the numbers are
real, code whose path depends on them runs too, and its results can be compared with those of the CPU.

Every operation is checked as the real device would check it, see `_check`, and what makes the host wait is recorded.
"""

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import lightning_recon

# ruff: noqa: ANN401 - the arguments of PyTorch's hooks have no type of their own

_STAND_IN = torch.device("meta")
_aten = torch.ops.aten
# Operations that read numbers on the device to know the shape of their result.
_WAITS = {
    _aten.nonzero, _aten.masked_select, _aten.bincount, _aten.unique_dim, _aten.unique_consecutive, _aten._unique,
    _aten._unique2, _aten.unique_dim_consecutive, _aten._linalg_check_errors,
}  # fmt: skip
_COPIES = {_aten._to_copy, _aten.copy_, _aten._copy_from}
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_, _aten._unsafe_index}
# Beside element-wise operations these take a number of the CPU together with tensors of the device.
_TAKE_NUMBERS = {_aten.fill_, _aten.masked_fill, _aten.masked_fill_, *_INDEXING}
_DOUBLE = (torch.float64, torch.complex128)
_FACTORY_OF_VALUES = (torch.tensor, torch.as_tensor, torch.asarray)
_DEVICE_OF = Tensor.device.__get__  # type: ignore[attr-defined]
_OURS = (str(Path(lightning_recon.__file__).parent), str(Path(__file__).parent / "test_"))


class MixedDevices(AssertionError):
    """An operation that a real device refuses."""


@dataclass
class Log:
    """What made the host wait for the device, and what was copied to it: a line of the package's code for each."""

    waits: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Forget everything so far."""
        self.waits.clear()
        self.uploads.clear()


class Pretended(Tensor):
    """A tensor on the pretend device, whose numbers are in `held`."""

    held: Tensor

    @staticmethod
    def __new__(cls: type["Pretended"], held: Tensor) -> "Pretended":
        """Wrap numbers."""
        made: Pretended = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=_STAND_IN,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse what happens outside of the mode."""
        raise MixedDevices(f"{func} on a tensor of the pretend device outside of `pretend_device`")


class _Operations(TorchDispatchMode):
    """Computes and checks every operation."""

    def __init__(self, kind: str, log: Log) -> None:
        super().__init__()
        self.kind, self.log = kind, log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [one for one in inputs if isinstance(one, Pretended)]
        device = kwargs.get("device")
        target = bool(there) if device is None else torch.device(device).type == _STAND_IN.type
        if not there and not target:
            return func(*args, **kwargs)
        packet = func.overloadpacket
        if packet in _COPIES:
            onto = isinstance(args[0], Pretended) if packet is _aten.copy_ else target
            source = args[1] if packet is _aten.copy_ else args[0]
            if onto != isinstance(source, Pretended):
                (self.log.uploads if onto else self.log.waits).append(_place(func))
            target = onto
        else:
            self._check(func, packet, args, kwargs, inputs, there)
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        wrappers = {id(one.held): one for one in there}
        held_args, held_kwargs = tree_map(_held, (args, kwargs))
        found = func(*held_args, **held_kwargs)
        if torch.Tag.inplace_view in func.tags:  # the wrapper's own shape changes too
            with no_dispatch():
                func(*args, **kwargs)
            return args[0]
        if there and isinstance(found, (bool, int, float, complex)):  # `item` and whatever else answers with a number
            self.log.waits.append(_place(func))

        def wrapped(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in wrappers:  # an in-place operation returns its argument
                return wrappers[id(value)]
            if not target:
                return value
            if self.kind == "mps" and value.dtype in _DOUBLE:
                raise MixedDevices(f"{func} makes {value.dtype}, which does not exist on mps: {_place(func)}")
            return Pretended(value.resolve_conj().resolve_neg())

        if packet is _aten.copy_:
            return args[0]
        return tree_map(wrapped, found)

    def _check(
        self, func: Any, packet: Any, args: Any, kwargs: Any, inputs: list[Tensor], there: list["Pretended"]
    ) -> None:
        """Refuse tensors of both devices, as the device does, and record what the host waits for.

        Tensors of the CPU may take part if they are a single number of an element-wise operation, or indices, which
        are then copied to the device.
        """
        if not there:
            generator = kwargs.get("generator")
            if generator is not None and generator.device.type == "cpu":
                raise MixedDevices(f"{func} on the device with a generator of the CPU: {_place(func)}")
            return
        indices: list[Any] = list(args[1]) if packet in _INDEXING else []
        here = [one for one in inputs if not isinstance(one, Pretended) and not any(one is index for index in indices)]
        numbers = torch.Tag.pointwise in func.tags or packet in _TAKE_NUMBERS
        for one in here:
            if one.dim() or not numbers or one is args[0]:
                raise MixedDevices(
                    f"{func} takes tensors of the device and a tensor of the CPU of shape {tuple(one.shape)}: "
                    f"{_place(func)}"
                )
        for index in indices:
            if index is None:
                continue
            if not isinstance(args[0], Pretended):
                raise MixedDevices(f"{func} looks up a tensor of the CPU at places on the device: {_place(func)}")
            if not isinstance(index, Pretended):
                self.log.uploads.append(_place(func))
            fills = packet is not _aten.index and len(indices) == 1 and args[2].numel() == 1
            if index.dtype in (torch.bool, torch.uint8) and not fills:
                self.log.waits.append(_place(func))
        if packet in _WAITS or (packet is _aten.repeat_interleave and kwargs.get("output_size") is None):
            self.log.waits.append(_place(func))


class _Names(TorchFunctionMode):
    """Translates the pretended device in Python's calls, both ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _DEVICE_OF:
            device = func(*args)
            return torch.device(self.kind, 0) if device.type == _STAND_IN.type else device
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func in _FACTORY_OF_VALUES and device is not None and self._is_pretended(device):
            del kwargs["device"]
            return func(*args, **kwargs).to(_STAND_IN)
        if device is not None and self._is_pretended(device):
            kwargs["device"] = _STAND_IN
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], _as_indices(args[1]), *args[2:])
        elif func is Tensor.new_tensor:
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype} | kwargs).to(args[0].device)
        elif func is Tensor.to:
            args = tuple(_STAND_IN if self._is_pretended(one) else one for one in args)
        elif func is Tensor.tolist:  # which PyTorch does not support for subclasses
            return args[0].cpu().tolist()
        elif func in (Tensor.cuda, Tensor.pin_memory):
            raise MixedDevices(f"{func} works on one kind of device only: {_place(func)}")
        return func(*args, **kwargs)

    def _is_pretended(self, device: Any) -> bool:
        if isinstance(device, str):
            return device.partition(":")[0] == self.kind
        return isinstance(device, torch.device) and device.type == self.kind


@contextmanager
def pretend_device(kind: str = "cuda") -> Iterator[tuple[torch.device, Log]]:
    """Within it the device exists.

    Args:
        kind: "cuda", or "mps", which has no float64.

    Yields:
        The device, and the record of what the host waited for.
    """
    log = Log()
    with ExitStack() as stack:
        if kind == "cuda":  # whose own random state is saved and restored around dropout
            stack.enter_context(mock.patch("torch.cuda.get_rng_state"))
            stack.enter_context(mock.patch("torch.cuda.set_rng_state"))
        stack.enter_context(_Operations(kind, log))
        stack.enter_context(_Names(kind))
        yield torch.device(kind, 0), log


def numbers_of(value: Any) -> Any:
    """The same with all tensors of the pretend device replaced by what they hold, without a copy to the host."""
    return tree_map(_held, value)


def waits_of(step: Callable[[], Any], log: Log) -> list[str]:
    """What the host waits for while a function runs."""
    before = len(log.waits)
    step()
    return log.waits[before:]


def _as_indices(place: Any) -> Any:
    """Lists of numbers as tensors: on "meta" PyTorch would make tensors of them without values."""
    if isinstance(place, tuple):
        return tuple(_as_indices(one) for one in place)
    return torch.tensor(place) if isinstance(place, list) and all(type(one) in (int, bool) for one in place) else place


def _held(value: Any) -> Any:
    if not isinstance(value, Pretended):
        return value
    held = value.held
    # Conjugation and negation are marks that PyTorch puts on the wrapper alone.
    held = held.conj() if value.is_conj() else held
    return torch._neg_view(held) if value.is_neg() else held


def _place(func: Any) -> str:
    """The operation, and the innermost line of the package or of a test that asked for it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_OURS):
            line = linecache.getline(name, frame.f_lineno).strip()
            return f"{Path(name).name}:{frame.f_lineno}: {line} ({func})"
        frame = frame.f_back
    return str(func)
