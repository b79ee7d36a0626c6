# SPDX-License-Identifier: Apache-2.0
"""A structure that was not designed for the announced local training is never used silently."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_recon.callbacks.mismatch import mismatch_record
from lightning_recon.exchange import BatchSampling, Compression, LocalTraining, ServerPayload, Task
from lightning_recon.exchange.compression import Method
from lightning_recon.reconstruction import Mismatch, Reconstruction
from lightning_recon.structure import SeedPaper, Structure, WaterFilling
from lightning_recon.structure.modelled_training import training_mismatch

PLAIN = Task((3, 16, 16), 10, 4, 1, "none", "update", False, 1.0, 1e-3, 1, 3)
STEPS = replace(PLAIN, local=LocalTraining(batch_size=1, options={"momentum": 0.9}))
ADAM = replace(PLAIN, local=LocalTraining(epochs=2, optimizer="torch.optim.adam.Adam", learning_rates=(1e-3,)))
RMSPROP = replace(PLAIN, local=LocalTraining(optimizer="torch.optim.rmsprop.RMSprop", epochs=2))
APART = replace(ADAM, per_layer=True)
UNKNOWN = replace(PLAIN, local=LocalTraining(optimizer="their.module.Mine", epochs=2))


def test_a_structure_that_was_designed_for_the_training_is_no_mismatch() -> None:
    for task in (PLAIN, STEPS, ADAM, RMSPROP):
        assert training_mismatch(WaterFilling(units=24).payload(task), task) is None
    assert training_mismatch(SeedPaper(units=8).payload(PLAIN), PLAIN) is None
    assert training_mismatch(None, STEPS) is None
    assert training_mismatch(ServerPayload(), STEPS) is None


@pytest.mark.parametrize(
    ("structure", "designed", "actual", "words", "cost"),
    [
        # Weights 3.44, 2.71, 1.9 and 1: the geometric mean is 1.5 dB below the root mean square.
        (WaterFilling(units=24), PLAIN, STEPS, "designed for one step of plain SGD, and clients take 4", 1.50),
        (WaterFilling(units=24), PLAIN, ADAM, "2 local steps of Adam", None),
        (WaterFilling(units=24), UNKNOWN, UNKNOWN, "no code is made for the optimizer Mine, and", None),
        (WaterFilling(units=24), APART, APART, "the optimizer Adam where each tensor is clipped on its own, and", None),
        (SeedPaper(units=8), STEPS, STEPS, "measures images with the weight that local training moves", None),
    ],
)
def test_a_mismatch_is_in_the_record_and_in_one_line(
    caplog: pytest.LogCaptureFixture, structure: Structure, designed: Task, actual: Task, words: str, cost: float | None
) -> None:
    found = [Reconstruction(0, 0, torch.zeros(0, 3, 16, 16), torch.zeros(0, 3, 16, 16), 0)]
    with caplog.at_level(logging.WARNING):
        record = mismatch_record(actual, found, structure.payload(designed))
    assert record is not None
    entry = record["local_training"]
    assert isinstance(entry, dict)
    assert entry["cost_db"] == (None if cost is None else pytest.approx(cost, abs=1e-2))
    (line,) = caplog.messages
    assert entry["reason"] in line
    assert words in line


@pytest.mark.parametrize(("structure", "method"), [(SeedPaper(units=8), "top_k"), (WaterFilling(units=24), "int8")])
def test_a_code_that_is_not_made_for_the_compression_is_in_the_record(
    caplog: pytest.LogCaptureFixture, structure: Structure, method: Method
) -> None:
    task = replace(PLAIN, compression=Compression(method))
    record = mismatch_record(task, [], structure.payload(task))
    assert record is not None
    assert set(record) == {"compression"}
    assert f"no code is made for updates compressed by {method.replace('_', '-')}" in caplog.text


@pytest.mark.parametrize(("structure", "method"), [(WaterFilling(units=24), "sign"), (SeedPaper(units=8), "bfloat16")])
def test_a_code_that_is_made_for_the_compression_is_no_mismatch(structure: Structure, method: Method) -> None:
    task = replace(PLAIN, compression=Compression(method))
    assert mismatch_record(task, [], structure.payload(task)) is None
    assert mismatch_record(task, [], ServerPayload()) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compression": Compression("sign"), "aggregated": 2, "clients": 2}, "sums of several clients' signs"),
        ({"compression": Compression("sign", before_noise=True)}, "made for compression after the noise"),
        ({"compression": Compression("top_k", before_noise=True)}, "clients compress by top-k 10 % before the noise"),
    ],
)
def test_signs_are_designed_for_one_client_that_compresses_after_the_noise(
    caplog: pytest.LogCaptureFixture, changes: dict[str, Any], words: str
) -> None:
    task = replace(PLAIN, **changes)
    assert mismatch_record(task, [], WaterFilling(units=24).payload(task)) is not None
    assert words in caplog.text


def test_both_kinds_of_mismatch_have_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    images = torch.zeros(0, 3, 16, 16)
    found = [Reconstruction(0, 0, images, images, 0, mismatch=Mismatch(images=7))]
    with caplog.at_level(logging.WARNING):
        record = mismatch_record(ADAM, found, WaterFilling(units=24).payload(PLAIN))
    assert record is not None
    assert set(record) == {"local_training", "images"}
    assert len(caplog.messages) == 2
    assert mismatch_record(PLAIN, found[:0], WaterFilling(units=24).payload(PLAIN)) is None


def test_feedback_on_changing_batches_does_not_spread_its_rows(caplog: pytest.LogCaptureFixture) -> None:
    task = replace(PLAIN, per_layer=True, rounds=4, sampling=BatchSampling("shuffle", 12))
    payload = WaterFilling(units=24).payload(PLAIN)
    record = mismatch_record(task, [], payload, feedback=True)
    assert record is not None
    # The structure's single tensor has a quarter of the power; spread over 24 it would have 8/9.
    assert record["sampling"]["cost_db"] == pytest.approx(5.51, abs=0.01)
    assert "Feedback spreads no rows" in caplog.text
    assert mismatch_record(replace(task, per_layer=False), [], payload, feedback=True) is None
