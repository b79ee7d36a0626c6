# SPDX-License-Identifier: Apache-2.0
"""The pages build without a warning, load nothing from elsewhere, and no link in them or in the README is dead."""

import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lightning_recon.audit.run import read_outcome
from lightning_recon.audit.table import row_of

ROOT = Path(__file__).parents[2]
TOP = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
GENERATED = (
    "docs/gallery/run/",
    "docs/reference/api/",
    "docs/reference/configuration/",
    "docs/reference/command-line.md",
)
PAGES = [
    name
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if not (name := path.relative_to(ROOT).as_posix()).startswith(GENERATED)
]
LINK = re.compile(r"\[[^\]]*\]\(<?([^)>\s]+)>?\)|<(https?://[^>\s]+)>|(?<![(<`])(https?://[^\s)>`]+)")


def prose(path: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def links(path: Path) -> list[str]:
    return [next(filter(None, found)) for found in LINK.findall(re.sub(r"`[^`\n]*`", "", prose(path)))]


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the builder make them, and its explicit ones."""
    headings = re.findall(r"^#{1,6} +(.+?)\s*$", prose(path), flags=re.MULTILINE)
    slugs = {
        "".join(c for c in text.lower().replace(" ", "-") if c in "-_" or unicodedata.category(c)[0] in "LN")
        for text in headings
    }
    return slugs | set(re.findall(r"^\((.+)\)=$", path.read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize("name", [*TOP, *PAGES])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            # Out of reach here: only their form is checked.
            assert re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/\S*)?", link), link
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        assert target.is_relative_to(ROOT), link
        if f"{target.relative_to(ROOT).as_posix()}".startswith(GENERATED):
            continue  # Sphinx checks these
        assert target.exists(), link
        if parts.fragment:
            assert parts.fragment in anchors(target), link


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_files_and_configs_that_pages_name_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    files = re.findall(
        r"(?<![\w/])(?:configs|docs|fig|lightning_recon|results|scripts)/(?!NAME)[\w./-]+\.[a-z]+\b", text
    )
    written = re.findall(r"^%%writefile (\S+)$", text, re.MULTILINE)  # by the notebook itself
    configs = [config for config in re.findall(r"--config ([\w./-]+\.yaml)", text) if config not in written]
    files += [f"configs/{config.removeprefix('configs/')}" for config in configs]
    assert not [file for file in files if not (ROOT / file).exists()]


def test_every_field_of_a_record_is_explained(finished: Path) -> None:
    folder = ROOT / "docs" / "reference"
    page = "".join((folder / f"{name}.md").read_text(encoding="utf-8") for name in ("results-json", "results-csv"))
    record = json.loads((finished / "results.json").read_text())
    names = {*record, *(name for part in record.values() if isinstance(part, dict) for name in part)}
    names |= {*record["victims"][0], *row_of(outcome)} if (outcome := read_outcome(finished)) else set()
    names -= {*record["versions"], *record["privacy"]["epsilon_by_adjacency"]}
    assert len(names) > 60
    assert not [name for name in sorted(names) if not re.search(rf"(?:`|^|, ){name}(?:`|:|, )", page, re.MULTILINE)]


def test_the_checks_see_links_and_anchors(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Why is ε large?\n[a](b.md#c) ![d](e.png) <https://f.org> https://g.org/h `[i](j)`\n```\n[k](l)\n```\n"
    )
    assert links(page) == ["b.md#c", "e.png", "https://f.org", "https://g.org/h"]
    assert anchors(page) == {"why-is-ε-large"}
    assert all(links(ROOT / name) for name in ("README.md", "docs/explanation/channel.md"))


@pytest.mark.slow
def test_pages_build_without_a_warning_and_stand_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html", "-d", str(tmp_path / "trees")]
    command += ["-D", "nb_execution_mode=off", "-D", "whole_api=0"]  # `.ci/run` builds everything
    built = subprocess.run([*command, str(ROOT / "docs"), str(tmp_path / "html")], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in (tmp_path / "html").rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"([^\"]+)\"", page.read_text())
        assert loaded, page.name
        assert not [address for address in loaded if urlsplit(address).netloc], page.name
    assert not [name for name in PAGES if not (tmp_path / "html" / name[5:]).with_suffix(".html").exists()]
