# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all: JSON and safetensors with digests, written atomically, checked on reading.

Reading never executes code and never waits (pipes and devices are no files); whatever a truncated, altered or foreign
file can cause comes out as one line that names it. A digest tells damage and careless edits, not forgery: whoever
writes a file can write its digest.
"""

import hashlib
import json
import logging
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.utils import save_image

from lightning_recon.errors import UserError
from lightning_recon.files.yaml_size import YAML_BYTES, YAML_NODES, expanded
from lightning_recon.printable import cleaned, printable

T = TypeVar("T")

DIGEST: Final = "sha256"  # entry of a JSON record, and of a safetensors header, with the hash of all the rest
JSON_BYTES = 1 << 28  # the longest record that is read; far above that of a run with 65,536 victims

ALTERED: Final = "it was altered: its content does not belong to its sha256 digest"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What a damaged or foreign file can raise, from the file system to the parsers of JSON, YAML and safetensors.
FAULTS = (
    *(OSError, SafetensorError, ValueError, TypeError, LookupError, AttributeError, RuntimeError),
    *(ArithmeticError, EOFError, MemoryError),
)

log = logging.getLogger("lightning_recon")


def sha256(tensor: Tensor) -> str:
    """Hash (hexadecimal) of a tensor's bytes, whatever its device, dtype or strides."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def describe(tensor: Tensor) -> dict[str, Any]:
    """Shape, dtype and hash: what a file says of each tensor that it holds."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"shape": list(tensor.shape), "dtype": dtype, "sha256": sha256(tensor)}


def digest_of(content: Mapping[str, Any]) -> str:
    """Hash (hexadecimal) of a JSON object without its own digest, whatever its layout and the order of its keys."""
    rest = {key: value for key, value in content.items() if key != DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def reason_of(error: Exception) -> str:
    """What an exception says, in one line; of a record that its schema refuses, the first wrong field."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the record"
        found = "" if isinstance(first["input"], dict | list) else f", not {str(first['input'])[:50]!r}"
        return f"{place}: {first['msg'].removeprefix('Value error, ')}{found}"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn every error that a bad file can cause into a one-line `UserError` that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path} is missing: restore the exchange folder of the run") from error
    except FAULTS as error:
        reason = printable(reason_of(error), 500)
        raise UserError(f"{path} or its tensors are damaged ({reason}): restore the files or run again") from error


def check_regular(path: Path) -> None:
    """Refuse anything but a regular file: opening a pipe may block, and reading a device may never end.

    Raises:
        OSError: there is none, or it is a folder, a pipe, a socket or a device.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no plain file")


def read_text(path: Path, most: int = JSON_BYTES) -> str:
    """Content of a plain UTF-8 file of at most `most` bytes.

    Raises:
        OSError: it cannot be read, or is no plain file.
        ValueError: it is longer, or not UTF-8.
    """
    check_regular(path)
    if (size := path.stat().st_size) > most:
        raise ValueError(f"it has {size} bytes, and no more than {most} are read")
    return path.read_text(encoding="utf-8")


def read_yaml(path: Path) -> Any:  # noqa: ANN401 - whatever a config holds
    """What a YAML file holds, as plain values: no tag makes an object, no alias makes it grow without bound.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not YAML, too long, or expands to too many values.
    """
    text = read_text(path, YAML_BYTES)
    try:
        if expanded(yaml.compose(text, Loader=_LOADER)) > YAML_NODES:
            raise ValueError(f"its aliases stand for more than {YAML_NODES} values")
        return yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ValueError(reason_of(error)) from error


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """A JSON object, checked against its digest where it carries one; every text in it made printable.

    Args:
        text: the JSON.
        path: of the file that holds it, for the warning that it carries no digest.

    Raises:
        ValueError: it is no object, holds NaN, or is not what was written.
    """
    content = _object(text)
    if DIGEST not in content:
        _refuse_renamed_digest(content)
        warn_without_digest(path)
    elif content.pop(DIGEST) != digest_of(content):
        raise ValueError(ALTERED)
    return _printable(content)


def _refuse_renamed_digest(content: Mapping[str, Any]) -> None:
    """Refuse an object whose digest has another name, for instance because a bit of the name flipped."""
    suspects = [name for name, value in content.items() if isinstance(value, str) and len(value) == 64]
    for name in suspects[:4]:  # no record has more, and each costs a hash over the object
        if content[name] == digest_of({key: value for key, value in content.items() if key != name}):
            raise ValueError(f"its digest stands under the name {name!r}, not {DIGEST!r}")


def validated(content: Mapping[str, Any], schema: TypeAdapter[T]) -> T:
    """What a record says, once its schema has accepted it: strictly, so that "yes" is no bool and 24.7 no size.

    Raises:
        ValueError: a field is missing, unknown, of another type or out of bounds; see `reason_of`.
    """
    return schema.validate_json(json.dumps(content, allow_nan=False))


def read_json(path: Path, schema: TypeAdapter[T], form: str | None = None) -> T:
    """The record in a JSON file.

    Args:
        path: the file.
        schema: what it must look like, without "format" and digest.
        form: what its "format" must be; None if it has none.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what was written, or the schema refuses it; see `readable`.
    """
    content = parse_json(read_text(path), path)
    if form is not None and content.pop("format", None) != form:
        raise ValueError(f"not of the format {form!r}")
    return validated(content, schema)


def read_tensors(folder: Path, name: str, table: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The named tensors of `NAME.safetensors`, each checked against its recorded shape, dtype and hash."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no file name")
    path, tensors = folder / f"{name}.safetensors", {}
    if not path.exists():
        raise FileNotFoundError(2, "missing", str(path))
    check_regular(path)
    with safe_open(path, framework="pt") as file:
        for key, entry in table.items():
            tensors[key] = file.get_tensor(key)
            if describe(tensors[key]) != entry:
                raise ValueError(f"{key} in {path.name} is not what was recorded")
    return tensors


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and the texts in its header.

    Raises:
        OSError: it cannot be read.
        SafetensorError: it is no safetensors file.
    """
    check_regular(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return tensors, dict(file.metadata() or {})


def read_sealed(path: Path, entry: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a file that `write_sealed` wrote, and its record, checked against their digest.

    Raises:
        OSError: it cannot be read.
        SafetensorError: it is no safetensors file.
        ValueError: it is not what was written.
    """
    tensors, header = read_safetensors(path)
    record = _object(header.get(entry, "{}"))
    if DIGEST not in record:
        warn_without_digest(path)
    elif record.pop(DIGEST) != _seal(tensors, record):
        raise ValueError(ALTERED)
    return tensors, _printable(record)


def read_header(path: Path, entry: str) -> dict[str, Any]:
    """The record of such a file alone; not checked against its digest, which is over the tensors too."""
    check_regular(path)
    with safe_open(path, framework="pt") as file:
        record = _object((file.metadata() or {}).get(entry, "{}"))
    record.pop(DIGEST, None)
    return _printable(record)


def warn_without_digest(path: Path) -> None:
    """Say, once in a process, that a file is read which nothing protects from damage."""
    if not _warned:
        _warned.append(path)
        log.warning(
            "%s carries no digest, so damage to it may go unnoticed: it was written by version 0.1.0 or earlier, or by "
            "another program",
            printable(str(path)),
        )


_warned: list[Path] = []


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON and its digest atomically; NaN and infinity are refused."""
    text = json.dumps({**content, DIGEST: digest_of(content)}, indent=1, allow_nan=False) + "\n"
    write_text(path, text)


def finite(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same record with null in place of NaN and infinity, which JSON does not have; tuples become lists."""
    return {key: _finite(value) for key, value in content.items()}


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return finite(value)
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write `NAME.safetensors` atomically, where their hashes are kept in JSON beside it; no tensors, no file."""
    if tensors:
        _write_safetensors(folder / f"{name}.safetensors", tensors, None)


def write_sealed(path: Path, tensors: Mapping[str, Tensor], entry: str, record: Mapping[str, Any]) -> None:
    """Write a safetensors file atomically, with a record in its header and, in that, a digest of everything.

    Args:
        path: the file.
        tensors: by name.
        entry: name of the header's entry that is to hold the record. The digest is no entry of its own, for entries
            come in no fixed order, and equal contents are to give equal files.
        record: as for `write_json`.
    """
    text = json.dumps({**record, DIGEST: _seal(tensors, record)}, allow_nan=False)
    _write_safetensors(path, tensors, {entry: text})


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_picture(path: Path, picture: Tensor) -> None:
    """Write an image (3, H, W) with values in [0, 1] as PNG, atomically."""
    write(path, lambda partial: save_image(picture, partial, format="png"))


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Write a file beside the target and rename it: it is there whole or not at all, with the mode of any new file.

    Args:
        path: the target; its folder is made where it is missing.
        fill: writes the file that it is given.

    Raises:
        UserError: the folder cannot be written, or is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        # As the umask has it: some writers replace the file by a private one.
        mode = stat.S_IMODE(partial.stat().st_mode)
        fill(partial)
        partial.chmod(mode)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path} ({error}): choose a folder with free space that you may write") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _write_safetensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None) -> None:
    own: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        shared = any(flat.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for t in own.values())
        own[key] = flat.clone() if shared else flat  # safetensors refuses tensors that share memory
    write(path, lambda partial: save_file(own, partial, metadata=header))


def _seal(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> str:
    return digest_of({"tensors": {name: describe(tensor) for name, tensor in tensors.items()}, "record": dict(record)})


def _object(text: str) -> dict[str, Any]:
    content = json.loads(text, parse_constant=_refuse_constant)
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def _printable(content: dict[str, Any]) -> dict[str, Any]:
    found: Any = cleaned(content)
    return dict(found)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")
