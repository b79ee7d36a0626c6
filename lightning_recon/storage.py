# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all: JSON and safetensors with hashes, written atomically.

Reading never executes code, and whatever a truncated or altered file can cause comes out as one line that names it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.utils import save_image

from lightning_recon.errors import UserError


def sha256(tensor: Tensor) -> str:
    """Hash (hexadecimal) of a tensor's bytes, whatever its device, dtype or strides."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def describe(tensor: Tensor) -> dict[str, Any]:
    """Shape, dtype and hash: what a file says of each tensor that it holds."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"shape": list(tensor.shape), "dtype": dtype, "sha256": sha256(tensor)}


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever a bad file can cause into one line that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path} is missing: restore the exchange folder of the run") from error
    except (OSError, SafetensorError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} or its tensors are damaged ({reason}): restore the files or run again") from error


def read_json(path: Path, form: str) -> dict[str, Any]:
    """The object in a JSON file, less its "format", which must be `form`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.pop("format") != form:
        raise ValueError(f"not of the format {form!r}")
    return dict(content)


def read_tensors(folder: Path, name: str, table: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The named tensors of `NAME.safetensors`, each checked against its recorded shape, dtype and hash."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no file name")
    path, tensors = folder / f"{name}.safetensors", {}
    if not path.is_file():
        raise FileNotFoundError(2, "missing", str(path))
    with safe_open(path, framework="pt") as file:
        for key, entry in table.items():
            tensors[key] = file.get_tensor(key)
            if describe(tensors[key]) != entry:
                raise ValueError(f"{key} in {path.name} is not what was recorded")
    return tensors


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically; NaN and infinity are refused."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_tensors(
    folder: Path, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `NAME.safetensors` atomically, with text of one's own in its header; no tensors, no file."""
    own: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        shared = any(flat.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for t in own.values())
        own[key] = flat.clone() if shared else flat  # safetensors refuses tensors that share memory
    if own:
        header = None if metadata is None else dict(metadata)
        write_whole(folder / f"{name}.safetensors", lambda partial: save_file(own, partial, metadata=header))


def write_picture(path: Path, picture: Tensor) -> None:
    """Write a picture, shape (3, H, W), values in [0, 1], atomically; the ending of the name says in which format."""
    write_whole(path, lambda partial: save_image(picture, partial))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the target and rename: a file is there whole or not at all.

    Args:
        path: File to write; its folder is made where it is missing.
        write: Writes to the path that it is given, which has the same ending.

    Raises:
        UserError: The folder or the disk does not take it; what was there before stays.
    """
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path} ({error}): choose a folder with free space that you may write") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
