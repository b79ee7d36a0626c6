# SPDX-License-Identifier: Apache-2.0
"""The word that was most likely meant, for messages about mistyped names."""

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """The one known word that a mistyped one most likely means; None if none comes near.

    Args:
        word: What was typed.
        known: What could have been.
    """
    lower = {name.lower(): name for name in known}
    begun = [name for name in lower if len(word) > 2 and name.startswith(word.lower())]
    found = begun if len(begun) == 1 else difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else None
