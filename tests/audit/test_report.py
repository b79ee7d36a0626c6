# SPDX-License-Identifier: Apache-2.0
"""The files of a report: one page that loads nothing, in which hostile names are only text."""

import base64
import html
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_recon.audit.config import AuditedAttack, Sweep
from lightning_recon.audit.load import Intervention
from lightning_recon.audit.plan import plan_of
from lightning_recon.audit.run import Outcome
from lightning_recon.errors import UserError
from lightning_recon.files.atomic import write_text

from .pages import HOSTILE, Page, outcome, written

MakeRun = Callable[..., Path]
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
MEASURE = """onload = () => {
    const page = f.contentDocument, labels = [...page.querySelectorAll('td.text, .grid td, .grid th')]
    const narrowest = Math.round(Math.min(...labels.map(one => one.getBoundingClientRect().width)))
    document.title = [page.title, page.images.length, page.documentElement.scrollWidth, narrowest].join('|')
}"""


def test_one_file_that_loads_nothing(sweep: list[Outcome], tmp_path: Path) -> None:
    page = Page(written(tmp_path, *sweep))
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    # Two pairs of the summary; the chart; photographs, what the client used, eight cells with two victims.
    assert len(sources) == 4 + 1 + (2 + 8) * 2
    assert all(str(source).startswith("data:image/") for source in sources)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not [
        name for _, attributes in page.tags for name in attributes if name in ("href", "srcset") or name[:2] == "on"
    ]
    policy = [attributes["content"] for tag, attributes in page.tags if "content" in attributes and tag == "meta"]
    assert any("default-src 'none'" in str(content) for content in policy)


def test_hostile_names_are_only_text(make_run: MakeRun, tmp_path: Path) -> None:
    name = f"{HOSTILE}/x.jpg"
    folder = make_run("hostile", HOSTILE, names=[name, "cat/b.jpg"])
    cell = plan_of(Sweep({HOSTILE: AuditedAttack()}, [0.1]), [], tmp_path).cells[0]
    content = written(tmp_path, outcome(folder), failed=[(cell, HOSTILE)])
    page = Page(content)
    assert page.text.count(HOSTILE) >= 4  # under the photograph, attack in table and grid, reason
    assert not [tag for tag, attributes in page.tags if tag == "script" or "onerror" in attributes]
    card = (tmp_path / "audit-card.md").read_text()
    assert "\\<script\\>document.title" in card
    assert not re.search(r"(?<!\\)<", card)


def test_names_that_tex_or_a_terminal_would_read_are_only_text(make_run: MakeRun, tmp_path: Path) -> None:
    names = ["a/$\\frac$.jpg", "b/\x1b[31m\udcff.jpg"]
    folder = make_run("odd", "$\\frac$ \x1b[31m_x", names=names)
    text = Page(written(tmp_path, outcome(folder))).text
    assert "$\\frac$ \\x1b[31m_x" in text
    assert "b/\\x1b[31m\\xff.jpg" in text
    chart = re.search(r"data:image/svg\+xml;base64,([^\"]+)", (tmp_path / "report.html").read_text())
    assert chart is not None
    assert "$\\frac$ \\x1b[31m_x" in base64.b64decode(chart[1]).decode()


def test_hostile_changes_and_alarms_are_only_text(make_run: MakeRun, tmp_path: Path) -> None:
    before = outcome(make_run("before", names=["cat/a", "cat/b"], data={"root": f"/x/{HOSTILE.replace('/', '')}"}))
    after = outcome(make_run("after", names=["cat/a", "cat/b"], alarms=[HOSTILE]))
    page = Page(written(tmp_path, before, after, trials=[Intervention(HOSTILE, HOSTILE, (before,), (after,))]))
    assert page.text.count(HOSTILE) >= 3  # name, cost, alarm
    assert not [tag for tag, attributes in page.tags if tag == "script" or "onerror" in attributes]


def test_the_same_cells_make_the_same_files(sweep: list[Outcome], tmp_path: Path) -> None:
    contents = []
    for place in ("a", "b"):
        written(tmp_path / place, *sweep)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / place).iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"report.html", "report.json", "results.csv", "annex.json", "audit-card.md"}
    assert not any(str(tmp_path).encode() in content for content in contents[0].values())


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "results.csv", "whole")

    def full(self: Path, *_: object, **__: object) -> int:
        with self.open("w"):  # as much as fits
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_text(tmp_path / "results.csv", "half")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("results.csv", "whole")]


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_a_browser_shows_it(make_run: MakeRun, tmp_path: Path) -> None:
    written(tmp_path, outcome(make_run("hostile", HOSTILE, names=[f"{HOSTILE}/x.jpg", "cat/b.jpg"])))
    page = tmp_path / "report.html"
    shot = tmp_path / "shot.png"
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1000,1400", f"--screenshot={shot}", "--virtual-time-budget=2000", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    assert shot.stat().st_size > 20_000  # a blank page of this size takes a tenth
    # As on a phone: 400 pixels, in a frame, since a window has a least width.
    frame = f'<iframe id="f" style="width:400px;height:900px" srcdoc="{html.escape(page.read_text())}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<meta charset=utf-8>{frame}<script>{MEASURE}</script>")
    command[-3:] = ["--dump-dom", "--virtual-time-budget=2000", (tmp_path / "frame.html").as_uri()]
    dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200).stdout
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found is not None
    title, images, width, narrowest = found[1].split("|")
    assert title == "Reconstruction audit"  # no script has changed it
    assert int(images) == 4 + 1 + (2 + 1) * 2
    assert int(width) <= 400  # nothing runs off: what is wider scrolls by itself
    assert int(narrowest) >= 100  # no label is broken letter by letter
    # On paper: what a browser prints, to A4 or letter, in several pages.
    sheet = tmp_path / "report.pdf"
    command[-3:] = [f"--print-to-pdf={sheet}", "--no-pdf-header-footer", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    assert sheet.read_bytes().startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", sheet.read_bytes())) >= 3
