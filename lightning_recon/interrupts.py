# SPDX-License-Identifier: Apache-2.0
"""A run that is stopped, by Ctrl-C or by SIGTERM as batch systems send it, ends in one line and its own exit status."""

import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM has arrived: handled like Ctrl-C by everything between here and the command line."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Terminated


def terminable() -> None:
    """Let SIGTERM raise `Terminated` from now on; only the main thread can."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def printable() -> None:
    """Let a terminal that cannot show a character show another: no run may end for that."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")


@contextmanager
def stoppable() -> Iterator[None]:
    """Stop in one line on Ctrl-C or SIGTERM inside the block, and restore what the two did before.

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
    """What to say of a run that was stopped, and its exit status by the shell's convention.

    Args:
        error: What ended the program; Lightning turns an interruption into `SystemExit`.

    Returns:
        The line and the status, 128 plus the signal's number; None if nobody stopped it.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    if seen is None:
        return None
    number = signal.SIGTERM if isinstance(seen, Terminated) else signal.SIGINT
    return " ".join(getattr(seen, "__notes__", [])) or "stopped", 128 + number
