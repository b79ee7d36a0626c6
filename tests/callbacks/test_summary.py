# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's text and hyperparameters name the attack, its protection and its result."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_recon.evaluation.formatting import display_name, in_words

Fit = Callable[..., dict[str, Any]]


def events(root: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(root), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


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
    assert "no attack learns more than" in verdict
    found_members = 100 * record["privacy"]["membership_tpr"]["0.01"]
    assert f"calls 1 % of the absent images present finds at most {found_members:.3g} % of those" in run
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
