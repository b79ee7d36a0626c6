# SPDX-License-Identifier: Apache-2.0
"""Numbers of things in words."""


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 image", "2 images".

    Args:
        count: of the things.
        noun: one of them.
        plural: several of them; by default the noun with an s.
    """
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"
