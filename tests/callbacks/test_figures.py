# SPDX-License-Identifier: Apache-2.0
"""The figure shows the given images in order, on white, each with its caption."""

import torch

from lightning_recon.callbacks.figures import caption, comparison_figure


def plain(*colours: tuple[float, float, float], size: int = 8) -> torch.Tensor:
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, size, size)


RED, GREEN, BLUE, GREY = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.5)


def test_each_picture_stands_in_its_row_and_column() -> None:
    columns = [("truth", plain(RED, GREEN), None), ("ours", plain(BLUE, GREY), ["12.0 dB", "bit-exact"])]
    figure = comparison_figure(columns, tile=80)
    pixels = figure.load()
    assert pixels is not None
    assert pixels[0, 0] == (255, 255, 255)
    found = []
    for y in range(figure.height):
        row = [pixels[x, y] for x in (figure.width // 4, 3 * figure.width // 4)]
        if row[0] in ((255, 0, 0), (0, 255, 0)) and (not found or found[-1] != row):
            found.append(row)
    assert found == [[(255, 0, 0), (0, 0, 255)], [(0, 255, 0), (128, 128, 128)]]


def test_numbers_add_ink_only_under_their_column() -> None:
    images = plain(RED, size=80)
    figure = comparison_figure([("a", images, None), ("a", images, ["20.0 dB"])], tile=80).convert("L")
    below = figure.crop((0, figure.height - 15, figure.width, figure.height))
    left = below.crop((0, 0, figure.width // 2, 15))
    right = below.crop((figure.width // 2, 0, figure.width, 15))
    assert left.getextrema() == (255, 255)
    assert right.getextrema()[0] < 200  # type: ignore[operator]


def test_a_long_heading_stays_in_its_column() -> None:
    images = plain(RED, size=80)
    figure = comparison_figure([("a heading that is much too long for it", images, None), ("", images, None)], tile=80)
    head = figure.convert("L").crop((figure.width // 2, 0, figure.width, 20))
    assert head.getextrema() == (255, 255)


def test_a_note_stands_below_everything_else() -> None:
    columns = [("a", plain(RED, size=80), None)]
    without, noted = (comparison_figure(columns, tile=80, note=note).convert("L") for note in ("", "a release"))
    assert noted.width == without.width
    assert noted.crop((0, 0, *without.size)).tobytes() == without.tobytes()
    below = noted.crop((0, without.height, noted.width, noted.height))
    assert below.getextrema()[0] < 200  # type: ignore[operator]


def test_a_picture_that_is_the_true_file_is_called_so() -> None:
    assert [caption(33.25, False), caption(61.0, True)] == ["33.2 dB", "bit-exact"]


def test_readme_width() -> None:
    columns = [(name, plain(RED, GREEN), None) for name in ("truth", "subject", "paper", "ours")]
    assert 800 <= comparison_figure(columns).width <= 1200
