# SPDX-License-Identifier: Apache-2.0
"""Damaged and foreign files: every exception that one can cause becomes one line that names the file."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError

from lightning_recon.errors import UserError
from lightning_recon.printable import printable

# Exceptions that a damaged or foreign file can raise in the file system and in the parsers of JSON, YAML, safetensors.
FAULTS = (
    *(OSError, SafetensorError, ValueError, TypeError, LookupError, AttributeError, RuntimeError),
    *(ArithmeticError, EOFError, MemoryError),
)


def reason_of(error: Exception) -> str:
    """The message of an exception in one line; for a record that its schema refuses, the first wrong field."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the record"
        found = "" if isinstance(first["input"], dict | list) else f", not {str(first['input'])[:50]!r}"
        return f"{place}: {first['msg'].removeprefix('Value error, ')}{found}"
    text, kind = " ".join(str(error).split()), type(error).__name__
    bare = isinstance(error, KeyError) or not any(map(str.isalpha, text))  # a key or a number alone says nothing
    return (f"{kind}: {text}" if text else kind) if bare else text


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
