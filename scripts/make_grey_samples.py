# SPDX-License-Identifier: Apache-2.0
"""Make the bundled grey images of 16 bits and their provenance table from the images that scikit-image carries.

    pip install scikit-image && python scripts/make_grey_samples.py lightning_recon/data/samples_grey16

Each value is the mean of a square of 25 to 196 pixels of 8 bits, so that it has more than 8 bits of its own, and is
stored in 16. Only images that scikit-image states to be CC0 or in the public domain are taken.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

SIDE = 96
LUMINANCE = np.array([0.299, 0.587, 0.114])

# Name in skimage.data, class folder, title, author, licence.
IMAGES = (
    ("brick", "brick", "Brick wall", "CC0Textures", "CC0-1.0"),
    ("camera", "photographer", "Photographer with camera", "Lav Varshney", "CC0-1.0"),
    ("cell", "cell", "Cell floating in saline, quantitative phase image", "Paul Müller and others", "CC0-1.0"),
    ("gravel", "gravel", "Gravel", "CC0Textures", "CC0-1.0"),
    ("hubble_deep_field", "galaxies", "Hubble eXtreme Deep Field", "NASA", "public domain (NASA)"),
    ("retina", "retina", "Human retina", "Mikael Häggström", "CC0-1.0"),
)


def main() -> None:
    """Write every image and README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="where the class folders go")
    options = parser.parse_args()
    rows = []
    for name, folder, title, author, licence in IMAGES:
        path = f"{folder}/{name}.png"
        target = options.output / path
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(averaged(getattr(skimage.data, name)())).save(target, optimize=True)
        cells = (f"`{path}`", title, author, licence, f"scikit-image {skimage.__version__}, skimage.data.{name}")
        rows.append(f"| {' | '.join(cells)} |")
    header = (
        "# Grey images of 16 bits\n\n"
        f"{SIDE} × {SIDE} pixels, made by `scripts/make_grey_samples.py`: each value is the mean luminance of a square "
        "of 25 to 196\npixels of the original's centre, times 257. All are CC0 or in the public domain; one class "
        "folder each.\n\n| file | title | author | licence as stated at the source | source |\n|---|---|---|---|---|\n"
    )
    (options.output / "README.md").write_text(header + "\n".join(sorted(rows)) + "\n", "utf-8")


def averaged(image: np.ndarray) -> np.ndarray:
    """Means over the largest squares that the image's centre has `SIDE` of in each direction; (SIDE, SIDE) uint16."""
    grey = image.astype(np.float64) if image.ndim == 2 else image[..., :3] @ LUMINANCE
    width = min(grey.shape) // SIDE
    top, left = ((length - width * SIDE) // 2 for length in grey.shape)
    centre = grey[top : top + width * SIDE, left : left + width * SIDE]
    means = centre.reshape(SIDE, width, SIDE, width).mean(axis=(1, 3))
    return (means * 257).round().astype(np.uint16)


if __name__ == "__main__":
    main()
