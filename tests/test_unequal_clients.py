# SPDX-License-Identifier: Apache-2.0
"""Clients whose batches differ from the announced size, from end to end."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lightning_recon.cli import main

Fit = Callable[..., dict[str, Any]]


def test_every_image_of_every_client_is_scored(fit: Fit, tmp_path: Path) -> None:
    sizes = ["--data.clients", "2", "--data.batch_size", "4", "--data.actual_batch_sizes", "[7,2]"]
    clipped_alone = ["--model.client.privacy.granularity", "sample", "--model.client.privacy.noise_multiplier", "1e-4"]
    record = fit(tmp_path / "run", *sizes, *clipped_alone, "--model.draws", "2")
    assert Counter(victim["client"] for victim in record["victims"]) == {0: 14, 1: 4}
    assert record["summary"]["victims"] == 9
    assert record["summary"]["lost_share"] == 0
    assert record["mismatch"]["images"]["announced"] == 4
    assert record["privacy"]["batch_size"] == 4
    assert len(list((tmp_path / "run" / "images").iterdir())) == 18
    main(["replay", str(tmp_path / "run"), "--output", str(tmp_path / "again")])
    first, again = (load_file(tmp_path / name / "reconstructions.safetensors") for name in ("run", "again"))
    assert {name: images.shape[0] for name, images in first.items()} == {name: len(again[name]) for name in again}
    assert all((first[name] == again[name]).all() for name in first)


def test_sizes_that_do_not_fit_the_clients_are_refused(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, "--data.clients", "2", "--data.actual_batch_sizes", "[1,2,3]")
    assert stop.value.code == 2
    assert "--data.actual_batch_sizes has 3 numbers for 2 clients" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "results.json").exists()
