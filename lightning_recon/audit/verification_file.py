# SPDX-License-Identifier: Apache-2.0
"""The result of `recon verify` that a report quotes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_recon.errors import UserError
from lightning_recon.files.faults import readable
from lightning_recon.files.schema import VERIFICATION, VerificationRecord
from lightning_recon.files.serialization import read_json
from lightning_recon.verification.report import FORMAT

__all__ = ["VerificationRecord", "covers", "read_verification"]

_SHARED = ("mechanism", "granularity", "per_layer", "max_grad_norm", "noise_multiplier")


def read_verification(path: str | Path | None) -> VerificationRecord | None:
    """Read `verify.json`.

    Args:
        path: The file, or the folder that holds it; None for no file.

    Raises:
        UserError: There is no such file, or it is not what `recon verify` wrote.
    """
    if path is None:
        return None
    file = Path(path) / "verify.json" if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise UserError(f"{file} does not exist: give the verify.json that recon verify wrote, or leave it out")
    with readable(file):
        return read_json(file, VERIFICATION, FORMAT)


def covers(verification: VerificationRecord, privacy: Mapping[str, Any]) -> bool:
    """Whether a verification was made under the clip and noise of an audited protection.

    Args:
        verification: Of a client's code.
        privacy: The section `privacy` of `results.json`.
    """
    claimed = verification["claims"]["privacy"]
    audited = {"mechanism": "gaussian", **privacy}  # earlier versions did not record it
    return all(claimed.get(name) == audited.get(name) for name in _SHARED)
