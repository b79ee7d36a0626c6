# SPDX-License-Identifier: Apache-2.0
"""The true images behind a captured update are read as they were written, or refused in one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_recon.data import CapturedPictures, save_truth
from lightning_recon.errors import UserError

IMAGES, LABELS = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    save_truth(tmp_path / "truth-c001.safetensors", 0.5 * IMAGES, LABELS, client=1)
    save_truth(tmp_path / "truth-c000.safetensors", IMAGES, LABELS)
    data = CapturedPictures(str(tmp_path))
    data.setup()
    first, second = data.client_batches
    assert torch.equal(first.images, IMAGES)
    assert torch.equal(second.images, 0.5 * IMAGES)
    assert torch.equal(first.labels, LABELS)
    assert bool(first.masks.all())
    assert len(set(first.names + second.names)) == 4
    alone = CapturedPictures(str(tmp_path / "truth-c000.safetensors"))
    alone.setup()
    assert torch.equal(alone.client_batches[0].images, IMAGES)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:, 0], LABELS, r"images are float32 \(2, 8, 8\), not float"),
        ((255 * IMAGES).to(torch.uint8), LABELS, "images are uint8"),
        (255 * IMAGES, LABELS, "not from 0 to 1"),
        (torch.full_like(IMAGES, torch.nan), LABELS, "not from 0 to 1"),
        (IMAGES, LABELS[:1], r"\(1,\) labels for 2 images"),
        (IMAGES, -LABELS, "the label -3 is below 0"),
    ],
)
def test_what_are_no_images_is_not_written(tmp_path: Path, images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        save_truth(tmp_path / "truth.safetensors", images, labels)
    assert not list(tmp_path.iterdir())


def test_missing_foreign_and_truncated_files_are_refused(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "truth.safetensors"):
        with pytest.raises(UserError, match="there is no truth file"):
            CapturedPictures(str(root)).setup()
    path = tmp_path / "truth.safetensors"
    save_file({"images": IMAGES, "labels": LABELS}, path)
    with pytest.raises(UserError, match="its format is not 'truth 1'"):
        CapturedPictures(str(path)).setup()
    save_truth(path, IMAGES, LABELS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"truth.safetensors is not a truth file"):
        CapturedPictures(str(path)).setup()
    save_truth(path, IMAGES, LABELS, client=1)
    with pytest.raises(UserError, match="holds the images of clients 1: give one truth file for each"):
        CapturedPictures(str(path)).setup()
