# SPDX-License-Identifier: Apache-2.0
"""Console output through rich's global console, without markup in names and without breaking a progress bar.

Names that users chose (folders, attacks, files) are printed literally: square brackets are not markup, and control
characters are escaped.
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

# Seconds between progress lines where there is no terminal.
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
    r"""The text with control characters escaped, so that a file name cannot move the cursor or change colours.

    Args:
        text: Anything; new lines stay.
    """
    return "\n".join(printable(line, max(len(line), 1)) for line in text.split("\n"))


def say(text: str) -> None:
    """Print text literally, without wrapping lines; an active progress bar stays below it.

    Args:
        text: Without markup.
    """
    rich.get_console().print(plain(text), markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning, also under --quiet, above an active progress bar.

    Args:
        text: Without markup.
    """
    if is_quiet():
        print(plain(text), file=sys.stderr)
    else:
        say(text)


def sign_of_life(text: str) -> None:
    """Print a line immediately if stderr is a terminal, from the first local process only.

    Args:
        text: Description of the slow operation.
    """
    if sys.stderr.isatty() and not is_quiet() and os.environ.get("LOCAL_RANK", "0") == "0":
        print(plain(text), file=sys.stderr, flush=True)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress within a run: a transient bar on a terminal, otherwise a line every `SECONDS`.

    Args:
        what: What is counted.
        total: How many there are; a single one is counted without a bar.

    Yields:
        A function to call with the number of items done.
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
    """Writes to the current `sys.stderr`, which rich redirects above an active bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr  # type: ignore[assignment]
        super().emit(record)


def log_above_bars() -> None:
    """Route Lightning's log lines through rich, like all others."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logger = logging.getLogger(name)
        for handler in [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]:
            logger.removeHandler(handler)
            logger.addHandler(_Standard())
