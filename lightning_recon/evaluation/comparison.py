# SPDX-License-Identifier: Apache-2.0
"""One picture that says it all: victims in rows; truth, subject and reconstructions in columns."""

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_INK = "#1f2328"
_GREY = "#656d76"
_TEXT = 0.075  # height of the letters, in tiles
_GAP = 0.06
_MARGIN = 0.10


def caption(psnr: float, bit_exact: bool) -> str:
    """What to write under a reconstruction: its PSNR in dB, which says nothing more once the true file is back."""
    return "bit-exact" if bit_exact else f"{psnr:.1f} dB"


def comparison_figure(
    columns: list[tuple[str, Tensor, list[str] | None]], tile: int = 240, note: str = ""
) -> Image.Image:
    """Draw victims in rows and versions of them in columns, with a caption under each.

    Args:
        columns: Heading, images of shape (B, 3, H, W) with values in [0, 1], and what to write under each
            (None: nothing under this column); every column holds the same victims in the same order.
        tile: Height of a picture in pixels. Smaller images are enlarged without smoothing when a whole number of
            times fits, else resampled.
        note: A line under the whole picture.

    Returns:
        An RGB picture on white.
    """
    size = (round(tile * columns[0][1].shape[-1] / columns[0][1].shape[-2]), tile)
    rows = len(columns[0][1])
    gap, margin, text = (round(tile * share) for share in (_GAP, _MARGIN, _TEXT))
    heading, caption = round(2.2 * text), round(2.0 * text) if any(labels for _, _, labels in columns) else 0
    step = (size[0] + gap, size[1] + gap + caption)
    width = 2 * margin + len(columns) * step[0] - gap
    bottom = margin + heading + rows * step[1] - gap + margin // 2
    canvas = Image.new("RGB", (width, bottom + (2 * text if note else 0)), "white")
    draw = ImageDraw.Draw(canvas)
    if note:
        font = _font(note, text, width - 2 * margin)
        draw.text((margin, bottom + 0.5 * text), note, fill=_GREY, font=font, anchor="lt")
    for column, (title, images, labels) in enumerate(columns):
        left = margin + column * step[0]
        middle = left + size[0] // 2
        font = _font(title, 1.15 * text, size[0])
        draw.text((middle, margin + heading - 0.75 * text), title, fill=_INK, font=font, anchor="ms")
        for row, image in enumerate(images):
            top = margin + heading + row * step[1]
            canvas.paste(_tile(image, size), (left, top))
            if labels is not None:
                label = labels[row]
                place = (middle, top + size[1] + 0.4 * text)
                draw.text(place, label, fill=_GREY, font=_font(label, text, size[0]), anchor="mt")
    return canvas


def _tile(image: Tensor, size: tuple[int, int]) -> Image.Image:
    values = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray(values.permute(1, 2, 0).numpy())
    whole = size[0] % picture.width == 0 and size[1] % picture.height == 0
    return picture.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def _font(text: str, size: float, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # A heading wider than its column would run into the next one; hinting makes small letters a little wider.
    length = ImageFont.load_default(size).getlength(text)
    return ImageFont.load_default(size * min(1.0, 0.95 * width / length) if length else size)
