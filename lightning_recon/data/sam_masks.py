# SPDX-License-Identifier: Apache-2.0
"""Subject masks by Segment Anything, with weights that are verified before they are loaded."""

import hashlib
import os
import pickle
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lightning_recon.data.masks import SubjectMasks
from lightning_recon.errors import UserError
from lightning_recon.ranges import COUNT, check_ranges

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

# Files from the README of segment-anything, with their SHA-256. The six digits in a file name begin its MD5, which does
# not protect against tampering.
SAM_ADDRESS = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM_CHECKPOINTS = {
    "vit_h": ("sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    "vit_l": ("sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "vit_b": ("sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
}


class SamMasks(SubjectMasks):
    """Subject by Segment Anything: prompted with the center point, the mask with the highest of three predicted IoUs.

    Uses the GPU if there is one. If the model finds nothing, the whole image is the subject.

    Source: Kirillov et al., "Segment Anything", ICCV 2023; prompt as in You et al., arXiv 2502.08151.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        model_type: str = "vit_h",
        checksum: str | None = None,
        batch_size: int = 4,
    ) -> None:
        """Choose the model; the weights are read once a mask is missing from the cache.

        Args:
            checkpoint: file of weights; null: the environment variable LIGHTNING_RECON_SAM_CHECKPOINT.
            model_type: "vit_h", "vit_l", "vit_b", or another name in segment_anything.sam_model_registry.
            checksum: SHA-256 of the file, hexadecimal; null: the published one.
            batch_size: number of images in a batch of the image encoder, at least 1.

        Raises:
            UserError: the batch size is below 1, or a model other than the published three has no checksum.
        """
        check_ranges("--data.masks.", batch_size=(batch_size, COUNT))
        if checksum is None and model_type not in SAM_CHECKPOINTS:
            raise UserError(
                f"no published checksum for the SAM model {model_type!r}: "
                f"choose one of {', '.join(SAM_CHECKPOINTS)}, or give --data.masks.checksum"
            )
        self.checkpoint, self.model_type, self.batch_size = checkpoint, model_type, batch_size
        self.checksum = (checksum or SAM_CHECKPOINTS[model_type][1]).lower()

    @property
    def fingerprint(self) -> str:
        """Name of the model and hash of its weights."""
        return f"sam {self.model_type} {self.checksum} centre best-of-3"

    def __call__(self, images: Iterable[Tensor]) -> Iterator[Tensor]:
        """Process the images batch by batch; the model is loaded for the first and freed after the last."""
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
        """Load the model and its weights, which are verified first and never unpickled as code."""
        from segment_anything import sam_model_registry

        path, address = self._file(), self._address()
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.checksum:
            raise UserError(
                f"SAM checkpoint {path} has the SHA-256 {found} instead of {self.checksum}: "
                f"download it again{address}, or give the right --data.masks.checksum"
            )
        if self.model_type not in sam_model_registry:
            known = ", ".join(sam_model_registry)
            raise UserError(f"unknown SAM model {self.model_type!r}: --data.masks.model_type takes one of {known}")
        try:
            sam = sam_model_registry[self.model_type](checkpoint=None)
            sam.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            message = f"{path} does not hold weights of SAM {self.model_type} ({reason}): give another file"
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
