# SPDX-License-Identifier: Apache-2.0
"""The tables of the denoiser's training photographs, and the script that extracts these from their repositories."""

import io
import re
import subprocess
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
ALLOWED = re.compile(r"CC0|Public Domain( Mark 1\.0)?|CC BY( [234]\.[05])?")


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def test_every_photograph_has_an_allowed_licence_and_a_credit_where_that_asks_for_one() -> None:
    from repository_photographs import PHOTOGRAPHS, read_photographs

    photographs = read_photographs(PHOTOGRAPHS)
    assert len(photographs) > 1000
    for photograph in photographs:
        # One that is put together of several states the licence of each.
        licences = photograph.licence.split(" / ")
        assert all(ALLOWED.fullmatch(licence) for licence in licences), photograph
        assert photograph.credit or not any(licence.startswith("CC BY") for licence in licences), photograph


def test_the_tables_agree_and_name_every_file_once() -> None:
    from repository_photographs import PHOTOGRAPHS, SOURCES, read_commits, read_photographs

    photographs, commits = read_photographs(PHOTOGRAPHS), read_commits(SOURCES)
    assert max(Counter(photograph.file for photograph in photographs).values()) == 1
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in commits.values())
    listed = {line.split("\t")[0] for line in SOURCES.read_text(encoding="utf-8").splitlines()[1:]}
    assert {photograph.source for photograph in photographs} == listed
    for photograph in photographs:
        folder, name = PurePosixPath(photograph.file).parts
        assert folder != ".."
        assert name.endswith((".jpg", ".png"))
        assert bool(photograph.path) == (photograph.source in commits), photograph


def _image(form: str, width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form)
    return data.getvalue()


@pytest.fixture
def clones(tmp_path: Path) -> Path:
    """A clone whose branch has moved on: the photographs are in the commit before the last alone."""
    folder = tmp_path / "clones" / "owner" / "name"
    (folder / "media").mkdir(parents=True)
    _git(folder, "init", "--quiet")
    (folder / "media" / "small.jpg").write_bytes(_image("JPEG", 40, 30))
    (folder / "media" / "other.webp").write_bytes(_image("WEBP", 40, 30))
    _commit(folder)
    _git(folder, "rm", "--quiet", "-r", "media")
    (folder / "README").write_text("moved\n")
    _commit(folder)
    return tmp_path / "clones"


def _git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=name", "-c", "user.email=name@example.org", "-c", "commit.gpgsign=false")
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _commit(folder: Path) -> None:
    _git(folder, "add", ".")
    _git(folder, "commit", "--quiet", "--message", "photographs")


def test_photographs_come_from_the_commit_whatever_is_checked_out(clones: Path, tmp_path: Path) -> None:
    from repository_photographs import Photograph, extract

    commits = {"owner/name": _git(clones / "owner" / "name", "rev-parse", "HEAD~1")}
    photographs = [
        Photograph("set/small.jpg", "Somebody", "", "owner/name", "media/small.jpg", "CC BY 2.0"),
        Photograph("set/other.jpg", "", "", "owner/name", "media/other.webp", "CC0"),
        Photograph("debian/other.jpg", "", "", "package 1.0", "", "CC0"),
    ]
    assert extract(photographs, commits, clones, tmp_path / "output") == 2
    assert (tmp_path / "output" / "set" / "small.jpg").read_bytes() == _image("JPEG", 40, 30)
    with Image.open(tmp_path / "output" / "set" / "other.jpg") as converted:
        assert (converted.format, converted.size) == ("JPEG", (40, 30))
    assert not (tmp_path / "output" / "debian").exists()


def test_large_images_are_made_smaller() -> None:
    from repository_photographs import as_written

    for form in ("JPEG", "PNG"):
        written = Image.open(io.BytesIO(as_written(_image(form, 4200, 20))))
        assert (written.format, written.size) == ("JPEG", (2048, 10))


@pytest.mark.parametrize(
    ("source", "commit", "path", "message"),
    [
        (
            "owner/absent",
            "HEAD",
            "media/small.jpg",
            r"absent is missing: git clone --bare https://github.com/owner/absent",
        ),
        ("owner/name", "0" * 40, "media/small.jpg", "name has no commit 0{40}: git -C .* fetch origin 0{40}"),
        ("owner/name", "HEAD~1", "media/absent.jpg", "name: commit HEAD~1 has no file media/absent.jpg"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    clones: Path, tmp_path: Path, source: str, commit: str, path: str, message: str
) -> None:
    from repository_photographs import Photograph, extract

    photograph = Photograph("set/small.jpg", "Somebody", "", source, path, "CC BY 2.0")
    with pytest.raises(SystemExit, match=message) as refused:
        extract([photograph], {source: commit}, clones, tmp_path / "output")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "output").exists()
