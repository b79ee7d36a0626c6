# SPDX-License-Identifier: Apache-2.0
"""A data source of your own: scikit-learn's handwritten digits, which come with the library."""

from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from lightning_recon.data import ClientDataModule
from lightning_recon.data.sources import Pictures


class Digits(ClientDataModule):
    """Clients that hold handwritten digits; batches, masks, sizes and seeds are the business of the base class."""

    def pictures(self) -> Pictures:
        """1797 grey pictures of 8 x 8 pixels in ten classes."""
        data: Any = load_digits()

        def fetch(index: int) -> tuple[Image.Image, int]:
            # 0 … 16 in the data set; the base class cuts squares, resizes and turns into RGB.
            return Image.fromarray((data.images[index] * 15.9375).astype(np.uint8)), int(data.target[index])

        return Pictures("scikit-learn's digits", [str(index) for index in range(len(data.images))], fetch)
