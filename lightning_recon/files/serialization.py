# SPDX-License-Identifier: Apache-2.0
"""JSON, YAML and safetensors: records with digests, checked on reading against a schema.

Reading never executes code and never blocks (pipes and devices are refused). Exceptions of a damaged or foreign file
become one line through `faults.readable`.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_recon.files.atomic import write, write_text
from lightning_recon.files.digests import (
    ALTERED,
    DIGEST,
    describe,
    digest_of,
    refuse_renamed_digest,
    warn_without_digest,
)
from lightning_recon.files.faults import check_regular, reason_of
from lightning_recon.files.yaml_size import YAML_BYTES, YAML_NODES, expanded
from lightning_recon.printable import cleaned

T = TypeVar("T")

JSON_BYTES = 1 << 28  # the longest record that is read; far above that of a run with 65,536 victims

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
    """The content of a YAML file as plain values: tags create no objects, and aliases cannot expand without bound.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not YAML, too long, or expands to too many values.
    """
    text = read_text(path, YAML_BYTES)
    try:
        if expanded(yaml.compose(text, Loader=_LOADER)) > YAML_NODES:
            raise ValueError(f"its aliases expand to more than {YAML_NODES} values")
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
        refuse_renamed_digest(content)
        warn_without_digest(path)
    elif content.pop(DIGEST) != digest_of(content):
        raise ValueError(ALTERED)
    return _printable(content)


def validated(content: Mapping[str, Any], schema: TypeAdapter[T]) -> T:
    """A record after strict validation by its schema: "yes" is no bool and 24.7 no size.

    Raises:
        ValueError: a field is missing, unknown, of another type or out of bounds; see `reason_of`.
    """
    return schema.validate_json(json.dumps(content, allow_nan=False))


def read_json(path: Path, schema: TypeAdapter[T], form: str | None = None) -> T:
    """The record in a JSON file.

    Args:
        path: the file.
        schema: its schema, without "format" and digest.
        form: expected value of "format"; None if it has none.

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
