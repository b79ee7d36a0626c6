# SPDX-License-Identifier: Apache-2.0
"""The announced local training: its steps, and the records of earlier versions that it replaces."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lightning_recon.exchange import Compression, LocalTraining, Task

TASK = Task((3, 16, 16), 10, 8, 1, "convnet", "update", False, 1.0, 0.0, 1, 4)


def earlier(**fields: Any) -> Task:  # noqa: ANN401 - content of a record
    """The task that a record of an earlier version announces."""
    record = asdict(TASK)
    del record["local"], record["compression"]
    return Task.from_record({**record, **fields})


def test_records_of_earlier_versions_mean_plain_sgd() -> None:
    assert earlier().local == earlier(local_steps=1, local_lr=0.1, local_epochs=1).local == LocalTraining()
    assert earlier(local_steps=4, local_rate=0.5, local_epochs=3).local == LocalTraining(
        epochs=3, batch_size=2, learning_rates=(0.5,)
    )
    assert earlier(local_epochs=2, local_lr=0.3).local.steps(8) == 2
    assert earlier().compression is None
    with pytest.raises(ValueError, match="local_steps is 3, which does not divide"):
        earlier(local_steps=3)


def test_everything_announced_is_read_again(tmp_path: Path) -> None:
    options: dict[str, float | bool | list[float]] = {"betas": [0.9, 0.999], "eps": 1e-8, "amsgrad": True}
    local = LocalTraining(2, 3, True, True, 2, "torch.optim.adam.Adam", options, (0.1, 0.05), "delta")
    task = replace(TASK, local=local, compression=Compression("top_k", 0.01, per_tensor=True))
    task.save(tmp_path)
    assert Task.load(tmp_path) == task


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("learning_rates", []),
        ("learning_rates", [0.0]),
        ("options", {"momentum": "0.9"}),
        ("update", "weights"),
        ("steps", 2),
    ],
)
def test_records_out_of_bounds_are_refused(field: str, value: object) -> None:
    record = asdict(TASK)
    record["local"] = {**record["local"], field: value}
    with pytest.raises(ValueError, match=field):
        Task.from_record(record)


def test_the_last_mini_batch_is_smaller_or_dropped() -> None:
    local = LocalTraining(epochs=2, batch_size=3)
    assert (local.batches(8), local.steps(8), local.steps(9)) == (3, 6, 6)
    assert replace(local, drop_last=True).steps(8) == 4
    assert replace(local, accumulate_grad_batches=2).steps(8) == 4
    with pytest.raises(ValueError, match="drops the rest"):
        Task.from_record({**asdict(TASK), "local": {"batch_size": 9, "drop_last": True}})


def test_only_one_step_of_plain_sgd_sends_the_gradient_itself() -> None:
    assert LocalTraining().is_plain_step
    for changes in ({"epochs": 2}, {"batch_size": 8}, {"update": "delta"}, {"options": {"momentum": 0.9}}):
        assert not replace(LocalTraining(), **changes).is_plain_step  # type: ignore[arg-type]
    assert [LocalTraining(learning_rates=(0.3, 0.2)).learning_rate(step) for step in range(3)] == [0.3, 0.2, 0.2]
