# SPDX-License-Identifier: Apache-2.0
"""End an interrupted run (Ctrl-C, or SIGTERM from a batch system) with one line and a distinct exit status."""

import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM was received; every caller up to the command line handles it like Ctrl-C."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Terminated


def terminable() -> None:
    """Make SIGTERM raise `Terminated`; this has an effect in the main thread only."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def printable() -> None:
    """Replace characters that the terminal cannot encode, so that printing never ends a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")


@contextmanager
def stoppable() -> Iterator[None]:
    """Exit with one line on Ctrl-C or SIGTERM inside the block; restore the previous signal handlers afterwards.

    Raises:
        SystemExit: With status 130 for Ctrl-C and 143 for SIGTERM.
    """
    printable()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    terminable()
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as stop:
        stopped = interruption(stop)
        if stopped is None:
            raise
        from lightning.fabric.utilities.rank_zero import rank_zero_only  # takes seconds

        if not getattr(rank_zero_only, "rank", 0):
            print(f"recon: {stopped[0]}", file=sys.stderr)
        sys.exit(stopped[1])
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def interruption(error: BaseException) -> tuple[str, int] | None:
    """The message for an interrupted run, and its exit status by the shell's convention.

    Args:
        error: The exception that ended the program; Lightning turns an interruption into `SystemExit`.

    Returns:
        The message and the status, 128 plus the signal's number; None if the run was not interrupted.
    """
    seen = interrupt_in(error)
    if seen is None:
        return None
    number = signal.SIGTERM if isinstance(seen, Terminated) else signal.SIGINT
    return " ".join(getattr(seen, "__notes__", [])) or "stopped", 128 + number


def interrupt_in(error: BaseException) -> KeyboardInterrupt | None:
    """The interruption in the chain of an exception, or None."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen
