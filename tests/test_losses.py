# SPDX-License-Identifier: Apache-2.0
"""`recon fit` against clients that learn something else than one class."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_recon.cli import main
from lightning_recon.exchange import Task

Fit = Callable[..., dict[str, Any]]
MASKS = (
    "--model.client.network", "pixel_convnet", "--data.masks", "lightning_recon.data.GrabCutMasks",
    "--data.targets", "masks", "--data.image_size", "24",
)  # fmt: skip


@pytest.mark.parametrize("granularity", ["sample", "update"])
@pytest.mark.parametrize(
    ("loss", "flags"),
    [
        ("binary_cross_entropy", ()),
        ("mean_squared_error", ()),
        ("binary_cross_entropy", (*MASKS, "--model.client.num_classes", "1")),
        ("dice", (*MASKS, "--model.client.num_classes", "1")),
        ("dice_bce", (*MASKS, "--model.client.num_classes", "1")),
        ("cross_entropy", (*MASKS, "--model.client.num_classes", "2")),
    ],
)
def test_without_noise_every_image_arrives(
    fit: Fit, tmp_path: Path, loss: str, flags: tuple[str, ...], granularity: str
) -> None:
    record = fit(
        tmp_path, *flags, "--model.client.loss", loss, "--model.client.privacy.granularity", granularity,
        "--model.client.privacy.noise_multiplier", "0.0", "--trainer.max_steps", "0",
    )  # fmt: skip
    assert record["summary"]["detected"] == 4
    assert min(one["psnr"] for one in record["victims"]) > 45
    assert Task.load(tmp_path / "exchange").loss == loss


@pytest.mark.parametrize(
    ("loss", "network", "outputs", "targets"),
    [("binary_cross_entropy", "convnet", "16", "labels"), ("dice_bce", "pixel_convnet", "1", "masks")],
)
def test_a_network_is_trained_on_other_targets(
    tmp_path: Path, loss: str, network: str, outputs: str, targets: str
) -> None:
    main([
        "fit", "--model", "VictimClient", "--data", "ClientDataModule", "--data.image_size", "24",
        "--data.batch_size", "3", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
        "--trainer.logger", "false", "--model.network", network, "--model.num_classes", outputs,
        "--model.loss", loss, "--data.targets", targets, "--trainer.default_root_dir", str(tmp_path),
    ])  # fmt: skip
    assert list(tmp_path.rglob("*.ckpt"))
