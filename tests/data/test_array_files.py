# SPDX-License-Identifier: Apache-2.0
"""Files of numbers: DICOM, NIfTI, NumPy and deep TIFF become images by their stated range, or are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_recon.data import array_files
from lightning_recon.data.sources import open_folder
from lightning_recon.errors import UserError
from lightning_recon.image_format import ImageFormat, rgb

GREY16 = ImageFormat(1, 8, 8, 16)
RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)


def dicom(path: Path, values: np.ndarray, **entries: object) -> None:
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = pydicom.uid.CTImageStorage
    data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * values.dtype.itemsize
    data.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in entries.items():
        setattr(data, name, value)
    data.HighBit = data.BitsStored - 1
    data.PixelData = values.tobytes()
    data.save_as(path, enforce_file_format=True)


def test_dicom_is_rescaled_and_inverted(tmp_path: Path) -> None:
    values = (RAMP * 65).astype(np.uint16)
    dicom(tmp_path / "a.dcm", values, BitsStored=12)
    dicom(tmp_path / "b.dcm", values, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    dicom(tmp_path / "c.dcm", values, BitsStored=12, RescaleSlope=2, RescaleIntercept=-1024)
    dicom(tmp_path / "d.dcm", values.astype(np.int16) - 2048, BitsStored=12)
    source, picture = open_folder(tmp_path), ImageFormat(1, 8, 8, 12)
    a, b, c, d = (source.read(index, picture)[0][0].numpy() for index in range(4))
    assert (a == values).all()
    assert (b == 4095 - values).all()
    assert (c == values).all()
    assert (d == values).all()


def test_a_window_clips_what_lies_beyond_it(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=1, RescaleIntercept=-1000)
    found = open_folder(tmp_path, value_range=(-990.0, -950.0)).read(0, ImageFormat(1, 8, 8, 8))[0].flatten()
    assert torch.equal(found, ((torch.arange(64.0) - 10) / 40 * 255).clamp(0, 255).round().to(torch.uint8))


def test_the_files_that_pydicom_carries_are_read() -> None:
    examples = pytest.importorskip("pydicom.data")
    for name in ("CT_small.dcm", "MR_small.dcm"):
        path = Path(examples.get_testdata_file(name))
        numbers = array_files.read_numbers(path)
        assert numbers.values.ndim == 2
        assert numbers.limits is not None


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"NumberOfFrames": 2}, "2 frames"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "lookup table"),
        ({"RescaleSlope": 0}, "slope of 0"),
    ],
)
def test_dicom_that_would_be_distorted_is_refused(entries: dict[str, object], says: str, tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm", RAMP, **entries)
    with pytest.raises(ValueError, match=says):
        open_folder(tmp_path).read(0, GREY16)


def test_slices_of_a_volume_are_images_and_a_fourth_axis_holds_channels(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = np.arange(8 * 8 * 3, dtype=np.uint16).reshape(8, 8, 3)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    source = open_folder(tmp_path)
    assert source.names == ["a.nii.gz#0", "a.nii.gz#1", "a.nii.gz#2"]
    assert (source.read(1, GREY16)[0][0].numpy() == volume[:, :, 1].T).all()
    (tmp_path / "a.nii.gz").unlink()
    sequences = np.random.default_rng(0).random((8, 8, 2, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(sequences, np.eye(4)), tmp_path / "b.nii")
    found = open_folder(tmp_path).read(1, ImageFormat(4, 8, 8, 16))[0]
    assert np.abs(found.numpy() / 65535 - sequences[:, :, 1].transpose(2, 1, 0)).max() <= 0.5 / 65535 + 1e-6


@pytest.mark.parametrize("shape", [(8, 8, 5), (5, 8, 8)])
def test_numpy_arrays_have_channels_first_or_last(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", values)
    found = open_folder(tmp_path).read(0, ImageFormat(5, 8, 8))[0]
    assert (found.numpy() == (values if shape[0] == 5 else values.transpose(2, 0, 1))).all()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (RAMP.astype(np.int32), "int32 values from 0 to 63, whose range.*--data.value_range"),
        (RAMP.astype(np.float32), "exceed 0 to 1.*--data.value_range"),
        (np.full((8, 8), np.nan), "NaN"),
        (np.zeros((8, 8, 2), np.uint8), r"2 channels, and 1 are asked for: set --data.channels 2"),
        (np.zeros((8, 8), complex), "type complex128"),
        (np.zeros((0, 8), np.uint8), "without pixels"),
        (np.array(["a"], object), "Python objects"),
    ],
)
def test_numbers_of_an_unknown_range_are_refused(values: np.ndarray, says: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(ValueError, match=says):
        open_folder(tmp_path).read(0, GREY16)


def test_tiff_of_many_channels(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(2).integers(0, 65536, (8, 8, 6), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig", extrasamples=[0] * 5)
    found = open_folder(tmp_path, deep=True).read(0, ImageFormat(6, 8, 8, 16))[0]
    assert (found.numpy() == values.transpose(2, 0, 1)).all()


def test_tiff_with_a_plane_for_each_channel(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(2).integers(0, 65536, (3, 8, 8), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", planarconfig="separate")
    found = open_folder(tmp_path, deep=True).read(0, ImageFormat(3, 8, 8, 16))[0]
    assert (found.numpy() == values).all()
    with pytest.raises(ValueError, match=r"give --data\.bit_depth 16"):
        open_folder(tmp_path).read(0, rgb(8))


def test_16_bit_files_keep_all_bits_in_16_and_in_12(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64
    Image.fromarray(values).save(tmp_path / "a.png")
    assert (open_folder(tmp_path).read(0, GREY16)[0][0].numpy() == values).all()
    in_12 = open_folder(tmp_path, value_range=(0.0, 4095.0)).read(0, ImageFormat(1, 8, 8, 12))[0]
    assert (in_12[0].numpy() == values).all()


def test_numbers_are_read_only_where_there_are_no_other_images(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((8, 8), np.uint8))
    assert open_folder(tmp_path).names == ["a.npy"]
    Image.new("L", (8, 8)).save(tmp_path / "b.png")
    source = open_folder(tmp_path)
    assert (source.names, source.ignored) == (["b.png"], ["a.npy"])


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.dcm").touch()
    monkeypatch.setattr(array_files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"read with pydicom.*lightning_recon\[medical\]"):
        open_folder(tmp_path)
