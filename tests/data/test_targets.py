# SPDX-License-Identifier: Apache-2.0
"""Targets beside class indices: masks of whole images, and numbers from a file."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_recon.data import ClientBatch, ClientDataModule, GrabCutMasks, NoMasks
from lightning_recon.data.targets import open_targets
from lightning_recon.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_RECON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIGHTNING_RECON_DATA", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(4):
        path = tmp_path / "data" / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (60 * index, 0, 0)).save(path)
    return tmp_path / "data"


def batch_of(root: Path | None, targets: str, **options: object) -> ClientBatch:
    data = ClientDataModule(
        **{"root": None if root is None else str(root), "image_size": 16, "batch_size": 4, "masks": NoMasks()}  # type: ignore[arg-type]
        | {"targets": targets}
        | options
    )
    data.prepare_data()
    data.setup()
    return data.client_batches[0]


def test_numbers_of_a_file_belong_to_their_images(folder: Path) -> None:
    lines = [f"class{index % 2}/{index}.png,{index},{index / 2}" for index in range(4)]
    (folder / "targets.csv").write_text("image,age,weight\n" + "\n".join(lines) + "\n")
    # A class index beyond num_classes does not matter where classes are not learned.
    batch = batch_of(folder, "targets.csv", num_classes=1)
    assert batch.labels.dtype == torch.float32
    numbers = [float(Path(name).stem) for name in batch.names]
    assert batch.labels.tolist() == [[one, one / 2] for one in numbers]
    assert [round(255 * one) for one in batch.images[:, 0, 0, 0].tolist()] == [60 * one for one in numbers]


def test_masks_are_learned_from_whole_images() -> None:
    masks = GrabCutMasks(work_size=96)
    learned, cut = (batch_of(None, kind, image_size=48, masks=masks) for kind in ("masks", "labels"))
    assert torch.equal(learned.labels, cut.masks.float())
    assert torch.equal(learned.images, learned.photographs)
    assert torch.equal(learned.images, cut.photographs)
    assert bool(learned.masks.all())
    with pytest.raises(UserError, match="name a class that finds subjects"):
        ClientDataModule(targets="masks", masks=NoMasks())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("class0/0.png,1\n", "has no line for class"),
        ("", "holds no targets"),
        ("class0/0.png,1\nclass1/1.png,a\n", "line 2 has no 1 number"),
        ("class0/0.png,1\nclass1/1.png,1,2\n", "line 2 has no 1 number"),
        ("class0/0.png,nan\nclass1/1.png,nan\n", "line 2 has no 1 number"),
    ],
)
def test_a_file_that_lacks_something_is_answered_in_one_line(folder: Path, content: str, said: str) -> None:
    (folder / "targets.csv").write_text(content)
    with pytest.raises(UserError, match=said):
        batch_of(folder, "targets.csv")


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"'nowhere\.csv', which is no file"):
        open_targets("nowhere.csv", None)
