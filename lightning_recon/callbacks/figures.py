# SPDX-License-Identifier: Apache-2.0
"""A figure of the same victims in several versions: photograph, training image, reconstructions."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_recon.display import Window, as_rgb, windowed

_INK = "#1f2328"
_GREY = "#59636e"
_TEXT = 0.075  # height of the letters, in tiles
_LEAST_TEXT = 13  # pixels
_GAP = 0.06
_MARGIN = 0.10
_ROW_NAME = 0.8  # width of the names at the left, in tiles


class Version(NamedTuple):
    """One version of the same victims.

    Args:
        name: Its heading.
        images: Shape (B, C, H, W), values in [0, 1]; `display.as_rgb` says which channels are drawn.
        captions: What to write under each; None for nothing.
    """

    name: str
    images: Tensor
    captions: Sequence[str] | None = None

    def first(self, count: int) -> "Version":
        """The same of the first victims alone."""
        return Version(self.name, self.images[:count], self.captions and self.captions[:count])

    def within(self, window: Window | None) -> "Version":
        """The same with values relative to a window, see `display.windowed`."""
        return Version(self.name, windowed(self.images, window), self.captions)


def caption(psnr: float, bit_exact: bool) -> str:
    """Caption of a reconstruction: its PSNR in dB, or that it is bit-exact."""
    return "bit-exact" if bit_exact else f"{psnr:.1f} dB"


def comparison_figure(
    versions: Sequence[Version | tuple[str, Tensor, Sequence[str] | None]],
    tile: int = 240,
    note: str = "",
    across: Literal["versions", "victims"] = "versions",
) -> Image.Image:
    """Draw versions of the same victims side by side, with a caption under each.

    Args:
        versions: At least one; all hold the same victims in the same order.
        tile: Height of an image in pixels. Smaller images are enlarged without smoothing when a whole number of
            times fits, else resampled.
        note: A line under the figure; broken where it is too long.
        across: What is side by side: "versions" (a row for each victim, headings above), or "victims" (a row for each
            version, its name at the left).

    Returns:
        An RGB image on white.
    """
    named = [Version(*one) for one in versions]
    height, width = named[0].images.shape[-2:]
    size = (round(tile * width / height), tile)
    cells = [list(zip(one.images, one.captions or [""] * len(one.images), strict=True)) for one in named]
    horizontal = across == "victims"
    rows = cells if horizontal else [list(row) for row in zip(*cells, strict=True)]
    gap, margin = round(tile * _GAP), round(tile * _MARGIN)
    text = max(_LEAST_TEXT, round(tile * _TEXT))
    heading = 0 if horizontal else round(2.2 * text)
    left = margin + (round(tile * _ROW_NAME) if horizontal else 0)
    captioned = [round(1.6 * text) if any(label for _, label in row) else 0 for row in rows]
    columns = len(rows[0]) if rows else 0
    least = 2 * tile if horizontal else 0  # room for a note in one line beside a single victim
    right = left + max(columns * (size[0] + gap) - gap, least) + margin
    lines = _lines(note, text, right - 2 * margin)
    bottom = margin + heading + len(rows) * (size[1] + gap) + sum(captioned) - gap + margin // 2
    canvas = Image.new("RGB", (right, bottom + (round((1.4 * len(lines) + 0.6) * text) if lines else 0)), "white")
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((margin, bottom + text * (0.5 + 1.4 * number)), line, fill=_GREY, font=_font(line, text), anchor="lt")
    if not horizontal:
        for column, one in enumerate(named):
            place = (left + column * (size[0] + gap) + size[0] // 2, margin + heading - 0.75 * text)
            draw.text(place, one.name, fill=_INK, font=_font(one.name, 1.15 * text, size[0]), anchor="ms")
    top = margin + heading
    for number, row in enumerate(rows):
        if horizontal:
            _row_name(draw, named[number].name, text, (margin, top + size[1] // 2), left - margin - gap)
        for column, (image, label) in enumerate(row):
            start = left + column * (size[0] + gap)
            canvas.paste(_tile(image, size), (start, top))
            place = (start + size[0] // 2, top + size[1] + 0.4 * text)
            draw.text(place, label, fill=_GREY, font=_font(label, text, size[0]), anchor="mt")
        top += size[1] + captioned[number] + gap
    return canvas


def _row_name(draw: ImageDraw.ImageDraw, name: str, text: float, middle: tuple[int, int], width: int) -> None:
    """Write a name at the left of its row, on as many lines as needed."""
    lines = _lines(name, 1.1 * text, width)
    for number, line in enumerate(lines):
        place = (middle[0], middle[1] + 1.4 * text * (number - (len(lines) - 1) / 2))
        draw.text(place, line, fill=_INK, font=_font(line, 1.1 * text, width), anchor="lm")


def _lines(text: str, size: float, width: int) -> list[str]:
    """Break a text between words, so that each line is at most `width` pixels wide where its words allow it."""
    font, lines = ImageFont.load_default(size), list[str]()
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _tile(image: Tensor, size: tuple[int, int]) -> Image.Image:
    values = (as_rgb(image).detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    tile = Image.fromarray(values.permute(1, 2, 0).numpy())
    whole = size[0] % tile.width == 0 and size[1] % tile.height == 0
    return tile.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def _font(text: str, size: float, width: int | None = None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # A heading wider than its column would run into the next one; hinting makes small letters a little wider.
    font = ImageFont.load_default(size)
    length = font.getlength(text)
    return font if width is None or length <= 0.95 * width else ImageFont.load_default(size * 0.95 * width / length)
