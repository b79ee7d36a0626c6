# SPDX-License-Identifier: Apache-2.0
"""Every source reads as an ordered list of images; every kind of image becomes an upright RGB square."""

import hashlib
import pickle
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets

from lightning_recon.command_line.commands import COMMANDS
from lightning_recon.data.download import DOWNLOADABLE
from lightning_recon.data.fitting import fitted
from lightning_recon.data.sources import SAMPLES, ImageSource, Source, open_folder, open_source, select
from lightning_recon.errors import UserError
from lightning_recon.image_format import rgb


def save(path: Path, colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


# --- one image ---


def test_square_keeps_the_centre() -> None:
    original = Image.new("RGB", (90, 30), "red")
    original.paste("blue", (30, 0, 60, 30))
    image = fitted(original, rgb(15))
    assert image.shape == (3, 15, 15)
    assert image.dtype == torch.uint8
    assert image[2, :, 1:-1].min() == 255  # the outermost columns see their neighbours, as when resized before the crop
    assert image[0, :, 1:-1].max() == 0


def test_square_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    image = fitted(Image.fromarray(stripes), rgb(8))
    assert (image.int() - 127)[:, :, 1:-1].abs().max() <= 1


def test_square_enlarges_and_keeps_size() -> None:
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    original = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    assert torch.equal(fitted(original, rgb(32)), pixels)
    assert fitted(original, rgb(64)).shape == (3, 64, 64)


def test_square_of_an_extremely_long_image_stays_small() -> None:
    assert fitted(Image.new("RGB", (30000, 1)), rgb(224)).shape == (3, 224, 224)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    original = Image.new("RGB", (20, 20), "black")
    original.paste("white", (0, 0, 20, 10))  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: white on the right
    original.save(tmp_path / "turned.png", exif=exif)
    image, _ = open_folder(tmp_path).read(0, rgb(20))
    assert image[:, :, 10:].min() == 255
    assert image[:, :, :10].max() == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    original = Image.new(mode, (10, 10)) if mode in {"I;16", "F"} else Image.new("RGB", (10, 10), "white").convert(mode)
    image = fitted(original, rgb(8))
    assert image.shape == (3, 8, 8)
    assert image.unique().tolist() == [0 if mode in {"I;16", "F"} else 255]


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    image, _ = open_folder(tmp_path).read(0, rgb(16))
    assert torch.equal(image[0].flatten(), torch.arange(256, dtype=torch.uint8))


def test_transparent_parts_are_black(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[:, :4, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(tmp_path / "b.png", transparency=1)
    source = open_folder(tmp_path)
    alpha, _ = source.read(0, rgb(8))
    assert alpha[:, :, :4].max() == 0
    assert alpha[:, :, 4:].min() == 255
    assert source.read(1, rgb(8))[0].max() == 0


# --- folders ---


def test_class_folders_give_labels_by_sorted_name(tmp_path: Path) -> None:
    for name in ("zebra/1.png", "ant/deep/2.JPEG", "ant/1.jpg", ".hidden/1.png"):
        save(tmp_path / name)
    (tmp_path / "mole").mkdir()  # an empty class keeps its index, so that labels do not depend on what is there
    source = open_folder(tmp_path)
    assert source.names == ["ant/1.jpg", "ant/deep/2.JPEG", "zebra/1.png"]
    assert [source.read(index, rgb(8))[1] for index in range(3)] == [0, 0, 2]


def test_folder_without_classes_gives_labels_by_position(tmp_path: Path) -> None:
    for name in "dbeac":
        save(tmp_path / f"{name}.png")
    source = open_folder(tmp_path, num_classes=3)
    assert source.names == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert [source.read(index, rgb(8))[1] for index in range(5)] == [0, 1, 2, 0, 1]


def test_other_files_are_named_not_read(tmp_path: Path) -> None:
    for name in ("a/1.png", "loose.png"):
        save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "index.csv").write_text("belongs to the data set")
    source = open_folder(tmp_path)
    assert source.names == ["a/1.png"]
    assert source.ignored == ["a/notes.txt", "loose.png"]


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist.*root") as raised:
        open_folder(tmp_path / "nowhere")
    assert "--data.root" in raised.value.for_command_line
    with pytest.raises(UserError, match=r"holds no images .*\.jpg"):
        open_folder(tmp_path)
    with pytest.raises(UserError, match="does not exist or is not a folder"):
        open_folder(save(tmp_path / "file.png"))


def test_samples_are_photographs_with_provenance() -> None:
    source = open_source("samples", None)
    readme = (SAMPLES / "README.md").read_text(encoding="utf-8")
    assert len(source) == 16
    assert not source.ignored
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*.jpg")) < 400_000
    for index, name in enumerate(source.names):
        image, label = source.read(index, rgb(64))
        assert label == index
        assert image.float().std() > 20
        row = next(line for line in readme.splitlines() if f"`{name}`" in line)
        assert "CC0-1.0" in row or "public domain" in row
        with Image.open(SAMPLES / name) as original:
            assert max(original.size) <= 320


@pytest.mark.parametrize("split", ["val", "train", "."])
def test_imagenet_is_found_as_torchvision_lays_it_out(tmp_path: Path, split: str) -> None:
    save(tmp_path / split / "n02" / "1.JPEG")
    save(tmp_path / split / "n01" / "2.JPEG")
    assert open_source("imagenet", tmp_path).names == ["n01/2.JPEG", "n02/1.JPEG"]


def test_imagenet_archives_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "ILSVRC2012_img_val.tar").touch()
    with pytest.raises(UserError, match=r"not unpacked.*ImageNet\(.*split='val'"):
        open_source("imagenet", tmp_path)


# --- torchvision's data sets, through their real readers ---


def test_every_data_set_is_a_source_that_the_help_names() -> None:
    assert set(DOWNLOADABLE) < set(get_args(Source))
    assert ", ".join(get_args(Source)) in " ".join(COMMANDS["fit"].help.split())


@pytest.mark.parametrize("source", DOWNLOADABLE)
def test_missing_data_sets_name_the_remedy(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError) as raised:
        open_source(source, tmp_path)  # type: ignore[arg-type]
    assert "--data.download true" in raised.value.for_command_line
    with pytest.raises(UserError) as raised:
        open_source(source, tmp_path / "nowhere")  # type: ignore[arg-type]
    assert "--data.download true" in raised.value.for_command_line
    with pytest.raises(UserError, match="LIGHTNING_RECON_DATA"):
        open_source(source, None)  # type: ignore[arg-type]
    assert not (tmp_path / "nowhere").exists()


def test_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    colours = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)
    data = np.repeat(colours, 1024, axis=1).reshape(2, 3072)
    contents = {"train": {"data": data, "fine_labels": [7, 99]}, "meta": {"fine_label_names": ["x"] * 100}}
    hashes = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        hashes[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", hashes["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [])
    monkeypatch.setattr(
        datasets.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": hashes["meta"]}
    )
    source = open_source("cifar100", tmp_path)
    image, label = source.read(1, rgb(32))
    assert len(source) == 2
    assert label == 99
    assert image.amin((1, 2)).tolist() == image.amax((1, 2)).tolist() == [0, 255, 0]


def test_caltech256(tmp_path: Path) -> None:
    folder = tmp_path / "caltech256" / "256_ObjectCategories"
    save(folder / "001.ak47" / "001_0001.jpg")
    save(folder / "002.flag" / "002_0001.jpg")
    source = open_source("caltech256", tmp_path)
    assert [source.read(index, rgb(8))[1] for index in range(len(source))] == [0, 1]


def test_flowers102(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "flowers-102"
    for index in (1, 2, 3):
        save(folder / "jpg" / f"image_{index:05d}.jpg")
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": [[77, 1, 102]]})
    scipy.io.savemat(folder / "setid.mat", {"trnid": [[1, 3]], "valid": [[2]], "tstid": [[2]]})
    files = {
        key: (name, hashlib.md5((folder / name).read_bytes()).hexdigest())
        for key, name in {"label": "imagelabels.mat", "setid": "setid.mat"}.items()
    }
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    source = open_source("flowers102", tmp_path)
    assert [source.read(index, rgb(8))[1] for index in range(len(source))] == [76, 101]


# --- choosing ---


def test_damaged_files_are_replaced_by_the_next(tmp_path: Path) -> None:
    for index in range(6):
        save(tmp_path / f"{index}.jpg", (40 * index, 0, 0), (100, 100))
    whole = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.jpg").write_text("this is no image")
    (tmp_path / "3.jpg").write_bytes(b"")
    chosen = select(open_folder(tmp_path), [2, 5, 1, 3, 0, 4], 2, rgb(8))
    assert chosen.names == ["5.jpg", "0.jpg"]
    assert chosen.labels.tolist() == [5, 0]
    assert [name for name, _ in chosen.skipped] == ["2.jpg", "1.jpg", "3.jpg"]
    assert all(reason for _, reason in chosen.skipped)
    assert chosen.used == 5  # the last of the order was not needed


def test_only_chosen_images_are_decoded() -> None:
    decoded = []

    def fetch(index: int) -> tuple[Image.Image, int]:
        decoded.append(index)
        return Image.new("RGB", (8, 8)), index

    chosen = select(ImageSource("many", range(10**6), fetch), [999_999, 5, 7], 2, rgb(8))  # type: ignore[arg-type]
    assert decoded == [999_999, 5]
    assert chosen.labels.tolist() == [999_999, 5]


def test_too_few_readable_images_give_fewer(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    chosen = select(open_folder(tmp_path), [1, 0], 2, rgb(8))
    assert chosen.images.shape == (1, 3, 8, 8)
    assert select(open_folder(tmp_path), [1], 1, rgb(8)).images.shape == (0, 3, 8, 8)
