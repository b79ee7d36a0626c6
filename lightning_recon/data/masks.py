# SPDX-License-Identifier: Apache-2.0
"""Which part of an image is its subject: makers of masks.

A maker turns a stream of images into a stream of masks, so that a big model lives exactly as long as the stream.
"""

import hashlib
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.ranges import COUNT, COUNT_OR_NONE, FRACTION, SEED_31, Range, check_ranges

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

# Files as the README of segment-anything names them, with their SHA-256. The six digits in a file name are the start of
# its MD5, which is no protection.
SAM_ADDRESS = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM_CHECKPOINTS = {
    "vit_h": ("sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    "vit_l": ("sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "vit_b": ("sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
}

INSET = Range("a number above 0 and below 0.5", 0, 0.5, inner=True)


class SubjectMasks(ABC):
    """Finds the subject of each image."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Everything but the image that the masks depend on; part of the key of the cache."""

    @abstractmethod
    def __call__(self, images: Iterable[Tensor]) -> Iterator[Tensor]:
        """Find the subjects.

        Args:
            images: each (3, H, W) uint8, RGB; read lazily.

        Yields:
            For each image in turn its mask, (1, H, W) bool, true on the subject.
        """


class NoMasks(SubjectMasks):
    """The whole image is the subject."""

    @property
    def fingerprint(self) -> str:
        """Constant."""
        return "none"

    def __call__(self, images: Iterable[Tensor]) -> Iterator[Tensor]:
        """All true."""
        for image in images:
            yield torch.ones(1, *image.shape[1:], dtype=torch.bool)


class GrabCutMasks(SubjectMasks):
    """Subject by OpenCV's GrabCut, started from a rectangle: needs no weights.

    Source: Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004, as implemented by cv2.grabCut.
    """

    def __init__(
        self,
        inset: float = 0.08,
        iterations: int = 5,
        seed: int = 0,
        min_fraction: float = 0.02,
        work_size: int = 0,
    ) -> None:
        """Configure GrabCut.

        Args:
            inset: margin between image and rectangle at each side, as a fraction of that side, in (0, 0.5).
            iterations: rounds of the algorithm, at least 1.
            seed: of OpenCV's random numbers, set anew for each image.
            min_fraction: the whole image is taken where the subject would be a smaller fraction of it, in [0, 1].
            work_size: an image with a shorter side is enlarged to it while GrabCut looks, in pixels; 0: never. GrabCut
                finds nothing in over half of all images of 64 x 64 pixels, in a fifth when enlarged to 192.

        Raises:
            UserError: An argument is out of its range.
        """
        check_ranges(
            "--data.masks.",
            inset=(inset, INSET),
            iterations=(iterations, COUNT),
            seed=(seed, SEED_31),
            min_fraction=(min_fraction, FRACTION),
            work_size=(work_size, COUNT_OR_NONE),
        )
        self.inset, self.iterations, self.seed = inset, iterations, seed
        self.min_fraction, self.work_size = min_fraction, work_size

    @property
    def fingerprint(self) -> str:
        """Settings and the version of OpenCV."""
        settings = f"{self.inset} {self.iterations} {self.seed} {self.min_fraction} {self.work_size}"
        return f"grabcut {settings} opencv {cv2.__version__}"

    def __call__(self, images: Iterable[Tensor]) -> Iterator[Tensor]:
        """One image after the other."""
        return (self._mask(image) for image in images)

    def _mask(self, image: Tensor) -> Tensor:
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        height, width = pixels.shape[:2]
        scale = max(1.0, self.work_size / min(height, width))
        if scale > 1:
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
        share = cv2.resize(self._grabcut(pixels).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        found = torch.from_numpy(share > 0.5)[None]
        return found if found.float().mean() >= self.min_fraction else torch.ones_like(found)

    def _grabcut(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """The algorithm itself: (H, W, 3) to (H, W)."""
        height, width = pixels.shape[:2]
        top, left = max(1, round(self.inset * height)), max(1, round(self.inset * width))
        found = np.zeros((height, width), np.uint8)
        rectangle = (left, top, width - 2 * left, height - 2 * top)
        cv2.setRNGSeed(self.seed)
        cv2.grabCut(
            pixels, found, rectangle, np.zeros((1, 65)), np.zeros((1, 65)), self.iterations, cv2.GC_INIT_WITH_RECT
        )
        return np.isin(found, (cv2.GC_FGD, cv2.GC_PR_FGD))


class SamMasks(SubjectMasks):
    """Subject by Segment Anything: one point at the centre, the best of three masks by predicted IoU.

    Runs on the GPU when there is one. Where the model finds nothing at all, the whole image is taken.

    Source: Kirillov et al., "Segment Anything", ICCV 2023; prompt as in You et al., arXiv 2502.08151.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        model_type: str = "vit_h",
        checksum: str | None = None,
        batch_size: int = 4,
    ) -> None:
        """Name the model; nothing is read before a mask is missing from the cache.

        Args:
            checkpoint: file of weights; the environment variable LIGHTNING_RECON_SAM_CHECKPOINT when not given.
            model_type: vit_h, vit_l, vit_b or another name in segment_anything.sam_model_registry.
            checksum: SHA-256 (hexadecimal) that the file must have; the published one when not given.
            batch_size: images that go through the image encoder together, at least 1.

        Raises:
            UserError: A batch size below 1, or no checksum for a model that is not one of the published three.
        """
        check_ranges("--data.masks.", batch_size=(batch_size, COUNT))
        if checksum is None and model_type not in SAM_CHECKPOINTS:
            raise UserError(
                f"no published checksum for the SAM model {model_type!r}: "
                f"choose one of {', '.join(SAM_CHECKPOINTS)} or give --data.masks.checksum"
            )
        self.checkpoint, self.model_type, self.batch_size = checkpoint, model_type, batch_size
        self.checksum = (checksum or SAM_CHECKPOINTS[model_type][1]).lower()

    @property
    def fingerprint(self) -> str:
        """Model and hash of its weights."""
        return f"sam {self.model_type} {self.checksum} centre best-of-3"

    def __call__(self, images: Iterable[Tensor]) -> Iterator[Tensor]:
        """Load the model, serve the stream batch by batch, and let the model go."""
        stream, sam = iter(images), None
        while batch := list(islice(stream, self.batch_size)):
            sam = self._load() if sam is None else sam
            yield from self._masks(sam, batch)

    @torch.inference_mode()
    def _masks(self, sam: "Sam", images: list[Tensor]) -> list[Tensor]:
        from segment_anything.utils.transforms import ResizeLongestSide

        resize, device = ResizeLongestSide(sam.image_encoder.img_size), sam.device
        prompts = []
        for image in images:
            height, width = image.shape[1:]
            scaled = np.ascontiguousarray(resize.apply_image(image.permute(1, 2, 0).numpy()))
            centre = resize.apply_coords(np.array([[width / 2, height / 2]]), (height, width))
            prompts.append(
                {
                    "image": torch.from_numpy(scaled).permute(2, 0, 1).to(device),
                    "original_size": (height, width),
                    "point_coords": torch.from_numpy(centre).float()[None].to(device),
                    "point_labels": torch.ones(1, 1, device=device),
                }
            )
        masks = []
        for answer in sam(prompts, multimask_output=True):
            best = answer["masks"][0, answer["iou_predictions"][0].argmax()].cpu()[None]
            masks.append(best if best.any() else torch.ones_like(best))
        return masks

    def _load(self) -> "Sam":
        """The model with its weights, which are checked first and never unpickled as code."""
        from segment_anything import sam_model_registry

        path, address = self._file(), self._address()
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.checksum:
            raise UserError(
                f"SAM checkpoint {path} has the SHA-256 {found} instead of {self.checksum}: "
                f"download it again{address}, or give its own --data.masks.checksum"
            )
        if self.model_type not in sam_model_registry:
            known = ", ".join(sam_model_registry)
            raise UserError(f"unknown SAM model {self.model_type!r}: --data.masks.model_type takes one of {known}")
        try:
            sam = sam_model_registry[self.model_type](checkpoint=None)
            sam.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            message = f"{path} holds no weights of SAM {self.model_type} ({reason}): give another file"
            raise UserError(message) from error
        return sam.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def _file(self) -> Path:
        given = self.checkpoint or os.environ.get("LIGHTNING_RECON_SAM_CHECKPOINT")
        remedy = "give --data.masks.checkpoint FILE or set LIGHTNING_RECON_SAM_CHECKPOINT"
        if not given:
            raise UserError(f"SamMasks has no checkpoint: download it{self._address()} and {remedy}")
        path = Path(given).expanduser()
        if not path.is_file():
            raise UserError(f"SAM checkpoint {path} does not exist: download it{self._address()} and {remedy}")
        return path

    def _address(self) -> str:
        known = SAM_CHECKPOINTS.get(self.model_type)
        return f" from {SAM_ADDRESS}{known[0]}" if known else ""
