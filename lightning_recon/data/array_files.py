# SPDX-License-Identifier: Apache-2.0
"""Read images from files of numbers: DICOM, NIfTI, NumPy, and TIFF or PNG of more than 8 bits or more than 4 channels.

Nothing is scaled here: the numbers come with the range that their type or the file's header gives them, if any.
pydicom, nibabel and tifffile are imported where a file needs them; the extra `medical` installs them.
"""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from lightning_recon.data.image_files import has_deep_planes
from lightning_recon.errors import UserError
from lightning_recon.files.faults import check_regular

# Extensions, with the package that reads them; None: NumPy itself.
ARRAY_EXTENSIONS = {".dcm": "pydicom", ".nii": "nibabel", ".nii.gz": "nibabel", ".npy": None}
_MOST_VALUES = 1 << 28  # of one file: 1 GiB in float32, and more than Pillow accepts of an image


@dataclass(frozen=True)
class Numbers:
    """The numbers of one image, not scaled yet.

    Args:
        values: (H, W), (H, W, C) or (C, H, W).
        limits: the numbers that mean 0 and 1; None: floats that must be in [0, 1], or integers of an unknown range.
        turn: how the image is turned upright.
        alpha: whether the last channel is the opacity of the others.
    """

    values: npt.NDArray[Any]
    limits: tuple[float, float] | None
    turn: Image.Transpose | None = None
    alpha: bool = False


def extension_of(path: Path) -> str | None:
    """The extension of a file of numbers; None for any other file."""
    return next((ending for ending in ARRAY_EXTENSIONS if path.name.lower().endswith(ending)), None)


def check_packages(endings: set[str]) -> None:
    """Refuse files whose package is not installed.

    Args:
        endings: keys of `ARRAY_EXTENSIONS`.

    Raises:
        UserError: names the extra that installs it.
    """
    for ending in sorted(endings):
        package = ARRAY_EXTENSIONS[ending]
        if package is not None and find_spec(package) is None:
            raise UserError(
                f"{ending} files are read with {package}, which is not installed: "
                "run pip install 'lightning_recon[medical]'"
            )


def slices_of(path: Path) -> int:
    """Number of images in a file: slices along the third axis of a NIfTI volume, else 1; 1 for a damaged file."""
    if ARRAY_EXTENSIONS.get(extension_of(path) or "") != "nibabel":
        return 1
    import nibabel

    try:
        check_regular(path)
        volume: Any = nibabel.load(path)
        shape = volume.shape
    except Exception:  # reading the image itself says what is wrong
        return 1
    return int(shape[2]) if len(shape) > 2 else 1


def read_numbers(path: Path, part: int = 0) -> Numbers:
    """Read one image of a file whose extension is in `ARRAY_EXTENSIONS`.

    Args:
        path: a regular file.
        part: number of the slice.

    Raises:
        OSError: the file is missing or not a regular file.
        ValueError: it is damaged, too large, or of a kind that is not read; readers raise other types too.
    """
    check_regular(path)
    ending = extension_of(path)
    if ending == ".npy":
        return _numpy(path)
    return _dicom(path) if ending == ".dcm" else _nifti(path, part)


def read_deep(path: Path, image: Image.Image) -> Numbers | None:
    """Read what Pillow reduces to 8 bits: colours of 16 bits in PNG, TIFF and PPM.

    Args:
        path: the file.
        image: what Pillow opened, before it decoded it.

    Returns:
        None where Pillow keeps all bits.

    Raises:
        ValueError: OpenCV cannot decode the file, or tifffile a TIFF with a plane for each channel.
    """
    if has_deep_planes(image):
        return read_tiff(path)
    tiles: Any = getattr(image, "tile", ())
    # A tile is (decoder, place, offset, arguments), and the first argument names the kind of numbers, as in RGB;16B.
    kinds = [tile[3][:1] if isinstance(tile[3], tuple) else tile[3] for tile in tiles]
    deep = image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(kind) for kind in kinds)
    if image.format == "PPM" and image.mode == "RGB":
        deep = any(isinstance(tile[3], tuple) and tile[3][-1] > 255 for tile in tiles)
    if not deep:
        return None
    found = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16:
        raise ValueError("OpenCV cannot decode colours of 16 bits: convert the file to 16-bit PNG or TIFF")
    if found.ndim == 3:
        found = found[..., [2, 1, 0, 3][: found.shape[2]]]
    return Numbers(found, (0, 65535), alpha=found.ndim == 3 and found.shape[2] == 4)


def read_tiff(path: Path) -> Numbers:
    """Read the first page of a TIFF that Pillow does not read, with tifffile.

    Raises:
        ValueError: tifffile is not installed, or cannot read the file.
    """
    if find_spec("tifffile") is None:
        raise ValueError("Pillow cannot read this TIFF; tifffile may: run pip install 'lightning_recon[medical]'")
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        if page.size > _MOST_VALUES:
            raise ValueError(f"too large: {' x '.join(map(str, page.shape))} values")
        values = page.asarray()
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and values.ndim == 3:
            values = np.moveaxis(values, 0, -1)
        palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
        inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        bits = int(page.bitspersample)
    if palette:
        raise ValueError("a palette of 16 bits: convert the file to grey or RGB")
    found = _of_type(values)
    if values.dtype.kind == "u" and bits < 8 * values.dtype.itemsize:
        found = replace(found, limits=(0, (1 << bits) - 1))
    if inverted and found.limits is not None:
        found = replace(found, limits=found.limits[::-1])
    return found


def _numpy(path: Path) -> Numbers:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if values.size > _MOST_VALUES:
        raise ValueError(f"too large: {' x '.join(map(str, values.shape))} values")
    return _of_type(np.array(values))


def _dicom(path: Path) -> Numbers:
    """One frame with the modality's rescaling; MONOCHROME1 is negated, so that more is brighter in every image."""
    import pydicom
    from pydicom.pixels.utils import pixel_array

    data = pydicom.dcmread(path)
    frames, kind = int(data.get("NumberOfFrames") or 1), str(data.get("PhotometricInterpretation"))
    if frames > 1:
        raise ValueError(f"{frames} frames: write each to a file of its own")
    if data.Rows * data.Columns * data.SamplesPerPixel > _MOST_VALUES:
        raise ValueError(f"too large: {data.Rows} x {data.Columns} pixels")
    if kind == "PALETTE COLOR" or "ModalityLUTSequence" in data:
        raise ValueError("a lookup table for its values, which is not applied: convert it first")
    values = pixel_array(data)  # colours as RGB
    bits = int(data.BitsStored)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if data.PixelRepresentation else (0, (1 << bits) - 1)
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    if slope == 0:
        raise ValueError("a rescale slope of 0")
    limits = (slope * low + intercept, slope * high + intercept)
    if kind == "MONOCHROME1":
        slope, intercept, limits = -slope, -intercept, (-limits[1], -limits[0])
    return Numbers(values.astype(np.float64) * slope + intercept, limits)


def _nifti(path: Path, part: int) -> Numbers:
    """A slice along the third axis, with its first axis from left to right; a fourth axis holds channels."""
    import nibabel

    image: Any = nibabel.load(path)
    shape = image.shape
    if not 2 <= len(shape) <= 4:
        raise ValueError(f"{len(shape)} axes: give volumes of 2 to 4, the last of 4 for channels")
    if int(np.prod(shape)) // max(1, shape[2] if len(shape) > 2 else 1) > _MOST_VALUES:
        raise ValueError(f"too large: {' x '.join(map(str, shape))} values")
    stored = image.get_data_dtype()
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    values = np.asarray(image.dataobj[:, :, part] if len(shape) > 2 else image.dataobj)
    values = values.swapaxes(0, 1)
    limits = _limits(np.dtype(stored))
    if limits is not None:
        limits = (slope * limits[0] + intercept, slope * limits[1] + intercept)
    return Numbers(values, limits)


def _of_type(values: npt.NDArray[Any]) -> Numbers:
    if values.dtype.kind not in "uifb":
        raise ValueError(f"values of type {values.dtype}: give integers or floats")
    if values.dtype.kind == "b":
        values = values.astype(np.uint8) * 255
    return Numbers(values, _limits(values.dtype))


def _limits(kind: np.dtype[Any]) -> tuple[float, float] | None:
    """The range of unsigned integers of 8 and 16 bits; that of other types says nothing of their values."""
    return (0, np.iinfo(kind).max) if kind in (np.uint8, np.uint16) else None
