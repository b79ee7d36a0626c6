# SPDX-License-Identifier: Apache-2.0
"""Errors the user can fix."""

import re
from collections import Counter

from lightning_recon.printable import printable

_MOST = 2000  # characters of a message
# An option of the classes that a config builds, outside quoted text and paths.
_GROUPS = ("model", "data", "trainer", "comparison", "image_grid", "results", "verify")
_OPTION = re.compile(rf"(?<![\w'\"/-])--((?:{'|'.join(_GROUPS)})(?:\.\w+)+)(?![\w/])")
# An argument of this one goes by both names, since the class around it has arguments of the same names.
_NESTED = "opening"


class UserError(Exception):
    """An error the user can fix; its message says what was wrong, where, and what to do.

    The command line prints `for_command_line` as one line and exits with status 2. Library users catch it like any
    exception: to them it names arguments in place of options, `max_grad_norm` for
    `--model.client.privacy.max_grad_norm`, and `data.batch_size` where a message names another `batch_size` too.
    """

    def __str__(self) -> str:
        """The message in one printable line, whatever names from outside it quotes."""
        text = self.for_command_line
        options = {found.group(1) for found in _OPTION.finditer(text)}
        uses = Counter(option.rpartition(".")[2] for option in options)

        def argument(found: re.Match[str]) -> str:
            *_, outer, name = found.group(1).split(".")
            return f"{outer}.{name}" if uses[name] > 1 or outer == _NESTED else name

        return _OPTION.sub(argument, text)

    @property
    def for_command_line(self) -> str:
        """The same with the names of options."""
        return printable(" ".join(super().__str__().split()), _MOST)
