# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are written atomically, with a digest of their content that is checked before resuming."""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from packaging.version import InvalidVersion, Version
from torch import Tensor

from lightning_recon.files.atomic import write
from lightning_recon.files.digests import ALTERED, sha256, warn_without_digest

DIGEST: Final = "lightning_recon_sha256"  # entry of the checkpoint
_OLDEST: Final = Version("2.0")  # of Lightning: earlier ones name their parts differently


class DigestedCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint writer, extended by a digest; files get the default permissions."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write one, atomically.

        Args:
            checkpoint: the content.
            path: the file.
            storage_options: of remote file systems, none of which is used.

        Raises:
            UserError: the folder cannot be written, or is full.
        """
        content = {**checkpoint, DIGEST: content_digest(checkpoint)}
        write(Path(path), lambda partial: torch.save(content, partial))


def content_digest(content: Mapping[str, Any]) -> str:
    """Hash (hexadecimal) of a checkpoint without its own digest: the same before saving and after loading."""
    found = hashlib.sha256()
    for name in sorted(content):
        if name != DIGEST:
            found.update(f"{name}\n".encode())
            _update(found, content[name])
    return found.hexdigest()


def checkpoint_fault(content: Mapping[str, Any], path: Path) -> str:
    """The fault of a checkpoint that was read, in a few words; empty if there is none.

    Args:
        content: what `torch.load` gave.
        path: its file, for the warning that it carries no digest.
    """
    if DIGEST in content:
        return "" if content[DIGEST] == content_digest(content) else ALTERED
    warn_without_digest(path)
    return _misshapen(content)


def restoring(error: Exception) -> bool:
    """Whether an exception was raised while Lightning restored a checkpoint."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.replace("\\", "/").endswith("connectors/checkpoint_connector.py"):
            return trace.tb_frame.f_code.co_name.startswith(("restore", "_restore", "resume"))
        trace = trace.tb_next
    return False


def _misshapen(content: Mapping[str, Any]) -> str:
    """What is wrong with a checkpoint that has no digest."""
    try:
        version = Version(content["pytorch-lightning_version"])
    except (TypeError, InvalidVersion):
        return "it names no version of Lightning"
    if version < _OLDEST:
        return f"it is of Lightning {version}, and those before {_OLDEST} are not read"
    for name, kind in (("state_dict", dict), ("loops", dict), ("optimizer_states", list), ("lr_schedulers", list)):
        if not isinstance(content.get(name), kind):
            return f"its {name} is no {kind.__name__}"
    states, step = content["optimizer_states"], content.get("global_step")
    if not states or not all(isinstance(one, dict) and one.keys() >= {"state", "param_groups"} for one in states):
        return "it holds no states of optimizers"
    if not isinstance(step, int) or step < 0:
        return "its global_step is no number of steps"
    for name, value in content["state_dict"].items():
        if not isinstance(value, Tensor):
            return f"{str(name)[:50]} is no tensor"
        if value.is_floating_point() and bool(value.isnan().any()):
            return f"NaN in {str(name)[:50]}"
    return ""


def _update(found: "hashlib._Hash", value: object) -> None:
    """Add a value to a hash, with a tag for its type."""
    if isinstance(value, Mapping):
        found.update(struct.pack("<cQ", b"d", len(value)))
        for key, item in value.items():
            _update(found, key)
            _update(found, item)
    elif isinstance(value, list | tuple):
        found.update(struct.pack("<cQ", b"l", len(value)))
        for item in value:
            _update(found, item)
    elif isinstance(value, Tensor):
        found.update(f"t{value.dtype}{tuple(value.shape)}{sha256(value)}".encode())
    else:
        text = repr(value).encode(errors="backslashreplace")
        found.update(struct.pack("<cQ", b"v", len(text)) + text)
