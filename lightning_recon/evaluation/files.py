# SPDX-License-Identifier: Apache-2.0
"""What arrived digitally: how each victim's file was sent, and over all of them against what the channel holds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_recon.structure.base import ReceivedFile

_COUNTED = ("bits_sent", "capacity_bits")


def file_fields(file: ReceivedFile | None) -> dict[str, Any]:
    """The fields of an entry of `victims` that say how the victim's file arrived; nothing where none did."""
    if file is None:
        return {}
    return {"codec": file.codec, "code_rate": file.rate, "bits_sent": file.bits, "capacity_bits": file.capacity}


def files_record(victims: Sequence[Mapping[str, Any]], count: int, channel_code: str | None) -> dict[str, object]:
    """The fields of `summary` about them.

    Args:
        victims: Entries of `victims`.
        count: How many victims there are, over all draws: where no truth is known, only pictures have an entry.
        channel_code: Name of the channel code; None if nothing was sent digitally.

    Returns:
        Its name, the share of the victims whose file arrived, and means over those.
    """
    arrived = [victim for victim in victims if victim["codec"] is not None]
    means = {name: statistics.fmean(v[name] for v in arrived) if arrived else None for name in _COUNTED}
    return {
        "channel_code": channel_code,
        "file_decoded_fraction": None if channel_code is None else len(arrived) / count,
        **{f"{name}_mean": value for name, value in means.items()},
    }
