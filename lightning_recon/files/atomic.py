# SPDX-License-Identifier: Apache-2.0
"""Atomic writing: a file is there whole or not at all."""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from lightning_recon.errors import UserError


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


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
