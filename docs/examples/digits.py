# SPDX-License-Identifier: Apache-2.0
"""Your own data source: scikit-learn's handwritten digits.

A folder of images needs no code: `--data.root DIR`. For anything else, subclass `ClientDataModule`.

    recon fit --config quickstart.yaml --data digits.Digits
"""

from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from lightning_recon.data import ClientDataModule
from lightning_recon.data.sources import ImageSource


class Digits(ClientDataModule):
    """Clients that hold handwritten digits; the base class makes batches, masks and squares."""

    def image_source(self) -> ImageSource:
        """1797 grey images of 8 x 8 pixels in ten classes."""
        data: Any = load_digits()

        def fetch(index: int) -> tuple[Image.Image, int]:
            # 0 … 16 in the data set; the base class crops, resizes and converts to RGB.
            return Image.fromarray((data.images[index] * 15.9375).astype(np.uint8)), int(data.target[index])

        return ImageSource("scikit-learn's digits", [str(index) for index in range(len(data.images))], fetch)
