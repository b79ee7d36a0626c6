# SPDX-License-Identifier: Apache-2.0
"""Suggestions for mistyped names, for use in error messages."""

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to a mistyped one; None if none is similar.

    Args:
        word: What was typed.
        known: The valid words.
    """
    lower = {name.lower(): name for name in known}
    begun = [name for name in lower if len(word) > 2 and name.startswith(word.lower())]
    found = begun if len(begun) == 1 else difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else None
