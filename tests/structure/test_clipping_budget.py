# SPDX-License-Identifier: Apache-2.0
"""The structure has the whole clipping budget, and a server notices from the rows alone if it has not."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from lightning_recon.attack.protocol import run_protocol
from lightning_recon.client import VictimClient
from lightning_recon.data import ClientBatch
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.structure import Digital, Structure, WaterFilling
from lightning_recon.structure.clipping_budget import BudgetShare, mean_share, structure_share
from lightning_recon.structure.detection.wiener import RowPrior
from tests.local_sgd import local_sgd

Photographs = Callable[[int], Tensor]
Score = Callable[[Tensor, Tensor], Tensor]
Granularity = Literal["sample", "update"]
SIZE, CLASSES = 16, 4


class Sure(nn.Module):
    """A network that is as sure of class 0 as float32 can just say: 1 - p is 4e-9."""

    def __init__(self, num_classes: int, lead: float = 18.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(0, -1, num_classes))
        self.lead = lead

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.bias + self.lead * torch.eye(len(self.bias))[0]
        return logits + 1e-3 * images.mean(dim=(1, 2, 3))[:, None]


def client_of(images: Tensor, privacy: Privacy, network: nn.Module | str = "convnet", **options: int) -> VictimClient:
    """Clients of equal batches; their labels take turns, but a given network is right."""
    client = VictimClient(
        network if isinstance(network, str) else "convnet", CLASSES, privacy=privacy, **options, noise_seed=0
    )
    labels = torch.arange(len(images)) % CLASSES
    if isinstance(network, nn.Module):
        client.network, labels = network, torch.zeros_like(labels)
    size = len(images) // options.get("aggregated", 1)
    masks = torch.ones_like(images[:, :1], dtype=torch.bool)
    client.bind(
        [
            ClientBatch(part, part, mask, classes, [""] * size)
            for part, mask, classes in zip(images.split(size), masks.split(size), labels.split(size), strict=True)
        ]
    )
    return client


def share_of(client: VictimClient, structure: Structure, draw: int = 0) -> BudgetShare:
    found = run_protocol(client, structure, structure.payload(client.task), 0, draw, None).share
    assert found is not None
    return found


@pytest.mark.parametrize("code", [WaterFilling, Digital])
def test_batch_normalisation_over_two_numbers_takes_the_budget_of_an_attached_structure_alone(
    photographs: Photographs, matched_psnr: Score, code: Callable[..., Structure]
) -> None:
    images = photographs(32)[:2]
    client = client_of(images, Privacy(10.0, 2e-4), "resnet18")
    found = {}
    for name, structure in {
        "default": code(),
        "strong": code(detach_logits=False),
        "weak": code(detach_logits=False, strength=100.0),
    }.items():
        payload = structure.payload(client.task)
        decoded = run_protocol(client, structure, payload, 0, 0, None)
        assert decoded.share is not None
        true = client.preview(payload, 0).structure_share
        assert decoded.share.value == pytest.approx(true, abs=4 * decoded.share.error + 1e-6)
        psnr = float(matched_psnr(decoded.images, images).min()) if len(decoded.images) else 0.0
        found[name] = psnr, decoded.share.low, true
    assert found["weak"][1:] == (True, pytest.approx(0, abs=0.05))
    for name in ("default", "strong"):
        assert found[name][0] > 50
        assert found[name][1:] == (False, pytest.approx(1))
    assert found["weak"][0] < 20


@pytest.mark.parametrize("norm", [10.0, 1000.0])
@pytest.mark.parametrize(
    ("granularity", "per_layer"), [("sample", False), ("update", False), ("update", True), ("sample", True)]
)
def test_every_clip_is_reached_by_victims_of_whom_the_network_is_sure(
    photographs: Photographs, norm: float, granularity: Granularity, per_layer: bool
) -> None:
    client = client_of(photographs(SIZE)[:4], Privacy(norm, 1e-4, granularity, per_layer), Sure(CLASSES))
    payload = WaterFilling().payload(client.task)
    release = client.preview(payload, 0)
    assert max(release.clip_factors) < 0.1
    assert release.structure_share == pytest.approx(1)
    assert not share_of(client, WaterFilling()).low


@pytest.mark.parametrize("norm", [1.0, None])
@pytest.mark.parametrize("detach", [True, False])
def test_no_image_makes_a_gradient_too_large_for_float32(
    photographs: Photographs, norm: float | None, detach: bool
) -> None:
    """Not even pixels that are none, of which the network is sure and wrong."""
    wild = torch.cat([torch.rand(2, 3, SIZE, SIZE).round(), 10 * torch.randn(1, 3, SIZE, SIZE), photographs(SIZE)[:1]])
    client = client_of(wild, Privacy(norm, 0.0), Sure(CLASSES))
    client.bind([replace(client._batches[0], labels=torch.ones(4, dtype=torch.int64))])
    for structure in (WaterFilling(detach_logits=detach), Digital(detach_logits=detach)):
        gradient = client.share(structure.payload(client.task), 0, 0, 0).gradient["structure.weight"]
        assert bool(gradient.square().sum().isfinite())
        assert bool(gradient.any())


def test_local_steps_leave_a_detached_network_as_it_is(photographs: Photographs) -> None:
    client = client_of(photographs(SIZE)[:4], Privacy(1.0, 0.0), local=local_sgd(2, epochs=2))
    update = client.share(WaterFilling().payload(client.task), 0, 0, 0)
    assert not any(tensor.any() for name, tensor in update.gradient.items() if name.startswith("network."))
    assert float(update.gradient["structure.weight"].norm()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("granularity", "per_layer", "aggregated", "noise"),
    [
        ("update", False, 1, 0.1),
        ("update", False, 2, 0.01),
        ("update", True, 1, 0.003),
        ("sample", False, 1, 0.03),
        ("sample", False, 1, 1.0),
        ("sample", False, 2, 0.01),
        ("sample", True, 1, 0.01),
    ],
)
def test_noise_and_collisions_raise_no_alarm(
    photographs: Photographs, granularity: Granularity, per_layer: bool, aggregated: int, noise: float
) -> None:
    privacy = Privacy(1.0, noise, granularity, per_layer)
    client = client_of(photographs(SIZE)[:8], privacy, aggregated=aggregated)
    found = [share_of(client, WaterFilling(), draw) for draw in range(4)]
    deviations = torch.tensor([(share.value - 1) / share.error for share in found])
    # Collisions are the same in all draws, noise is not.
    assert float(deviations.abs().max()) < 4
    assert not any(share.low for share in found)


@pytest.mark.parametrize("announced", [0.02, 0.01])
def test_the_standard_error_is_that_of_the_noise(photographs: Photographs, announced: float) -> None:
    """Also of a noise that contradicts the announcement, and has to be measured where inputs are zero."""
    client = client_of(photographs(SIZE)[:1], Privacy(1.0, announced))
    payload, noise = WaterFilling().payload(client.task), 0.02
    nulls, generator = payload.tensors["constants"].numel() - 1, torch.Generator().manual_seed(0)
    clean = torch.randn(1, 300, generator=generator)
    clean /= clean.norm()
    prior = RowPrior(torch.full((299,), 1 / 300), 300**-0.5, 0.3, 1.0, 0.0)
    found = []
    for _ in range(400):
        row = clean + noise * torch.randn(1, 300, generator=generator)
        measured = noise * float(torch.randn(nulls, generator=generator).square().mean().sqrt())
        level = noise if announced == noise else measured
        found.append(structure_share(row[:, :-1], row[:, -1], level, prior, client.task, payload))
    values = torch.tensor([share.value for share in found if share is not None])
    errors = torch.tensor([share.error for share in found if share is not None])
    assert float(values.mean()) == pytest.approx(1, abs=4 * float(errors.mean()) / 20)
    assert float(values.std()) == pytest.approx(float(errors.mean()), rel=0.15)


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_half_of_the_budget_is_low_and_seen(photographs: Photographs, granularity: Granularity) -> None:
    """Also of a mean over rounds, and of noise that is not what was announced."""
    client = client_of(photographs(SIZE)[:4], Privacy(1.0, 0.003, granularity, rounds=4))
    structure = WaterFilling()
    payload = structure.payload(client.task)

    class Softer:
        task: Task = client.task

        def share(self, payload: ServerPayload, client_index: int, draw: int, round: int) -> ClientUpdate:
            update = client.share(payload, client_index, draw, round)
            return replace(update, gradient={name: tensor * 0.5**0.5 for name, tensor in update.gradient.items()})

    share = run_protocol(Softer(), structure, payload, 0, 0, None).share
    assert share is not None
    assert share.low
    assert share.value == pytest.approx(0.5, abs=0.1)
    assert not share_of(client, structure).low


def test_without_a_clip_there_is_no_share(photographs: Photographs) -> None:
    client, structure = client_of(photographs(SIZE)[:2], Privacy(None)), WaterFilling()
    assert run_protocol(client, structure, structure.payload(client.task), 0, 0, None).share is None


def test_the_mean_is_null_where_it_says_nothing() -> None:
    assert mean_share([]) == mean_share([None, None]) == (None, 0)
    assert mean_share([BudgetShare(0.2, 0.01), BudgetShare(1.0, 0.01), None]) == (0.6, 1)
    assert mean_share([BudgetShare(-3.0, 1.0)]) == (None, 0)


def test_the_committed_table_has_no_cell_in_which_the_default_is_behind() -> None:
    with (Path(__file__).parents[2] / "results" / "budget.csv").open(newline="") as file:
        assert next(file).startswith("# python scripts/budget.py; ")
        rows = list(csv.DictReader(file))
    assert len({row["network"] for row in rows}) >= 10
    assert {row["batch"] for row in rows} == {"1", "2", "8"}
    for row in rows:
        if row["refused"]:
            assert (row["batch"], row["batch_norm"]) == ("1", "train")
            continue
        found = {way: float(row[f"psnr_{way}"]) for way in ("default", "strength_1e9", "strength_1e4")}
        assert found["default"] > max(found.values()) - 0.5, row
        assert float(row["true_share_default"]) == 1
        assert float(row["share_default"]) > 0.85
    # What docs/explanation/channel.md says.
    (taken,) = (
        row
        for row in rows
        if (row["network"], row["batch"], row["batch_norm"], row["code"]) == ("regnet_y_400mf", "2", "train", "digital")
    )
    assert float(taken["true_share_strength_1e9"]) < 0.001
