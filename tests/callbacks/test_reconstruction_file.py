# SPDX-License-Identifier: Apache-2.0
"""`reconstructions.safetensors` is read as it was written."""

from pathlib import Path

import pytest

from lightning_recon.callbacks.reconstruction_file import finished
from lightning_recon.errors import UserError


def test_an_unfinished_run_has_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reconstructions\.safetensors"):
        finished(tmp_path)
