# SPDX-License-Identifier: Apache-2.0
"""SHA-256 digests of tensors and records.

A digest reveals damage and careless edits, not forgery: anyone who writes a file can write its digest.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightning_recon.printable import printable

DIGEST: Final = "sha256"  # entry of a JSON record, and of a safetensors header, with the hash of all the rest
ALTERED: Final = "it was altered: its content does not belong to its sha256 digest"

log = logging.getLogger("lightning_recon")
_warned: list[Path] = []


def sha256(tensor: Tensor) -> str:
    """Hash (hexadecimal) of a tensor's bytes, whatever its device, dtype or strides."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def describe(tensor: Tensor) -> dict[str, Any]:
    """Shape, dtype and hash of a tensor, which its file records."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"shape": list(tensor.shape), "dtype": dtype, "sha256": sha256(tensor)}


def digest_of(content: Mapping[str, Any]) -> str:
    """Hash (hexadecimal) of a JSON object without its own digest, whatever its layout and the order of its keys."""
    rest = {key: value for key, value in content.items() if key != DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_renamed_digest(content: Mapping[str, Any]) -> None:
    """Refuse an object whose digest has another name, for instance because a bit of the name flipped."""
    suspects = [name for name, value in content.items() if isinstance(value, str) and len(value) == 64]
    for name in suspects[:4]:  # no record has more, and each costs a hash over the object
        if content[name] == digest_of({key: value for key, value in content.items() if key != name}):
            raise ValueError(f"its digest has the name {name!r}, not {DIGEST!r}")


def warn_without_digest(path: Path) -> None:
    """Warn, once in a process, that a file without a digest is read."""
    if not _warned:
        _warned.append(path)
        log.warning(
            "%s carries no digest, so damage to it may go unnoticed: it was written by version 0.1.0 or earlier, or by "
            "another program",
            printable(str(path)),
        )
