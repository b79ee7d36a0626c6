# SPDX-License-Identifier: Apache-2.0
"""Every flag of local training and of compression, from the command line to `results.json`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LOCAL = "--model.client.local."


def test_every_flag_of_local_training_is_announced(fit: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    flags = (
        f"{LOCAL}epochs 2 {LOCAL}batch_size 1 {LOCAL}drop_last true {LOCAL}shuffle true "
        f"{LOCAL}accumulate_grad_batches 2 {LOCAL}update gradient "
        f"{LOCAL}optimizer torch.optim.SGD {LOCAL}optimizer.lr 0.2 {LOCAL}optimizer.momentum 0.9 "
        f"{LOCAL}scheduler torch.optim.lr_scheduler.StepLR {LOCAL}scheduler.step_size 2 {LOCAL}scheduler.gamma 0.5 "
        f"{LOCAL}scheduler_interval step "
        "--model.client.compression.method top_k --model.client.compression.share 0.5 "
        "--model.client.compression.per_tensor true --model.client.compression.before_noise true "
        "--data.image_size 16 --trainer.max_steps 0"
    )
    record = fit(tmp_path, *flags.split())
    local = record["local_training"]
    assert local == {
        "epochs": 2,
        "batch_size": 1,
        "drop_last": True,
        "shuffle": True,
        "accumulate_grad_batches": 2,
        "optimizer": "torch.optim.sgd.SGD",
        "options": {"momentum": 0.9},
        "learning_rates": pytest.approx([0.2, 0.2, 0.1]),
        "update": "gradient",
        "plain_step": False,
        "steps": 4,
        "words": "2 steps of SGD (lr 0.2, momentum 0.9) × 2 epochs, scheduled, shuffled",
    }
    compression = record["compression"]
    assert compression["words"] == "top-k 50 % of each tensor before the noise"
    assert {name: compression[name] for name in ("method", "share", "per_tensor", "before_noise")} == {
        "method": "top_k",
        "share": 0.5,
        "per_tensor": True,
        "before_noise": True,
    }


def test_equal_mini_batches_and_levels(fit: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    flags = (
        f"{LOCAL}steps 2 --model.client.compression.method qsgd --model.client.compression.levels 7 "
        "--data.image_size 16 --trainer.max_steps 0"
    )
    record = fit(tmp_path, *flags.split())
    assert (record["local_training"]["batch_size"], record["local_training"]["update"]) == (2, "delta")
    assert record["compression"]["words"] == "qsgd with 7 levels after the noise"
