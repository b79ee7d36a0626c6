# SPDX-License-Identifier: Apache-2.0
"""Errors the user can fix."""

import re

from lightning_recon.printable import printable

_MOST = 2000  # characters of a message
# An option of the classes that a config builds; the last part of its name is the argument's.
_GROUPS = ("model", "data", "trainer", "comparison", "image_grid", "results", "verify")
_OPTION = re.compile(rf"(?<![\w-])--(?:{'|'.join(_GROUPS)})\.(?:\w+\.)*(?=\w)")


class UserError(Exception):
    """An error the user can fix; its message says what was wrong, where, and what to do.

    The command line prints `for_command_line` as one line and exits with status 2. Library users catch it like any
    exception: to them it names arguments in place of options, `max_grad_norm` for
    `--model.client.privacy.max_grad_norm`.
    """

    def __str__(self) -> str:
        """The message in one printable line, whatever names from outside it quotes."""
        return _OPTION.sub("", self.for_command_line)

    @property
    def for_command_line(self) -> str:
        """The same with the names of options."""
        return printable(" ".join(super().__str__().split()), _MOST)
