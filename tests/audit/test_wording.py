# SPDX-License-Identifier: Apache-2.0
"""The verdict in sentences: levels, bit-exact images, the smallest sufficient noise, and no promises."""

import json
from collections.abc import Callable
from pathlib import Path

from lightning_recon.audit.run import Outcome

from .pages import Page, outcome, written

MakeRun = Callable[..., Path]


def test_the_verdict_states_what_was_measured(sweep: list[Outcome], tmp_path: Path) -> None:
    text = Page(written(tmp_path, *sweep)).text
    assert (
        "4 privacy settings were audited: reconstructions were recognisable under 1; reconstructions were better than "
        "the mean image, but not recognisable, under 1; no attack exceeded the mean image by more than 0.5 dB under 1; "
        "there were too few images to decide under 1." in text
    )
    # 2e-4: what the paper's formula calls 10 is an accounted 1.25e7; 0.6 is 8.
    assert (
        "At accounted ε = about 13 million (add/remove; about 50 million for replace one), δ = 1e-5 (nominal ε = 10 by "
        "the seed paper's formula), z = 0.0002: "
        "reconstructions are recognisable." in text
    )
    assert "“ours” reaches 37.8 dB, 25.8 dB above the mean image" in text
    assert (
        "At accounted ε = 8 (add/remove; 19.1 for replace one), δ = 1e-5, z = 0.6: no attack exceeds the mean image by "
        "more than 0.5 dB on average" in text
    )
    assert "z = 0.3 (accounted ε = 19.1). With the whole 95 % confidence interval within the tolerance: z = 0.6" in text
    assert "At z = 0.1, the whole interval lies above the tolerance, so the threshold lies between" in text
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["settings"][0]["smallest_noise"] == {"exceeded": 0.1, "mean": 0.3, "sure": 0.6}
    assert len(told["cells"]) == 8


def test_bit_exact_images_are_counted_with_an_interval(make_run: MakeRun, tmp_path: Path) -> None:
    quiet, names = ((88.0, 88.0), (88.0, 30.0), (20.0, 20.0)), ["cat/a", "cat/b", "cat/c"]
    found = {
        2e-4: (("digital", ((True, True), (True, False), (False, False))), ("linear", ((False, False),) * 3)),
        0.1: (("linear", ((False, False),) * 3),),
        0.3: (("linear", ((False, False),) * 3),),
    }
    outcomes = [
        outcome(make_run(f"{attack}{z}", attack, z=z, gains=quiet, names=names, exact=exact))
        for z, runs in found.items()
        for attack, exact in runs
    ]
    text = Page(written(tmp_path, *outcomes)).text
    # Bit-exact images are counted in addition to the levels.
    assert (
        "3 privacy settings were audited: reconstructions were recognisable under 3. Under 1 of them, images were "
        "reconstructed bit for bit." in text
    )
    # Clopper and Pearson's interval of 2 of 3.
    assert (
        "z = 0.0002, 3 images per client: 2 of 3 images were reconstructed bit for bit in at least one of 2 noise "
        "draws (1 in all of them), by “digital code (ours)” (95 % confidence interval of the share of such images: "
        "9 to 99 %)."
    ) in text
    # 1 - 0.025 ** (1 / 3).
    assert (
        "At z = 0.1 and 0.3, no attack reconstructed any of 3 images bit for bit (95 % confidence interval of the "
        "share of such images: 0 to 71 %)."
    ) in text
    assert "the best single image is bit-exact" in text
    assert text.count("bit-exact") == 3  # captions of the first draw, and the sentence above
    told = json.loads((tmp_path / "report.json").read_text())
    assert len(told["settings"][0]["bit_exact"]) == 2


def test_the_report_promises_nothing(sweep: list[Outcome], tmp_path: Path) -> None:
    text = Page(written(tmp_path, *sweep)).text
    for phrase in (" safe", "DP is broken", "privacy is broken", "impossible to", "guarantees that"):
        assert phrase not in text


def test_a_setting_without_detections_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    blind = outcome(make_run("blind", gains=((0.0,), (0.0,)), detected=False, z=3.0))
    text = Page(written(tmp_path, blind)).text
    assert "no attack detected any of the 2 images" in text
    # Clopper and Pearson's: 1 - 0.025 ** (1 / 2).
    assert "No attack detected any of the 2 images there; with so few images, the share that can be detected" in text
    assert "may still be up to 84 %" in text
    assert "12.0 dB, not detected" in text
