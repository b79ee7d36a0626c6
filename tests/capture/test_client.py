# SPDX-License-Identifier: Apache-2.0
"""Captured files answer like a client, and only what they hold."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_recon.capture import CapturedClient, CapturedUpdate, load_captured, save_captured
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, ServerPayload


@pytest.fixture(scope="module")
def good(single: Path) -> CapturedUpdate:
    return load_captured(single / "update-d0.safetensors")


def saved(root: Path, *updates: CapturedUpdate) -> Path:
    for index, update in enumerate(updates):
        save_captured(root / f"{index}.safetensors", update)
    return root


def test_it_answers_with_what_the_file_holds(single: Path, good: CapturedUpdate, payload: ServerPayload) -> None:
    for path in (single, single / "update-d0.safetensors"):
        client = CapturedClient(path)
        assert isinstance(client, Client)
        assert client.task == good.task
        update = client.share(payload, 0, 0, 0)
        assert (update.client, update.draw, update.round, update.payload) == (0, 0, 0, payload.digest())
        assert torch.equal(update.gradient["structure.weight"], 4 * good.tensors["structure.weight"])


def test_every_round_and_client_has_its_own_file(good: CapturedUpdate, payload: ServerPayload, tmp_path: Path) -> None:
    task = replace(good.task, rounds=2, clients=2)
    places = [(client, round) for client in range(2) for round in range(2)]
    updates = [replace(good, task=task, client=client, round=round) for client, round in places]
    client = CapturedClient(saved(tmp_path, *updates))
    for number, round in places:
        assert client.share(payload, number, 0, round).round == round


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root, good: root, "holds no captured update"),
        (lambda root, good: saved(root, replace(good, round=1)), r"holds rounds 1, but the task announces 1"),
        (lambda root, good: saved(root, replace(good, task=replace(good.task, rounds=3))), "rounds 0, .* announces 3"),
        (
            lambda root, good: saved(root, replace(good, task=replace(good.task, clients=2))),
            "clients 0, .* announces 2",
        ),
        (lambda root, good: saved(root, good, good), "both hold update-c000-d000-r0000: remove one of them"),
        (
            lambda root, good: saved(root, good, replace(good, draw=1, task=replace(good.task, noise_multiplier=1.0))),
            "another task than the files beside it",
        ),
        (lambda root, good: saved(root, good, replace(good, draw=2)), "lacks update-c000-d001-r0000"),
    ],
)
def test_a_folder_must_be_of_one_task_and_whole(
    tmp_path: Path, good: CapturedUpdate, make: Callable[[Path, CapturedUpdate], Path], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        CapturedClient(make(tmp_path, good))


def test_there_are_as_many_draws_as_were_captured(single: Path, payload: ServerPayload) -> None:
    with pytest.raises(UserError, match=r"holds no update-c000-d001-r0000: .*draws") as raised:
        CapturedClient(single).share(payload, 0, 1, 0)
    assert "--model.draws" in raised.value.for_command_line


def test_what_is_wrong_with_a_file_names_it(
    single: Path, good: CapturedUpdate, payload: ServerPayload, tmp_path: Path
) -> None:
    shutil.copy(single / "update-d0.safetensors", tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match=r"mine.safetensors: this update answers the payload"):
        CapturedClient(tmp_path).share(ServerPayload(), 0, 0, 0)
    save_captured(tmp_path / "mine.safetensors", replace(good, convention="delta"))
    with pytest.raises(UserError, match=r"mine.safetensors: convention delta needs granularity update"):
        CapturedClient(tmp_path).check(payload, None)
