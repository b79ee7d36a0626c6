# SPDX-License-Identifier: Apache-2.0
"""What the program prints: rich's one console, names as they are, and nothing that tears a progress bar.

Everything that users named (folders, attacks, files) is printed as it is: square brackets in it are no markup, and
control characters are shown, not sent to the terminal.
"""

import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_recon.printable import printable

# Seconds between the lines of a log.
SECONDS = 30.0


def configure(quiet: bool = False) -> None:
    """Prepare the terminal for one command.

    Args:
        quiet: Whether to print errors and warnings only.
    """
    rich.reconfigure(quiet=quiet)
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe that cannot show a character (PYTHONIOENCODING=ascii) gets its escape, not a traceback.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def is_quiet() -> bool:
    """Whether the command prints errors and warnings only."""
    return rich.get_console().quiet


def plain(text: str) -> str:
    r"""The text with control characters as their escapes: a file name cannot move the cursor or change colours.

    Args:
        text: Anything; new lines stay.
    """
    return "\n".join(printable(line, max(len(line), 1)) for line in text.split("\n"))


def say(text: str) -> None:
    """Print text as it is, on lines as long as it needs; a progress bar that is up stays below it.

    Args:
        text: Without markup.
    """
    rich.get_console().print(plain(text), markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print what even a quiet command says, above a progress bar if one is up.

    Args:
        text: Without markup.
    """
    if is_quiet():
        print(plain(text), file=sys.stderr)
    else:
        say(text)


def sign_of_life(text: str) -> None:
    """Print a line at once where a person watches: on a terminal, and by one process of several.

    Args:
        text: What takes a while.
    """
    if sys.stderr.isatty() and not is_quiet() and os.environ.get("LOCAL_RANK", "0") == "0":
        print(plain(text), file=sys.stderr, flush=True)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how far work inside a run is: a bar that is gone afterwards; without a terminal a line now and then.

    Args:
        what: What is counted.
        total: How many there are; a single one is not worth a bar.

    Yields:
        To be called with how many are done.
    """
    console = rich.get_console()
    if is_quiet() or total < 2:
        yield lambda count: None
    elif console.is_terminal:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, transient=True, console=console) as bar:
            task = bar.add_task("", total=total)
            yield lambda count: bar.update(task, completed=count)
    else:
        last = time.monotonic()

        def line(count: int) -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS:
                last = time.monotonic()
                say(f"{what}: {count} of {total}")

        yield line


class _Standard(logging.StreamHandler[io.TextIOBase]):
    """Writes to what `sys.stderr` is at that moment: above the bar while one is up."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr  # type: ignore[assignment]
        super().emit(record)


def log_above_bars() -> None:
    """Let Lightning's own log lines pass through rich, as those of everyone else do."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logger = logging.getLogger(name)
        for handler in [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]:
            logger.removeHandler(handler)
            logger.addHandler(_Standard())
