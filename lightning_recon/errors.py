# SPDX-License-Identifier: Apache-2.0
"""Errors the user can fix."""

from lightning_recon.printable import printable

_MOST = 2000  # characters of a message


class UserError(Exception):
    """An error the user can fix; its message says what was wrong, where, and what to do.

    The command line prints it as one line and exits with status 2; library users catch it like any exception.
    """

    def __str__(self) -> str:
        """The message in one printable line, whatever names from outside it quotes."""
        return printable(" ".join(super().__str__().split()), _MOST)
