# SPDX-License-Identifier: Apache-2.0
"""Messages are read from disk as they were written; damaged and foreign files are refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from lightning_recon.errors import UserError
from lightning_recon.exchange import (
    Client,
    ClientUpdate,
    RecordedClient,
    ServerPayload,
    Task,
    payload_name,
    update_name,
)
from lightning_recon.files.serialization import write_json

TASK = Task((3, 32, 32), 10, 4, 1, "convnet", "update", False, 1.0, 0.1, 2, 8)


def a_payload(scale: float = 1.0) -> ServerPayload:
    tensors = {
        "gain": scale * torch.arange(6.0).view(2, 3),
        "index": torch.tensor([3, 1]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "flag": torch.tensor(True),
        "none": torch.empty(0, 5),
    }
    return ServerPayload({"strength": 1e4, "units": 3, "cancel": True, "kind": "cosine"}, tensors)


def an_update(payload: ServerPayload) -> ClientUpdate:
    generator = torch.Generator().manual_seed(0)
    gradient = {
        "structure.weight": torch.randn(5, 3, generator=generator),
        "structure.pilots": torch.randn(2, generator=generator),
        "network.weight": torch.randn(4, 4, generator=generator).T,
    }
    return ClientUpdate(client=1, draw=2, round=0, gradient=gradient, payload=payload.digest())


@pytest.fixture
def exchange(tmp_path: Path) -> Path:
    """A recorded exchange: rows 3 and 0 of the structure's weight, all of its pilots, nothing of the network."""
    TASK.save(tmp_path)
    a_payload().save(tmp_path, payload_name(0))
    keep = {"structure.weight": torch.tensor([3, 0]), "structure.pilots": None}
    an_update(a_payload()).save(tmp_path, update_name(1, 2, 0), keep)
    return tmp_path


def test_task_round_trip(tmp_path: Path) -> None:
    unclipped = dataclasses.replace(TASK, max_grad_norm=None, noise_multiplier=0.0)
    for task in (TASK, unclipped):
        task.save(tmp_path)
        assert Task.load(tmp_path) == task


def test_payload_round_trip(exchange: Path) -> None:
    sent, read = a_payload(), ServerPayload.load(exchange, payload_name(0))
    assert read.settings == sent.settings
    assert read.tensors.keys() == sent.tensors.keys()
    for name, tensor in sent.tensors.items():
        assert read.tensors[name].dtype == tensor.dtype
        assert torch.equal(read.tensors[name], tensor)
    assert read.digest() == sent.digest()


def test_digest_depends_on_everything_but_order() -> None:
    sent = a_payload()
    reordered = ServerPayload(dict(reversed(sent.settings.items())), dict(reversed(sent.tensors.items())))
    assert reordered.digest() == sent.digest()
    other = [
        a_payload(scale=2.0),
        ServerPayload({**sent.settings, "strength": 1}, sent.tensors),
        ServerPayload(sent.settings, {**sent.tensors, "gain": sent.tensors["gain"].view(3, 2)}),
        ServerPayload(sent.settings, {**sent.tensors, "index": sent.tensors["index"].int()}),
        ServerPayload(sent.settings, {("g" if k == "gain" else k): t for k, t in sent.tensors.items()}),
        ServerPayload(),
    ]
    assert len({sent.digest(), *(payload.digest() for payload in other)}) == 1 + len(other)


def test_later_payload_stores_only_what_changed(exchange: Path) -> None:
    a_payload().save(exchange, payload_name(1), like=payload_name(0))
    assert json.loads((exchange / "payload-r0001.json").read_text())["same_as"] == payload_name(0)
    assert not (exchange / "payload-r0001.safetensors").exists()
    a_payload(scale=2.0).save(exchange, payload_name(2), like=payload_name(1))
    first, last = (exchange / f"payload-r000{round}.safetensors" for round in (0, 2))
    assert last.stat().st_size < first.stat().st_size
    assert ServerPayload.load(exchange, payload_name(1)).digest() == a_payload().digest()
    assert ServerPayload.load(exchange, payload_name(2)).digest() == a_payload(scale=2.0).digest()


def test_update_keeps_the_named_rows_and_hashes_the_rest(exchange: Path) -> None:
    sent, read = an_update(a_payload()), ClientUpdate.load(exchange, update_name(1, 2, 0))
    assert (read.client, read.draw, read.round, read.payload) == (1, 2, 0, a_payload().digest())
    assert read.gradient.keys() == {"structure.weight", "structure.pilots"}
    assert torch.equal(read.gradient["structure.pilots"], sent.gradient["structure.pilots"])
    weight = read.gradient["structure.weight"]
    assert torch.equal(weight[[0, 3]], sent.gradient["structure.weight"][[0, 3]])
    assert weight[[1, 2, 4]].isnan().all()
    assert read.omitted.keys() == {"network.weight"}
    assert read.omitted["network.weight"]["shape"] == [4, 4]
    whole = dict.fromkeys(sent.gradient)
    sent.save(exchange, "whole", whole)
    again = ClientUpdate.load(exchange, "whole")
    assert all(torch.equal(again.gradient[name], tensor) for name, tensor in sent.gradient.items())
    assert again.omitted == {}


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    base = torch.arange(8.0)
    ServerPayload({}, {"left": base[:4], "all": base}).save(tmp_path, "p")
    assert torch.equal(ServerPayload.load(tmp_path, "p").tensors["left"], base[:4])


def test_recorded_client_answers_only_what_was_asked(exchange: Path) -> None:
    client = RecordedClient(str(exchange))
    assert isinstance(client, Client)
    assert client.task == TASK
    update = client.share(a_payload(), 1, 2, 0)
    assert torch.equal(update.gradient["structure.pilots"], an_update(a_payload()).gradient["structure.pilots"])
    with pytest.raises(UserError, match="this run recorded a different payload: round 0"):
        client.share(a_payload(scale=2.0), 1, 2, 0)
    with pytest.raises(UserError, match="update-c001-d003-r0000"):
        client.share(a_payload(), 1, 3, 0)
    for ending in ("json", "safetensors"):
        name = update_name(1, 2, 0)
        (exchange / f"{update_name(0, 0, 0)}.{ending}").write_bytes((exchange / f"{name}.{ending}").read_bytes())
    with pytest.raises(UserError, match="holds update-c001-d002-r0000"):
        client.share(a_payload(), 0, 0, 0)


FILES = [
    "task.json",
    "payload-r0000.json",
    "payload-r0000.safetensors",
    "update-c001-d002-r0000.json",
    "update-c001-d002-r0000.safetensors",
]


def read_all(folder: Path) -> None:
    Task.load(folder)
    ServerPayload.load(folder, payload_name(0))
    ClientUpdate.load(folder, update_name(1, 2, 0))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "garbage", "pickle", "list"])
def test_damaged_files_are_one_line(exchange: Path, name: str, damage: str) -> None:
    path = exchange / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "pickle":
        torch.save({"tensors": torch.ones(2)}, path)
    else:
        half = content[: len(content) // 2]
        path.write_bytes({"empty": b"", "half": half, "garbage": b"\xff" * 99, "list": b"[1, 2]"}[damage])
    with pytest.raises(UserError) as raised:
        read_all(exchange)
    assert name.partition(".")[0] in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("safetensors")])
def test_altered_tensors_are_noticed(exchange: Path, name: str) -> None:
    content = bytearray((exchange / name).read_bytes())
    content[-9] ^= 1
    (exchange / name).write_bytes(bytes(content))
    with pytest.raises(UserError, match="not what was recorded"):
        read_all(exchange)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("task", {"rounds_": 3}),
        ("payload-r0000", {"settings": {}}),
        ("payload-r0000", {"digest": "0"}),
        ("payload-r0000", {"format": "update 1"}),
        ("update-c001-d002-r0000", {"client": "x"}),
        ("update-c001-d002-r0000", {"whole": {"structure.weight": {"shape": [10**15, 3], "sha256": ""}}}),
        ("update-c001-d002-r0000", {"whole": {"structure.pilots": {"shape": [1, 2], "sha256": ""}}}),
        ("update-c001-d002-r0000", {"whole": {"structure.nulls": {"shape": [2], "sha256": ""}}}),
    ],
)
def test_altered_json_is_noticed(exchange: Path, name: str, change: dict[str, object]) -> None:
    path = exchange / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=name):
        read_all(exchange)


def test_a_table_cannot_point_outside_the_folder(exchange: Path) -> None:
    path = exchange / "payload-r0000.json"
    content = json.loads(path.read_text())
    content["tensors"]["gain"]["stored_in"] = "../payload-r0000"
    write_json(path, content)  # with a digest that belongs to it
    with pytest.raises(UserError, match="no file name"):
        ServerPayload.load(exchange, payload_name(0))


def test_nan_in_a_recorded_update_is_refused(exchange: Path) -> None:
    update = an_update(a_payload())
    update.gradient["structure.pilots"][1] = torch.nan
    update.save(exchange, "bad", {"structure.pilots": None})
    with pytest.raises(UserError, match=r"NaN or infinity in structure\.pilots"):
        ClientUpdate.load(exchange, "bad")


def test_unwritable_folder_is_one_line_and_harms_nothing(exchange: Path) -> None:
    before = {path.name: path.read_bytes() for path in exchange.iterdir()}
    with pytest.raises(UserError, match="cannot write"):
        a_payload().save(exchange / "task.json", "p")
    assert {path.name: path.read_bytes() for path in exchange.iterdir()} == before


def test_a_failed_write_leaves_the_old_file(exchange: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in exchange.iterdir()}
    monkeypatch.setattr("lightning_recon.files.atomic.os.replace", full_disk)
    with pytest.raises(UserError, match="No space left"):
        a_payload(scale=3.0).save(exchange, payload_name(0))
    assert {path.name: path.read_bytes() for path in exchange.iterdir()} == before
