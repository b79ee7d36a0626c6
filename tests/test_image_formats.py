# SPDX-License-Identifier: Apache-2.0
"""Whole runs on images that are not 8-bit RGB squares: grey, 16 bits, many channels, oblong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lightning_recon.audit.images import embedded
from lightning_recon.cli import main
from lightning_recon.priors.fit_statistics import fit_statistics

GREY = ["--data.source", "samples_grey16", "--data.channels", "1", "--data.num_classes", "16"]
LOW_NOISE = ["--model.client.privacy.noise_multiplier", "1e-4", "--model.client.privacy.granularity", "sample"]
DIGITAL = ["--model.structure", "lightning_recon.structure.Digital", "--model.structure.jpeg_xl", "false"]
DIGITAL += ["--trainer.max_steps", "1"]


def fitted(tiny: str, root: Path, *options: str) -> dict[str, Any]:
    main(["fit", "--config", tiny, *options, "--trainer.default_root_dir", str(root)])
    record: dict[str, Any] = json.loads((root / "results.json").read_text())
    return record


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_grey_images_are_bit_exact_in_their_depth(bits: int, tiny: str, tmp_path: Path) -> None:
    record = fitted(tiny, tmp_path, *GREY, *LOW_NOISE, *DIGITAL, "--data.bit_depth", str(bits))
    assert record["summary"]["bit_exact_share"] == 1
    assert {victim["codec"] for victim in record["victims"]} == {"webp" if bits == 8 else "jpeg2000"}
    task = json.loads((tmp_path / "exchange" / "task.json").read_text())
    assert (task["image_shape"], task["bit_depth"]) == ([1, 24, 24], bits)
    (images,) = load_file(tmp_path / "reconstructions.safetensors").values()
    shown = [pixels(tmp_path / "images" / f"{number:03d}.png") for number in range(4)]
    assert {(one.shape, str(one.dtype)) for one in shown} == {((24, 24), "uint8" if bits == 8 else "uint16")}
    largest = 255 if bits == 8 else 65535
    stored = {tuple((image[0] * largest).round().int().flatten().tolist()) for image in images}
    assert {tuple(one.flatten().tolist()) for one in shown} == stored
    assert embedded(tmp_path, "images/000.png").startswith("data:image/png")
    assert (tmp_path / "comparison.png").is_file()


def test_an_image_of_16_bits_that_is_right_in_8_is_not_bit_exact(tiny: str, tmp_path: Path) -> None:
    noisy = ["--model.client.privacy.noise_multiplier", "5e-3", "--model.client.privacy.granularity", "sample"]
    record = fitted(tiny, tmp_path, *GREY, *noisy, *DIGITAL, "--data.bit_depth", "16", "--data.image_size", "48")
    assert {victim.get("codec") for victim in record["victims"]} == {"jpeg2000"}
    assert record["summary"]["bit_exact_share"] == 0
    assert record["summary"]["psnr_mean"] > record["baselines"]["mean_image_psnr"] + 10


@pytest.mark.parametrize(
    "attack",
    [
        ["--model.structure", "lightning_recon.structure.WaterFilling"],
        ["--model.structure", "lightning_recon.structure.SeedPaper", "--trainer.max_steps", "0"],
        ["--model.structure", "lightning_recon.structure.RobbingTheFed", "--trainer.max_steps", "0"],
        ["--model.structure", "lightning_recon.structure.CuriousAbandonHonesty", "--trainer.max_steps", "0"],
        ["--model.structure", "lightning_recon.structure.Feedback", "--model.client.privacy.rounds", "3"],
    ],
    ids=lambda options: options[1].rpartition(".")[2],
)
def test_all_structures_take_oblong_grey_images(attack: list[str], tiny: str, tmp_path: Path) -> None:
    options = [*GREY, "--data.bit_depth", "16", "--data.image_size", "[16, 24]", *LOW_NOISE, "--data.batch_size", "2"]
    record = fitted(tiny, tmp_path, *options, *attack)
    (images,) = load_file(tmp_path / "reconstructions.safetensors").values()
    assert images.shape[1:] == (1, 16, 24)
    assert record["summary"]["psnr_mean"] > record["baselines"]["mean_image_psnr"]


@pytest.mark.parametrize("preset", ["likelihood", "inverting_gradients", "dlg"])
def test_honest_servers_search_grey_images(preset: str, tiny: str, tmp_path: Path) -> None:
    few = ["--trainer.max_steps", "3", "--data.batch_size", "1", *LOW_NOISE, "--model.client.noise_seed", "0"]
    overlay = ["--config", f"attack/{preset}.yaml"]
    options = ["--config", "quickstart.yaml", *overlay, *GREY, "--model.client.network", "convnet", *few]
    main(["fit", *options, "--data.image_size", "[16, 24]", "--trainer.default_root_dir", str(tmp_path)])
    (images,) = load_file(tmp_path / "reconstructions.safetensors").values()
    assert images.shape == (1, 1, 16, 24)


def test_images_of_four_channels_and_16_bits(tiny: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(6, 4, 4, 4, generator=generator), size=24, mode="bicubic")
    (tmp_path / "data").mkdir()
    for number, image in enumerate((smooth.clamp(0, 1) * 65535).round()):
        np.save(tmp_path / "data" / f"{number}.npy", image.numpy().astype(np.uint16))
    options = ["--data.root", str(tmp_path / "data"), "--data.channels", "4", "--data.bit_depth", "16", *LOW_NOISE]
    with pytest.raises(SystemExit):  # nothing is bundled about such images
        fitted(tiny, tmp_path / "run", *options, *DIGITAL)
    content = fit_statistics({24: smooth.clamp(0, 1)}, None, "four sequences", grid=1)
    (tmp_path / "four.json").write_text(json.dumps(content))
    options += ["--model.structure.statistics", str(tmp_path / "four.json")]
    record = fitted(tiny, tmp_path / "run", *options, *DIGITAL)
    assert record["summary"]["bit_exact_share"] == 1
    kept = np.load(tmp_path / "run" / "images" / "000.npy")
    assert (kept.shape, kept.dtype) == ((4, 24, 24), np.uint16)
    assert pixels(tmp_path / "run" / "images" / "000.png").shape == (24, 24, 3)


def test_subjects_are_cut_out_of_grey_images(tiny: str, tmp_path: Path) -> None:
    masks = ["--data.masks", "lightning_recon.data.GrabCutMasks", "--data.masks.work_size", "96"]
    options = [*GREY, "--data.bit_depth", "16", "--data.batch_size", "6", *LOW_NOISE, *DIGITAL, *masks]
    record = fitted(tiny, tmp_path, *options)
    assert record["subject_fraction"] < 1
    assert record["summary"]["bit_exact_share"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ["--data.image_size", "[8]"],
        ["--data.value_range", "[1, 1]"],
        ["--data.value_range", "[.nan, 1]"],
        ["--data.value_range", "[0, .inf]"],
        ["--data.bit_depth", "7"],
    ],
)
def test_formats_that_do_not_exist_are_refused(wrong: list[str], tiny: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        fitted(tiny, tmp_path, *wrong)
    assert not (tmp_path / "results.json").exists()
