# SPDX-License-Identifier: Apache-2.0
"""Make external text (file names, names in headers and records) safe for a terminal, a plot, a report and JSON."""

import unicodedata

MOST = 1000  # characters; what is longer is cut in its middle
_JOINERS = "\u200c\u200d"  # needed by Persian and Indic words and by emoji


def printable(text: str, most: int = MOST) -> str:
    r"""The text in one line, without cursor movement, bidirectional controls or unassigned characters.

    Args:
        text: anything, for instance a file name that is not UTF-8, as `os.fsdecode` gives it.
        most: length of the result, in characters.

    Returns:
        Letters, marks, digits, punctuation and spaces as they are; control characters, bidirectional controls and
        the like as Python writes them (`\n`, `\u202e`), bytes that are not UTF-8 as `\xff`. Printable text is returned
        unchanged, so that doing it twice changes nothing.
    """
    if len(text) > most:
        half = (most - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(character if _shown(character) else _escaped(character) for character in text)


def cleaned(value: object) -> object:
    """A value read from JSON in which every string and every key is printable; no string is shortened.

    Args:
        value: of dicts, lists, texts, numbers and None.
    """
    if isinstance(value, str):
        return printable(value, max(MOST, 2 * len(value)))
    if isinstance(value, dict):
        return {cleaned(key): cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return value


def _shown(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is not UTF-8, see PEP 383
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
