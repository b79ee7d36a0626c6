# SPDX-License-Identifier: Apache-2.0
"""File locks of the operating system, which are released when the process that holds them ends or is killed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from lightning_recon.errors import UserError


def take(path: Path, wait: bool = False) -> BaseFileLock | None:
    """Take a lock.

    Args:
        path: File of the lock, in a folder that exists; it stays there once the lock is released.
        wait: Whether to wait for another process that holds it.

    Returns:
        The lock, to be released by `release()`; None if another process holds it.

    Raises:
        UserError: The file cannot be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        return None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path} ({reason}): make room, or choose a folder that you may write") from None
    return lock


@contextmanager
def claimed(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock for the length of a `with` block.

    Args:
        path: File of the lock, in a folder that exists.
        wait: Whether to wait for another process that holds it.

    Yields:
        Whether the lock is held: False if another process holds it, which cannot happen with `wait`.

    Raises:
        UserError: The file cannot be written.
    """
    lock = take(path, wait)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()
