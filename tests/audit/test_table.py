# SPDX-License-Identifier: Apache-2.0
"""The table of an audit as CSV and as TensorBoard's HParams view."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_recon.audit.run import Outcome
from lightning_recon.audit.table import row_of, table_text, write_hparams

from .pages import written

MakeRun = Callable[..., Path]


def test_a_row_per_cell(sweep: list[Outcome], tmp_path: Path) -> None:
    written(tmp_path, *sweep)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert len(rows) == len(sweep)
    first = rows[0]
    assert (first["attack"], first["status"], first["epsilon_nominal"]) == ("ours", "finished", "10")
    assert float(first["epsilon_add_remove"]) == pytest.approx(1.252e7, rel=1e-3)
    assert float(first["epsilon_replace_one"]) == pytest.approx(5.004e7, rel=1e-3)
    assert float(first["gain_low"]) < float(first["gain_mean"]) == 25.75 < float(first["gain_high"])
    assert first["seconds"] == "3.25"
    wanted = {
        "mu",
        "rero_gamma_0.1",
        "membership_advantage",
        "membership_tpr_0.001",
        "noise_law_psnr",
        "gaussian_reference_psnr",
        "channel_nats",
        "oracles",
        "ssim_mean",
    }
    assert wanted | {"black_psnr", "mean_image_psnr", "detected", "collided", "false_detections"} <= set(first)


def test_tensorboard_has_the_sweep(sweep: list[Outcome], tmp_path: Path) -> None:
    for _ in range(2):  # an earlier view is replaced
        write_hparams(tmp_path, [row_of(one) for one in sweep[:2]])
    runs = sorted(path for path in (tmp_path / "hparams").iterdir() if path.is_dir())
    assert [path.name for path in runs] == ["ours0.0002", "ours0.1"]
    events = EventAccumulator(str(runs[0]))
    events.Reload()
    assert events.Scalars("audit/psnr_mean")[0].value == pytest.approx(37.75)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    row = HParamsPluginData.FromString(content).session_start_info.hparams
    assert set(row) == {"attack", "z", "epsilon"}  # whatever else is the same in all cells
    assert row["z"].number_value == 2e-4


def test_text_of_a_table() -> None:
    assert table_text([{"a": 1 / 3, "b": None}, {"a": 12345678, "c": "x,y"}]) == 'a,b,c\n0.333333,,\n12345678,,"x,y"\n'
