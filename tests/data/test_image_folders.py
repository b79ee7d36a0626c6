# SPDX-License-Identifier: Apache-2.0
"""Image folders with system files, links to folders above, pipes, and file names in any bytes."""

import os
from pathlib import Path

import pytest
from PIL import Image

from lightning_recon.data.sources import open_folder
from lightning_recon.image_format import rgb


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", "lost+found", "System Volume Information", "$RECYCLE.BIN"])
def test_what_systems_leave_behind_is_no_class(name: str, tmp_path: Path) -> None:
    for folder in (name, "apple", "zebra"):
        save(tmp_path / folder / "1.png")
    save(tmp_path / "apple" / "._1.png")
    save(tmp_path / "apple" / name / "2.png")
    (tmp_path / "apple" / "Thumbs.db").touch()
    source = open_folder(tmp_path)
    assert source.names == ["apple/1.png", "zebra/1.png"]
    assert [source.read(index, rgb(8))[1] for index in range(2)] == [0, 1]
    assert set(source.ignored) == {name, "apple/._1.png", f"apple/{name}", "apple/Thumbs.db"}


def test_links_repeat_nothing_and_end(tmp_path: Path) -> None:
    root = tmp_path / "data"
    save(root / "b" / "1.png")
    for name, target in {"x": ".", "y": "..", "z": "../..", "w": "../c"}.items():
        (root / "b" / name).symlink_to(target)
    save(root / "c" / "2.png")
    (root / "c" / "3.png").symlink_to("2.png")
    (root / "c" / "4.png").symlink_to("nowhere.png")
    save(tmp_path / "other" / "5.png")
    source = open_folder(root)
    assert source.names == ["b/1.png", "c/2.png"]
    assert len(source.ignored) == 6


def test_links_to_data_elsewhere_are_followed(tmp_path: Path) -> None:
    root, store = tmp_path / "data", tmp_path / "store"
    save(store / "apples" / "deep" / "1.png")
    save(store / "2.png")
    save(root / ".annex" / "3.png")
    save(root / "c" / "5.png")
    (root / "a").symlink_to(store / "apples")
    (root / "c" / "2.png").symlink_to(store / "2.png")
    (root / "c" / "3.png").symlink_to("../.annex/3.png")
    source = open_folder(root)
    assert source.names == ["a/deep/1.png", "c/2.png", "c/3.png", "c/5.png"]
    assert [source.read(index, rgb(8))[1] for index in range(4)] == [0, 1, 1, 1]
    assert not source.ignored


def test_pipes_are_left_alone_and_names_may_be_any_bytes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    save(tmp_path / "b\x1b[2J\u202e.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/c\xff.png")).write_bytes(save(tmp_path / "d.png").read_bytes())
    source = open_folder(tmp_path)
    assert source.names == ["b\\x1b[2J\\u202e.png", "c\\xff.png", "d.png"]
    assert all(source.read(index, rgb(8))[0].shape == (3, 8, 8) for index in range(3))
    assert source.ignored == ["a.png (not a regular file)"]
