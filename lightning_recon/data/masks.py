# SPDX-License-Identifier: Apache-2.0
"""Find the subject of an image.

`SubjectMasks` maps an iterator of images to an iterator of masks, so that a large model stays in memory only as long as
images are processed.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_recon.ranges import COUNT, COUNT_OR_NONE, FRACTION, SEED_31, Range, check_ranges

INSET = Range("a number above 0 and below 0.5", 0, 0.5, inner=True)


class SubjectMasks(ABC):
    """A way to find the subject of each image."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Everything that masks depend on besides the image; part of the key of the cache."""

    @abstractmethod
    def __call__(self, images: Iterable[Tensor]) -> Iterator[Tensor]:
        """Find the subjects.

        Args:
            images: each (3, H, W) uint8, RGB; read lazily.

        Yields:
            The mask of each image in order, (1, H, W) bool, true on the subject.
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
    """Subject by OpenCV's GrabCut, initialized with a rectangle; needs no weights.

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
            inset: margin between image and rectangle on each side, as a fraction of that side, in (0, 0.5).
            iterations: iterations of the algorithm, at least 1.
            seed: seed of OpenCV's random numbers, set again for each image.
            min_fraction: the whole image is the subject if GrabCut finds a smaller fraction of it, in [0, 1].
            work_size: smaller images are enlarged to this side for GrabCut, in pixels; 0: never. GrabCut finds no
                subject in over half of all images of 64 x 64 pixels, and in a fifth of them if enlarged to 192.

        Raises:
            UserError: an argument is out of its range.
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
        """Process one image after the other."""
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
        """GrabCut itself: pixels (H, W, 3) to mask (H, W)."""
        height, width = pixels.shape[:2]
        top, left = max(1, round(self.inset * height)), max(1, round(self.inset * width))
        found = np.zeros((height, width), np.uint8)
        rectangle = (left, top, width - 2 * left, height - 2 * top)
        cv2.setRNGSeed(self.seed)
        cv2.grabCut(
            pixels, found, rectangle, np.zeros((1, 65)), np.zeros((1, 65)), self.iterations, cv2.GC_INIT_WITH_RECT
        )
        return np.isin(found, (cv2.GC_FGD, cv2.GC_PR_FGD))
