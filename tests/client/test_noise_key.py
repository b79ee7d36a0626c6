# SPDX-License-Identifier: Apache-2.0
"""Keys of the noise: no two streams alike, files that only their owner reads, one key on all ranks."""

import itertools
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.client.noise_key import NoiseKey, key_file, key_folder, load_key, save_key
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.data.sources import ClientBatch, DataProtocol
from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload

Clients, Payloads = Callable[..., VictimClient], Callable[..., ServerPayload]
Batches = Callable[[int], ClientBatch]


@pytest.mark.slow
def test_no_two_of_a_million_streams_have_equal_keys() -> None:
    names = [f"network.layer{index}.weight" for index in range(10)]
    keys = [NoiseKey.from_seed(seed) for seed in range(5)] + [NoiseKey.fresh() for _ in range(5)]
    found = np.fromiter(
        (
            key.stream_key("noise", client, draw, round, name) & (2**64 - 1)  # half of the bits must do
            for key, client, draw, round, name in itertools.product(keys, range(10), range(10), range(100), names)
        ),
        np.uint64,
    )
    assert len(found) == 1_000_000
    assert len(np.unique(found)) == len(found)


def test_no_two_streams_begin_alike() -> None:
    key = NoiseKey.from_seed(0)
    beginnings = {tuple(key.generator("noise", n).bit_generator.random_raw(2)) for n in range(5000)}  # type: ignore[attr-defined]
    assert len(beginnings) == 5000


def test_places_are_not_confused() -> None:
    key = NoiseKey.from_seed(0)
    places: list[tuple[int | str, ...]] = [(1, 2), (12,), ("1", 2), ("1 2",), ("1, 2",), (1, 2, ""), ()]
    assert len({key.stream_key(purpose, *place) for purpose in ("a", "a1") for place in places}) == 2 * len(places)


def test_what_is_public_does_not_tell_the_key() -> None:
    key = NoiseKey.fresh()
    assert len(key.secret) == 32
    assert key.secret.hex()[:8] not in key.identifier
    assert key.secret.hex() not in repr(key) + str(vars(NoiseSource()).get("seed"))
    assert repr(key.secret) not in repr(key)
    assert NoiseKey.fresh().identifier != key.identifier


def test_a_file_is_its_owners_alone(tmp_path: Path) -> None:
    folder, key = tmp_path / "new" / "keys", NoiseKey.fresh()
    path = save_key(folder, key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == [path]
    assert load_key(folder, key.identifier) == key


@pytest.mark.parametrize("content", [None, "", "zz", "00" * 32, "é"])
def test_a_missing_or_damaged_file_is_refused(tmp_path: Path, content: str | None) -> None:
    identifier = NoiseKey.fresh().identifier
    if content is not None:
        key_file(tmp_path, identifier).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"{identifier}\.key.*noise_key_folder") as raised:
        load_key(tmp_path, identifier)
    assert "--model.client.noise_key_folder" in raised.value.for_command_line


def test_the_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert key_folder(str(tmp_path)) == tmp_path
    assert key_folder(None) == Path(__import__("os").environ["LIGHTNING_RECON_NOISE_KEYS"])
    monkeypatch.delenv("LIGHTNING_RECON_NOISE_KEYS")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert key_folder(None) == tmp_path / "lightning_recon" / "noise_keys"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert key_folder(None) == Path.home() / ".local" / "state" / "lightning_recon" / "noise_keys"


def a_trainer(root: Path, sent: list[Any], rank: int) -> Any:  # noqa: ANN401
    def broadcast(one: object) -> object:
        if rank == 0:
            sent.append(one)
        return sent[0]

    strategy = SimpleNamespace(broadcast=broadcast)
    return SimpleNamespace(is_global_zero=rank == 0, strategy=strategy, default_root_dir=str(root), global_step=0)


def test_all_ranks_have_the_key_of_rank_zero_and_one_file(tmp_path: Path) -> None:
    sent: list[Any] = []
    sources = [NoiseSource(folder=str(tmp_path / "keys")) for _ in range(3)]
    own = sources[0].key
    for rank, source in enumerate(sources):
        trainer, module = a_trainer(tmp_path / "run", sent, rank), SimpleNamespace()
        source.on_fit_start(trainer, module)  # type: ignore[arg-type]
    assert [source.key for source in sources] == [own] * 3
    assert [path.name for path in (tmp_path / "keys").iterdir()] == [f"{own.identifier}.key"]


def test_a_resumed_run_has_its_key_on_all_ranks_or_on_none(tmp_path: Path) -> None:
    first = NoiseSource(folder=str(tmp_path / "keys"))
    first.on_fit_start(a_trainer(tmp_path / "run", [], 0), SimpleNamespace())  # type: ignore[arg-type]
    assert first.key.secret.hex() not in str(first.state_dict())

    def resumed() -> list[NoiseSource]:
        sources = [NoiseSource(folder=str(tmp_path / "keys")) for _ in range(2)]
        sent: list[Any] = []
        for rank, source in enumerate(sources):
            source.load_state_dict(first.state_dict())
            source.on_fit_start(a_trainer(tmp_path / "run", sent, rank), SimpleNamespace())  # type: ignore[arg-type]
        return sources

    assert [source.key for source in resumed()] == [first.key] * 2
    key_file(tmp_path / "keys", first.key.identifier).unlink()
    for source in resumed():
        with pytest.raises(UserError, match="does not exist"):
            source.generators(0, 0, 0)
        assert source.state_dict() == first.state_dict()


def test_a_run_that_fails_before_its_first_step_leaves_no_key(tmp_path: Path) -> None:
    source, trainer = NoiseSource(folder=str(tmp_path / "keys")), a_trainer(tmp_path / "run", [], 0)
    source.on_fit_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
    path = key_file(tmp_path / "keys", source.key.identifier)
    assert path.is_file()
    source.on_exception(trainer, SimpleNamespace(), UserError())  # type: ignore[arg-type]
    assert not path.exists()

    source.on_fit_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
    source.on_train_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
    source.on_exception(trainer, SimpleNamespace(), KeyboardInterrupt())  # type: ignore[arg-type]
    assert path.is_file()  # that run can be resumed


def test_a_key_is_not_kept_in_the_run_folder(tmp_path: Path) -> None:
    source = NoiseSource(folder=str(tmp_path / "run" / "keys"))
    with pytest.raises(UserError, match="in the run folder"):
        source.on_fit_start(a_trainer(tmp_path / "run", [], 0), SimpleNamespace())  # type: ignore[arg-type]


@pytest.mark.parametrize(("before", "now"), [(0, None), (None, 0), (1, 2)])
def test_a_run_is_not_resumed_under_other_noise(before: int | None, now: int | None) -> None:
    state = NoiseSource(before).state_dict()
    with pytest.raises(UserError, match=r"noise_seed is .*, but the run to be resumed had"):
        NoiseSource(now).load_state_dict(state)
    NoiseSource(before).load_state_dict(state)


def test_secret_noise_hides_one_answer_only(a_client: Clients, a_payload: Payloads) -> None:
    client = a_client(privacy=Privacy(1.0, 0.1), noise_seed=None)
    first, again = (client.share(a_payload(), 0, 0, 0).gradient for _ in range(2))
    assert torch.equal(first["structure.weight"], again["structure.weight"])
    client.share(ServerPayload(), 0, 0, 1)
    client.share(ServerPayload(), 0, 1, 0)
    for other, payload in ((client, ServerPayload()), (client.under_noise(0.5), a_payload())):
        with pytest.raises(UserError, match="answered another payload in round 0 of draw 0"):
            other.share(payload, 0, 0, 0)


def test_another_attack_on_a_client_has_a_key_of_its_own(
    tmp_path: Path, a_client: Clients, a_payload: Payloads
) -> None:
    client, trainer = a_client(privacy=Privacy(1.0, 0.1), noise_seed=None), a_trainer(tmp_path / "run", [], 0)
    client.noise_source.folder = tmp_path / "keys"
    identifiers = set()
    for payload in (a_payload(), ServerPayload()):
        trainer.strategy.broadcast = lambda one: one
        client.noise_source.setup(trainer, SimpleNamespace(), "fit")  # type: ignore[arg-type]
        client.noise_source.on_fit_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
        client.share(payload, 0, 0, 0)
        identifiers.add(client.noise_source.key.identifier)
        client.noise_source.teardown(trainer, SimpleNamespace(), "fit")  # type: ignore[arg-type]
    assert len(identifiers) == 2
    assert not list((tmp_path / "keys").iterdir())


def test_secret_noise_hides_one_state_of_the_client_only(
    a_client: Clients, a_payload: Payloads, a_batch: Batches
) -> None:
    client, payload = a_client(privacy=Privacy(1.0, 0.1), noise_seed=None), a_payload()
    state = {name: tensor.clone() for name, tensor in client.network.state_dict().items()}
    first = client.share(payload, 0, 0, 0).gradient["structure.weight"]

    def refused() -> None:
        with pytest.raises(UserError, match="in round 0 of draw 0, or this one with other images, weights or options"):
            client.share(payload, 0, 0, 0)

    client.bind([a_batch(1)])
    refused()
    client.bind([a_batch(0)], DataProtocol(2 * len(a_batch(0).labels)))
    refused()
    client.bind([a_batch(0)])
    assert torch.equal(client.share(payload, 0, 0, 0).gradient["structure.weight"], first)
    with torch.no_grad():
        next(client.network.parameters()).mul_(2)
    refused()
    client.network.load_state_dict(state)
    assert torch.equal(client.share(payload, 0, 0, 0).gradient["structure.weight"], first)
    client.network = a_client(seed=1).network  # whose parameters may have the same version
    refused()
    client.share(payload, 0, 0, 1)


@pytest.mark.parametrize("place", ["image", "label", "buffer"])
def test_changes_in_place_are_another_update(a_client: Clients, a_batch: Batches, place: str) -> None:
    client, batch = a_client("batch_norm", privacy=Privacy(1.0, 0.1), batch_norm="eval", noise_seed=None), a_batch(0)
    client.bind([batch])
    changed = {"image": batch.images, "label": batch.labels, "buffer": client.network.get_buffer("norm.running_mean")}
    before = changed[place].clone()
    first = client.share(ServerPayload(), 0, 0, 0).gradient
    changed[place][1] = 0  # the label of the second image was 1
    if place == "buffer":
        changed[place][1] = 0.1
    with pytest.raises(UserError, match="in round 0 of draw 0, or this one with other images, weights or options"):
        client.share(ServerPayload(), 0, 0, 0)
    changed[place].copy_(before)
    again = client.share(ServerPayload(), 0, 0, 0).gradient
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize("silences", [False, True])
def test_updates_follow_changes_in_place(
    a_client: Clients, a_batch: Batches, a_payload: Payloads, silences: bool
) -> None:
    def change(client: VictimClient, batch: ClientBatch) -> None:
        client.network.get_buffer("norm.running_mean")[1] = 0.1
        batch.images[1] = 0
        batch.labels[1] = 0

    payload = a_payload()
    payload = replace(payload, settings={**payload.settings, "detach_logits": silences})
    used, fresh = (a_client("batch_norm", batch_norm="eval") for _ in range(2))
    batch, again = a_batch(0), a_batch(0)
    used.bind([batch])
    before = used.share(payload, 0, 0, 0).gradient
    change(used, batch)
    change(fresh, again)
    fresh.bind([again])
    found, expected = (client.share(payload, 0, 0, 1).gradient for client in (used, fresh))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not torch.equal(found["structure.weight"], before["structure.weight"])


def test_asking_again_is_allowed_where_batch_normalization_uses_the_batch(a_client: Clients) -> None:
    client = a_client("batch_norm", privacy=Privacy(1.0, 0.1), batch_norm="train", noise_seed=None)
    first, again = (client.share(ServerPayload(), 0, 0, 0).gradient for _ in range(2))
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_a_client_that_answers_on_new_images_of_another_is_refused(a_payload: Payloads, a_batch: Batches) -> None:
    client = VictimClient("convnet", 5, privacy=Privacy(1.0, 0.1), participation=0.5)
    client.bind([a_batch(0), a_batch(1)])
    rounds = range(16)
    for round in rounds:
        client.share(a_payload(), 0, 0, round)
    client.bind([a_batch(0), a_batch(2)])
    refused = 0
    for round in rounds:
        try:
            client.share(a_payload(), 0, 0, round)
        except UserError:
            refused += 1
    assert 0 < refused < len(rounds)  # where it participates, its update is the same


def test_reproducible_noise_lets_payloads_be_compared(a_client: Clients, a_payload: Payloads) -> None:
    client = a_client(privacy=Privacy(1.0, 0.1), noise_seed=0)
    for payload in (a_payload(), ServerPayload()):
        assert client.share(payload, 0, 0, 0).reproducible_noise
