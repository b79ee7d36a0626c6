# SPDX-License-Identifier: Apache-2.0
"""Importing Opacus for the accounting changes no program's log lines."""

import subprocess
import sys

_WARNS = """
import logging
{before}
from lightning_recon.privacy.subsampled_accounting import training_epsilon
training_epsilon(1.0, 0.1, 10, 1e-5, "{adjacency}")
logging.getLogger("lightning_recon").warning("as it was")
"""


def warned(adjacency: str, before: str = "") -> str:
    program = [sys.executable, "-W", "ignore", "-c", _WARNS.format(before=before, adjacency=adjacency)]
    return subprocess.run(program, check=True, capture_output=True, text=True).stderr.strip()


def test_log_lines_get_no_time_stamp() -> None:
    assert warned("add_remove") == "as it was"


def test_a_format_that_a_program_has_set_stays() -> None:
    assert warned("replace_one", "logging.basicConfig(format='own: %(message)s')") == "own: as it was"
