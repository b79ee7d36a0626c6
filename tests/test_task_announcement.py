# SPDX-License-Identifier: Apache-2.0
"""What the task announces of the clients' images decides what a server expects, unless it has a setting of its own."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lightning_recon.client import VictimClient
from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.data.sources import DataProtocol
from lightning_recon.exchange import Task
from lightning_recon.structure import (
    CuriousAbandonHonesty,
    Digital,
    Feedback,
    RobbingTheFed,
    SeedPaper,
    Structure,
    WaterFilling,
)

TASK = Task((3, 16, 16), 10, 4, 1, "convnet", "sample", False, 1.0, 0.0, 1, 4)
OURS = [WaterFilling, Digital, lambda subjects: Feedback(WaterFilling(subjects))]
PEERS = [SeedPaper, RobbingTheFed, CuriousAbandonHonesty]


@pytest.mark.parametrize(("make", "otherwise"), [(make, False) for make in OURS] + [(make, True) for make in PEERS])
def test_a_setting_of_the_server_overrides_the_announcement(make: object, otherwise: bool) -> None:
    def expects(own: bool | None, announced: bool | None) -> bool:
        structure = make(subjects=own)  # type: ignore[operator]
        assert isinstance(structure, Structure)
        return structure.statistics(replace(TASK, subjects=announced)).subjects

    assert [expects(None, announced) for announced in (True, False, None)] == [True, False, otherwise]
    assert [expects(own, announced) for own in (True, False) for announced in (True, False, None)] == [True] * 3 + [
        False
    ] * 3


def test_the_client_announces_what_the_data_module_says() -> None:
    data = ClientDataModule(image_size=16, batch_size=3, masks=NoMasks())
    data.setup()
    client = VictimClient("convnet")
    client.bind(data.client_batches)
    assert (client.task.subjects, client.task.batch_size) == (None, 3)
    client.bind(data.client_batches, DataProtocol(2, subjects=True))
    assert (client.task.subjects, client.task.batch_size) == (True, 2)


def test_a_record_of_an_earlier_version_announces_nothing(tmp_path: Path) -> None:
    record = asdict(TASK)
    del record["subjects"]
    assert Task.from_record(record).subjects is None
    announced = replace(TASK, subjects=True)
    announced.save(tmp_path)
    assert Task.load(tmp_path) == announced
