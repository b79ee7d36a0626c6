# SPDX-License-Identifier: Apache-2.0
"""A run against secure aggregation, end to end: sums are attacked, and every victim is scored as its own client's."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision.transforms.functional import to_tensor

from lightning_recon.callbacks.truth_writer import INDEX
from lightning_recon.cli import main
from lightning_recon.data import ClientDataModule, NoMasks

Fit = Callable[..., dict[str, Any]]
SUMS = ["--data.clients", "4", "--data.batch_size", "2", "--model.client.aggregated", "2"]


def test_the_victims_of_sums_are_scored_under_their_own_clients(fit: Fit, tmp_path: Path) -> None:
    comparison = ["--trainer.callbacks+", "lightning_recon.callbacks.Comparison"]
    comparison += ["--trainer.callbacks.structure", "lightning_recon.structure.SeedPaper"]
    record = fit(tmp_path, *SUMS, "--model.client.privacy.noise_multiplier", "1e-5", *comparison)
    privacy, summary = record["privacy"], record["summary"]
    assert (privacy["batch_size"], privacy["aggregated"], privacy["noise_share"]) == (2, 2, "local")
    assert (summary["clients"], summary["victims"], summary["detected"]) == (4, 8, 8)
    assert len(list((tmp_path / "exchange").glob("update-*.json"))) == 2
    assert (tmp_path / "comparison.png").exists()

    data = ClientDataModule(image_size=24, batch_size=2, clients=4, masks=NoMasks(), num_classes=16)
    data.prepare_data()
    data.setup()
    assert [(v["client"], v["index"]) for v in record["victims"]] == [(c, i) for c in range(4) for i in range(2)]
    for victim in record["victims"]:
        truth = data.client_batches[victim["client"]].images[victim["index"]]
        with Image.open(tmp_path / victim["image"]) as image:
            picture = to_tensor(image)
        assert -10 * float((picture - truth).square().mean().log10()) > 35 < victim["psnr"]
    names = [(v["client"], v["index"], v["name"]) for v in json.loads((tmp_path / INDEX).read_text())["victims"]]
    assert names == [(c, i, batch.names[i]) for c, batch in enumerate(data.client_batches) for i in range(2)]

    main(["replay", str(tmp_path), "--output", str(tmp_path / "again")])
    pictures = "reconstructions.safetensors"
    assert (tmp_path / "again" / pictures).read_bytes() == (tmp_path / pictures).read_bytes()


def test_yardsticks_are_those_of_what_the_server_sees(fit: Fit, tmp_path: Path) -> None:
    closed = ["--trainer.max_steps", "0"]
    shared = fit(tmp_path / "shared", *SUMS, "--model.client.noise_share", "distributed", *closed)
    full = fit(tmp_path / "local", *SUMS, *closed)
    alone = fit(tmp_path / "alone", *SUMS, "--model.client.aggregated", "1", *closed)
    assert shared["bounds"] == alone["bounds"]  # nothing is won by the sum: it has the noise that each one had alone
    assert shared["baselines"] == full["baselines"] == alone["baselines"]
    assert full["bounds"]["channel_nats"] == pytest.approx(alone["bounds"]["channel_nats"] / 2)
    gap = alone["bounds"]["noise_law_psnr"] - full["bounds"]["noise_law_psnr"]
    assert gap == pytest.approx(10 * math.log10(2), abs=1e-6)
