# SPDX-License-Identifier: Apache-2.0
"""The argument parser of run commands, and the titles of its groups of options."""

from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

TITLES = {
    "model": "The attack and its clients",
    "data": "The images",
    "image_grid": "Images in TensorBoard",
    "results": "Results",
    "comparison": "Comparison with another attack",
    "trainer": "Lightning's Trainer",
}


class Parser(LightningArgumentParser):
    """Accepts no abbreviated options, so that a mistyped option is never taken for another one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's signature
        """Build the parser.

        Args:
            args: Arguments of Lightning's parser.
            kwargs: Keyword arguments of Lightning's parser.
        """
        super().__init__(*args, **{"allow_abbrev": False, "exit_on_error": False} | kwargs)
