# SPDX-License-Identifier: Apache-2.0
"""Write a report of outcomes and parse its page."""

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

from lightning_recon.audit.config import ReportOptions
from lightning_recon.audit.load import Intervention, Runs
from lightning_recon.audit.plan import Cell
from lightning_recon.audit.report import write_report
from lightning_recon.audit.run import Outcome, read_outcome

HOSTILE = '<script>document.title="owned"</script>"><img src=x onerror=alert(1)>'
VOID = {"meta", "img", "br", "wbr"}


class Page(HTMLParser):
    """Checks that tags are nested, and collects attributes and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def outcome(folder: Path, attack: str | None = None) -> Outcome:
    found = read_outcome(folder, attack)
    assert found is not None
    return found


def written(
    folder: Path,
    *outcomes: Outcome,
    trials: Sequence[Intervention] = (),
    failed: Sequence[tuple[Cell, str]] = (),
    options: ReportOptions | None = None,
) -> str:
    runs = Runs(list(outcomes), list(trials))
    write_report(folder / "report.html", folder / "results.csv", runs, options or ReportOptions(), failed)
    return (folder / "report.html").read_text(encoding="utf-8")
