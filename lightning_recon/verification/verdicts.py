# SPDX-License-Identifier: Apache-2.0
"""Verdicts on all lines of a verification together, with one limit on false alarms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_recon.verification.check import Check

Verdict = Literal["holds", "refuted", "inconclusive", "not run"]


@dataclass(frozen=True)
class Line:
    """A line of the verification.

    Args:
        check: what was measured.
        verdict: "refuted": chance does not explain the measurement; "holds": it agrees with the claim; "inconclusive":
            it agrees, but the usual mistakes would do so too; "not run".
    """

    check: Check
    verdict: Verdict

    @property
    def remark(self) -> str:
        """Why the claim is refuted or not decided; empty if it holds."""
        return {"holds": "", "inconclusive": self.check.doubt}.get(self.verdict, self.check.remark)


def decide(checks: Sequence[Check], false_alarms: float) -> list[Line]:
    """The verdict on every check.

    Args:
        checks: of one verification; they may depend on each other in any way.
        false_alarms: probability that any claim of a correct client is refuted, in (0, 1).

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979).
    """
    tested = sorted((check for check in checks if check.p_value is not None), key=lambda check: check.p_value or 0.0)
    refuted: set[str] = set()
    for place, check in enumerate(tested):
        if (check.p_value or 0.0) > false_alarms / (len(tested) - place):
            break
        refuted.add(check.name)
    return [Line(check, _verdict(check, check.name in refuted)) for check in checks]


def _verdict(check: Check, refuted: bool) -> Verdict:
    if check.p_value is None:
        return "not run"
    return "refuted" if refuted else "inconclusive" if check.doubt else "holds"
