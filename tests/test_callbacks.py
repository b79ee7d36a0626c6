# SPDX-License-Identifier: Apache-2.0
"""The audience shows what it is told to, fairly, and says what protection was attacked."""

import shlex
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_recon.callbacks.console_tables import privacy_line
from lightning_recon.callbacks.figures import Version, caption, comparison_figure
from lightning_recon.callbacks.reconstruction_file import finished
from lightning_recon.cli import main
from lightning_recon.client import VictimClient
from lightning_recon.errors import UserError
from lightning_recon.evaluation.formatting import display_name, in_words
from lightning_recon.evaluation.results import privacy_record
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task

Fit = Callable[..., dict[str, Any]]


def events(root: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(root), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


@pytest.mark.parametrize(
    ("steps", "further", "shown"),
    [(0, [], [0]), (5, [], [0, 1, 2, 4, 5]), (6, ["--image_grid.every_n_steps", "3"], [0, 1, 2, 3, 4, 6])],
)
def test_the_search_is_shown_at_the_start_at_powers_of_two_and_at_the_end(
    fit: Fit, tmp_path: Path, steps: int, further: list[str], shown: list[int]
) -> None:
    flags = ["--trainer.max_steps", str(steps), "--image_grid.clients", "1", "--trainer.log_every_n_steps", "50"]
    record = fit(tmp_path, "--data.clients", "2", *flags, *further)
    found = events(tmp_path)
    assert found.Tags()["images"] == ["client_0"]
    assert [image.step for image in found.Images("client_0")] == shown
    for name in ("psnr", "ssim", "mean_image_psnr", "objective"):
        assert [scalar.step for scalar in found.Scalars(name)] == shown, name
    first = [victim for victim in record["victims"] if victim["client"] == 0]
    for name, field in (("psnr", "psnr"), ("ssim", "ssim")):
        assert found.Scalars(name)[-1].value == pytest.approx(sum(v[field] for v in first) / len(first), abs=1e-3)
    assert len({scalar.value for scalar in found.Scalars("mean_image_psnr")}) == 1


def test_a_picture_has_a_row_for_each_version_and_no_more_victims_than_fit(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_steps", "0", "--image_grid.columns", "3")
    (image,) = events(tmp_path).Images("client_0")
    with Image.open(BytesIO(image.encoded_image_string)) as picture:
        pixels = np.asarray(picture.convert("L"), dtype=int)
    # Tiles of 24 pixels six times as large: photograph, subject, decoded, refined; three of four victims.
    assert 4 * 144 < pixels.shape[0] < 5 * 144
    assert 3 * 144 + 100 < pixels.shape[1] < 4.5 * 144
    names = pixels[:, 15:100]
    written = [rows.min() < 100 for rows in np.array_split(names, 4)]
    assert written == [True] * 4


def test_the_objective_falls(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_steps", "5")
    losses = [scalar.value for scalar in events(tmp_path).Scalars("objective")]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("further", [[], ["--config", "attack/likelihood.yaml"]], ids=["malicious", "honest"])
def test_text_and_hyperparameters_say_what_was_attacked_and_what_came_of_it(
    fit: Fit, tmp_path: Path, further: list[str]
) -> None:
    record = fit(tmp_path, "--trainer.max_steps", "1", *further)
    found = events(tmp_path)
    assert len(list(tmp_path.glob("events.out.tfevents*"))) == 1
    (run,), (verdict,) = (
        [tensor.tensor_proto.string_val[0].decode() for tensor in found.Tensors(f"{name}/text_summary")]
        for name in ("run", "verdict")
    )
    epsilon = record["privacy"]["epsilon_accounted"]
    assert f"accounted ε = {in_words(epsilon)} at δ = 1e-05 (add/remove)" in run
    assert f"    recon fit --config {shlex.quote(str(tiny_of(run)))}" in run
    assert f"--trainer.default_root_dir {tmp_path}" in run
    assert f"PSNR {record['summary']['psnr_mean']:.1f} dB on average" in verdict
    assert "Theoretical limit" in verdict
    content = found.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    assert [info.name for info in experiment.hparam_infos] == ["attack", "z", "epsilon"]
    assert experiment.metric_infos[0].name.tag == "psnr_mean"
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    row = HParamsPluginData.FromString(content).session_start_info.hparams
    assert row["attack"].string_value == display_name(record["attack"])
    assert (row["z"].number_value, row["epsilon"].number_value) == (0.01, pytest.approx(epsilon))


def tiny_of(text: str) -> str:
    """The config that a command in a text names."""
    return shlex.split(text.partition("recon fit --config ")[2])[0]


def test_perceptual_distances_are_recorded_where_they_can_be_had(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "lpips_mean" not in fit(tmp_path / "without", "--trainer.max_steps", "0")["summary"]
    monkeypatch.setattr(
        "lightning_recon.callbacks.run_record.lpips_per_image",
        lambda pictures, truth: pictures[:, 0, 0, 0] * 0 + 0.25,
    )
    assert fit(tmp_path / "with", "--trainer.max_steps", "0")["summary"]["lpips_mean"] == 0.25


SEED_PAPER, LINEAR = "lightning_recon.structure.SeedPaper", "lightning_recon.structure.WaterFilling"
OLD_STYLE = ["--trainer.callbacks+", "lightning_recon.callbacks.Comparison", "--trainer.callbacks.title", "twin"]


@pytest.mark.parametrize(
    ("flags", "beside", "attack"),
    [
        ([], ["mean image"], "linear code (ours)"),
        (["--comparison.structure", SEED_PAPER], ["seed paper"], "linear code (ours)"),
        ([*OLD_STYLE, "--trainer.callbacks.structure", SEED_PAPER], ["twin"], "linear code (ours)"),
        (["--comparison.structure", LINEAR], ["mean image"], "linear code (ours)"),  # the attack itself
        (["--config", "attack/paper.yaml", "--comparison.structure", SEED_PAPER], ["mean image"], "seed paper"),
        (["--config", "attack/robbing_the_fed.yaml"], ["mean image"], "Robbing the Fed"),
        (
            ["--config", "attack/inverting_gradients.yaml", "--comparison.structure", SEED_PAPER],
            ["mean image"],  # an honest server has no structure to compare with
            "Inverting Gradients",
        ),
    ],
    ids=["alone", "rival", "older config", "own rival", "rival's own run", "a peer", "honest"],
)
def test_columns_are_named_and_threat_models_are_not_mixed(
    fit: Fit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    beside: list[str],
    attack: str,
) -> None:
    drawn: list[list[Version]] = []

    def listened(versions: list[Version], note: str) -> Image.Image:
        drawn.append(versions)
        return comparison_figure(versions, note=note)

    monkeypatch.setattr("lightning_recon.callbacks.comparison.comparison_figure", listened)
    record = fit(tmp_path, *flags, "--trainer.max_steps", "0", "--results.show", "true")
    (versions,) = drawn
    assert [one.name for one in versions] == ["photograph", "what the client used", *beside, attack]
    assert versions[-1].captions == [caption(victim["psnr"], victim["bit_exact"]) for victim in record["victims"]]
    said = " ".join(capsys.readouterr().out.split())
    assert f"first client: {beside[0]} " in said
    assert f", {attack} {record['summary']['psnr_mean']:.1f} dB" in said
    assert f"{attack}: 4 victims" in said
    assert "lightning_recon 1" not in said
    assert (tmp_path / "comparison.png").is_file()


def test_a_rival_gets_a_release_of_its_own_as_does_the_attack_under_more_noise(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share, asked = VictimClient.share, []

    def listened(self: VictimClient, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        asked.append((draw, self.privacy.noise_multiplier))
        return share(self, payload, client, draw, round)

    monkeypatch.setattr(VictimClient, "share", listened)
    rival = ["--comparison.structure", SEED_PAPER, "--comparison.noise_factor", "5"]
    fit(tmp_path, "--trainer.max_steps", "1", "--model.draws", "2", *rival)
    assert asked == [(0, 0.01), (1, 0.01), (2, 0.01), (3, 0.05)]  # noise that nobody has seen
    assert len(list((tmp_path / "exchange").glob("update-*.json"))) == 2


def test_a_rival_that_cannot_be_shipped_costs_the_run_nothing(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(self: object, task: Task) -> ServerPayload:
        raise UserError("too small")

    monkeypatch.setattr("lightning_recon.structure.SeedPaper.payload", refused)
    record = fit(tmp_path, "--trainer.max_steps", "0", "--comparison.structure", SEED_PAPER)
    assert record["summary"]["victims"] == 4
    assert "no comparison with seed paper: too small" in capsys.readouterr().out
    assert (tmp_path / "comparison.png").is_file()


@pytest.mark.parametrize("flag", ["image_grid.columns", "image_grid.every_n_steps", "comparison.victims"])
def test_counts_of_nothing_are_refused(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", tiny, "--trainer.default_root_dir", str(tmp_path / "run"), f"--{flag}", "0"])
    assert stop.value.code == 2
    assert "give a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "no finite"), (0.0, "0"), (0.333, "0.333"), (8.0, "8"), (970.4, "970"), (5430.0, "5,430"),
        (78900.0, "about 79,000"), (1.252e7, "about 13 million"), (9.96e5, "about 1 million"),
        (1.3e9, "about 1.3 billion"), (1e-5, "1e-05"), (3e20, "3e+20"),
    ],
)  # fmt: skip
def test_numbers_in_sentences(value: float | None, words: str) -> None:
    assert in_words(value) == words


def test_names_are_safe_to_show() -> None:
    assert display_name("digital") == "digital code (ours)"
    assert display_name("x\x1b[31m\n\udcff$y$") == "x\\x1b[31m\\n\\xff$y$"


@pytest.mark.parametrize(
    ("clip", "layers", "noise", "says"),
    [
        (None, False, 0.0, ["no clipping,", "no noise", "no privacy guarantee"]),
        (None, True, 0.0, ["no clipping,", "no noise", "no privacy guarantee"]),
        (10.0, False, 0.0, ["clip 10 per update,", "no noise", "no privacy guarantee"]),
        (10.0, True, 2e-4, ["clip 10 per update and layer,", "nominal epsilon 10,"]),
        (
            10.0,
            False,
            2e-4,
            ["clip 10 per update,", "nominal epsilon 10,", "accounted epsilon 1.25e+07 at delta 1e-05"],
        ),
    ],
)
def test_the_protection_in_one_line(clip: float | None, layers: bool, noise: float, says: list[str]) -> None:
    record = privacy_record(
        granularity="update",
        per_layer=layers,
        max_grad_norm=clip,
        noise_multiplier=noise,
        rounds=1,
        batch_size=4,
        delta=1e-5,
        adjacency="add_remove",
    )
    line = privacy_line(record)
    assert all(part in line for part in says)
    assert "\n" not in line


def test_an_unfinished_run_has_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reconstructions\.safetensors"):
        finished(tmp_path)
