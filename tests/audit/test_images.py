# SPDX-License-Identifier: Apache-2.0
"""The images of a report: only files of the run are read, and images that are not shown are counted."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from lightning_recon.audit.images import embedded

from .pages import Page, outcome, written

MakeRun = Callable[..., Path]


def test_images_that_are_not_shown_are_counted(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("many", gains=((20.0, 20.0),) * 8)
    (folder / "images" / "001.png").unlink()
    (folder / "images" / "002.png").write_bytes((folder / "images" / "002.png").read_bytes()[:40])
    Image.new("1", (9000, 9000)).save(folder / "images" / "003.png")  # more pixels than are opened
    record = json.loads((folder / "results.json").read_text())
    record["skipped_pictures"] = [{"name": f"cat/{n}.jpg", "reason": "truncated"} for n in range(7)]
    (folder / "results.json").write_text(json.dumps(record))
    one = outcome(folder)
    text = Page(written(tmp_path, one, replace(one, name="again"))).text
    assert "Shown: the first 6 of 8 victims, the first of 2 noise draws." in text
    assert "6 image files are missing or unreadable." in text  # three of each run
    assert "7 images of the data set could not be read and were not attacked: cat/0.jpg (truncated); " in text
    assert "; and 2 more." in text
    whole = Page(written(tmp_path, outcome(make_run("whole", gains=((20.0,), (21.0,)))))).text
    assert "Shown:" not in whole
    assert "not attacked" not in whole
    assert "missing or unreadable" not in whole


def test_only_files_of_the_run_are_read(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("one")
    assert embedded(folder, "images/000.png").startswith("data:image/png;base64,")
    shutil.copy(folder / "images" / "000.png", folder.parent / "other.png")
    for name in ("../other.png", str(folder.parent / "other.png"), "images/none.png", "results.json"):
        assert embedded(folder, name) == ""
