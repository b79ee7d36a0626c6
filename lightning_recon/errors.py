# SPDX-License-Identifier: Apache-2.0
"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake the user can mend: says what was wrong, where, and what to do.

    The command line prints it as one line and exits with status 2; library users catch it like any exception.
    """
