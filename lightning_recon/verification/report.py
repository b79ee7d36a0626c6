# SPDX-License-Identifier: Apache-2.0
"""The result of a verification: as a table for the terminal, as JSON, and as JUnit XML for CI."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.table import Table
from rich.text import Text

from lightning_recon.files.atomic import write_text
from lightning_recon.files.serialization import finite, write_json
from lightning_recon.plural import counted
from lightning_recon.printable import printable
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.verdicts import Line, Verdict

FORMAT = "verify 1"
_STYLES: dict[Verdict, str] = {"holds": "green", "refuted": "bold red", "inconclusive": "yellow", "not run": "dim"}
_GROUPED = 6  # tensors whose noise holds and that get a line each; more are summed up in one


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Args:
        lines: in the order of the table.
        claims: what was claimed.
        false_alarms: limit on the probability that any claim of a correct client is refuted.
        releases: how many releases were asked of all clients.
        versions: of the programs that took part.
    """

    lines: tuple[Line, ...]
    claims: Claims
    false_alarms: float
    releases: int
    versions: dict[str, str]

    @property
    def refuted(self) -> tuple[Line, ...]:
        """The claims that are refuted."""
        return tuple(line for line in self.lines if line.verdict == "refuted")

    @property
    def holds(self) -> bool:
        """Whether no claim is refuted."""
        return not self.refuted

    @property
    def summary(self) -> str:
        """The result in one sentence."""
        count: dict[Verdict, int] = dict.fromkeys(_STYLES, 0)
        for line in self.lines:
            count[line.verdict] += 1
        said = (
            f"{counted(count['holds'], 'claim holds', 'claims hold')}, {counted(count['refuted'], 'is', 'are')} refuted"
        )
        rest = f"{counted(count['inconclusive'], 'is', 'are')} inconclusive"
        return f"{said}, {rest}, {counted(count['not run'], 'was', 'were')} not tested"

    def table(self) -> Table:
        """Claimed, measured and verdict, one line each, for rich."""
        table = Table(title="Verification", caption=self.summary)
        for column in ("what", "claimed", "measured", "verdict"):
            table.add_column(column, overflow="fold")
        for line in shortened(self.lines):
            check = line.check
            row = [printable(text) for text in (check.name, check.claimed, check.measured)]
            table.add_row(*map(Text, row), Text(line.verdict, _STYLES[line.verdict]))
        return table

    def remarks(self) -> list[str]:
        """Why claims are refuted, and why others are not decided; one sentence for all lines that share the reason."""
        found: dict[tuple[Verdict, str], list[str]] = {}
        for line in shortened(self.lines):
            if line.verdict != "holds":
                found.setdefault((line.verdict, line.remark), []).append(line.check.name)
        order = sorted(found, key=lambda one: one[0] != "refuted")
        return [f"{verdict}: {', '.join(found[verdict, why])}: {why}" for verdict, why in order]

    def record(self) -> dict[str, Any]:
        """All lines as plain values, for `verify.json`."""
        return {
            "format": FORMAT,
            "holds": self.holds,
            "false_alarms": self.false_alarms,
            "multiple_testing": "Holm",
            "releases": self.releases,
            "versions": self.versions,
            "claims": asdict(self.claims),
            "lines": [asdict(line.check) | {"verdict": line.verdict} for line in self.lines],
        }

    def save(self, folder: str | Path) -> None:
        """Write `verify.json` and `verify.xml` (JUnit).

        Args:
            folder: created if missing.

        Raises:
            UserError: the folder cannot be written.
        """
        write_json(Path(folder) / "verify.json", finite(self.record()))
        write_text(Path(folder) / "verify.xml", junit(self.lines))


def shortened(lines: Sequence[Line]) -> list[Line]:
    """The lines of the table: of many tensors whose noise holds, all but the one for all tensors are left out."""
    single = [
        line for line in lines if line.check.name.startswith("noise_std ") and "all tensors" not in line.check.name
    ]
    alike = [line for line in single if line.verdict in ("holds", "inconclusive")]
    if len(alike) <= _GROUPED:
        return list(lines)
    return [line for line in lines if line not in alike]


def junit(lines: Sequence[Line]) -> str:
    """The lines as JUnit XML: a refuted claim is a failure, one that was not tested or decided is skipped."""
    count = {verdict: sum(line.verdict == verdict for line in lines) for verdict in _STYLES}
    skipped = count["inconclusive"] + count["not run"]
    attributes = {"name": "recon verify", "tests": len(lines), "failures": count["refuted"], "skipped": skipped}
    suite = ElementTree.Element("testsuite", {name: str(value) for name, value in attributes.items()})
    for line in lines:
        check = line.check
        case = ElementTree.SubElement(suite, "testcase", {"classname": "recon.verify", "name": printable(check.name)})
        text = printable(f"claimed {check.claimed}; measured {check.measured}; {line.remark}")
        if line.verdict == "refuted":
            ElementTree.SubElement(case, "failure", {"message": text})
        elif line.verdict != "holds":
            ElementTree.SubElement(case, "skipped", {"message": f"{line.verdict}: {text}"})
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
