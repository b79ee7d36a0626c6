# SPDX-License-Identifier: Apache-2.0
"""Numbers in sentences and display names of attacks."""

import pytest

from lightning_recon.evaluation.formatting import display_name, in_words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "no finite"), (0.0, "0"), (0.333, "0.333"), (8.0, "8"), (970.4, "970"), (5430.0, "5,430"),
        (78900.0, "about 79,000"), (1.252e7, "about 13 million"), (9.96e5, "about 1 million"),
        (1.3e9, "about 1.3 billion"), (1e-5, "1e-05"), (3e20, "3e+20"),
    ],
)  # fmt: skip
def test_numbers_in_sentences(value: float | None, words: str) -> None:
    assert in_words(value) == words


def test_names_are_safe_to_show() -> None:
    assert display_name("digital") == "digital code (ours)"
    assert display_name("x\x1b[31m\n\udcff$y$") == "x\\x1b[31m\\n\\xff$y$"
