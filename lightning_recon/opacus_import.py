# SPDX-License-Identifier: Apache-2.0
"""Import Opacus without its change of the format of log lines."""

import logging
import sys


def import_opacus() -> None:
    """Import Opacus, which takes seconds, and remove the handlers of the root logger that its import adds.

    Opacus calls `logging.basicConfig` where the root logger has no handler yet. From then on the warnings of all
    programs carry its time stamps. Handlers that were there before stay.
    """
    if "opacus" in sys.modules:
        return
    root = logging.getLogger()
    before = list(root.handlers)
    import opacus  # noqa: F401

    for handler in [one for one in root.handlers if one not in before]:
        root.removeHandler(handler)
