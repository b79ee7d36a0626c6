# SPDX-License-Identifier: Apache-2.0
"""Every structure of the package raises an alarm, and the networks without a structure do not."""

import csv
import math
from copy import deepcopy
from pathlib import Path
from typing import Literal

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lightning_recon.attack.protocol import run_protocol
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.data.sources import ClientBatch
from lightning_recon.defense import THRESHOLDS, Finding, inspect_model
from lightning_recon.defense.checks import energy_share
from lightning_recon.defense.probes import gradient_of
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.networks.normalization import IMAGENET, normalize_inputs
from lightning_recon.structure import (
    CuriousAbandonHonesty,
    Feedback,
    InferenceStructure,
    RobbingTheFed,
    SeedPaper,
    WaterFilling,
)
from lightning_recon.structure.base import Structure
from lightning_recon.structure.server_layer import TamperedNetwork

SIZE, CLASSES = 24, 16
Count = Literal[1, 4]


@pytest.fixture(scope="module")
def batches() -> dict[int, ClientBatch]:
    found = {}
    for count in (1, 4):
        data = ClientDataModule(image_size=SIZE, batch_size=count, masks=NoMasks(), num_classes=CLASSES)
        data.prepare_data()
        data.setup()
        found[count] = data.client_batches[0]
    return found


def client_of(batch: ClientBatch, per_layer: bool = False, rounds: int = 1, network: str = "convnet") -> VictimClient:
    privacy = Privacy(max_grad_norm=10.0, noise_multiplier=1e-3, per_layer=per_layer, rounds=rounds)
    client = VictimClient(network, CLASSES, privacy=privacy)
    client.bind([batch])
    return client


def alarms(model: nn.Module, batch: ClientBatch) -> set[str]:
    return {finding.check for finding in inspect_model(model, batch.images, batch.labels) if finding.alarm}


STRUCTURES: dict[str, tuple[Structure, set[str]]] = {
    "water_filling": (
        WaterFilling(),
        {"energy_share", "false_gradient", "silent_layer", "linear_gradient", "zero_gradient"},
    ),
    "attached": (
        WaterFilling(detach_logits=False),
        {"energy_share", "false_gradient", "silent_layer", "linear_gradient"},
    ),
    "flattened": (WaterFilling(head_weights="flattened"), {"energy_share", "false_gradient", "linear_gradient"}),
    "paper": (SeedPaper(units=256), {"repeated_rows", "energy_share", "linear_gradient"}),
    "upstream": (
        RobbingTheFed(64, "upstream", variant="cumulative"),
        {"repeated_rows", "constant_inputs", "energy_share", "linear_gradient"},
    ),
    "sparse": (RobbingTheFed(), {"repeated_rows", "constant_inputs", "energy_share", "linear_gradient"}),
    "trap_weights": (CuriousAbandonHonesty(units=256), {"constant_inputs", "energy_share", "linear_gradient"}),
}


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_alarms(name: str, count: Count, batches: dict[int, ClientBatch]) -> None:
    structure, expected = STRUCTURES[name]
    client = client_of(batches[count])
    model = TamperedNetwork(client.network, InferenceStructure(structure.payload(client.task)))
    found = alarms(model, batches[count])
    assert found >= expected
    assert ("zero_gradient" in found) == ("zero_gradient" in expected)


@pytest.mark.parametrize("count", [1, 4])
def test_a_structure_spread_over_tensors_alarms(count: Count, batches: dict[int, ClientBatch]) -> None:
    client = client_of(batches[count], per_layer=True)
    model = TamperedNetwork(client.network, InferenceStructure(WaterFilling().payload(client.task)))
    assert alarms(model, batches[count]) >= {"energy_share", "false_gradient", "silent_layer", "linear_gradient"}


def test_a_structure_of_a_later_round_alarms(batches: dict[int, ClientBatch]) -> None:
    class Spy:
        def __init__(self, client: VictimClient) -> None:
            self.client, self.payloads = client, list[ServerPayload]()

        @property
        def task(self) -> Task:
            return self.client.task

        def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
            self.payloads.append(payload)
            return self.client.share(payload, client, draw, round)

    spy = Spy(client_of(batches[4], rounds=2))
    run_protocol(spy, Feedback(), Feedback().payload(spy.task), 0, 0, None)
    first, second = spy.payloads
    assert "offset" in second.tensors
    assert "offset" not in first.tensors
    model = TamperedNetwork(spy.client.network, InferenceStructure(second))
    assert alarms(model, batches[4]) >= {"energy_share", "false_gradient", "silent_layer"}


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("network", ["convnet", "resnet18", "mobilenet_v3_small"])
def test_ordinary_networks_do_not_alarm(network: str, count: Count, batches: dict[int, ClientBatch]) -> None:
    assert alarms(client_of(batches[count], network=network).network, batches[count]) == set()


def test_a_head_of_zeros_does_not_alarm(batches: dict[int, ClientBatch]) -> None:
    torch.manual_seed(0)
    transformer = torchvision.models.VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=CLASSES
    )
    assert not transformer.heads.head.weight.any()
    assert alarms(normalize_inputs(transformer, IMAGENET), batches[4]) == set()


def test_an_honest_layer_over_the_pixels_leaks_and_alarms(batches: dict[int, ClientBatch]) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 32), nn.GELU(), nn.Linear(32, CLASSES))
    assert "linear_gradient" in alarms(layers, batches[4])


class Rows(nn.Module):
    """Units that nobody tells apart: their sum."""

    weight: Tensor

    def __init__(self, rows: Tensor, frozen: bool) -> None:
        super().__init__()
        if frozen:
            self.register_buffer("weight", rows.clone())
        else:
            self.register_parameter("weight", nn.Parameter(rows.clone()))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs @ self.weight.T).sum(dim=1, keepdim=True)


class Evasive(nn.Module):
    """From a server that knows the checks: random rows, a copy elsewhere, a nonlinear encoding, less strength."""

    def __init__(self, network: nn.Module, strength: float) -> None:
        super().__init__()
        rows = torch.rand(3, 3 * SIZE**2, generator=torch.Generator().manual_seed(0))
        self.network, self.strength = network, strength
        self.added, self.copy = Rows(rows, frozen=False), Rows(rows, frozen=True)

    @staticmethod
    def encode(images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        return pixels + 0.1 * pixels.square()

    def forward(self, images: Tensor) -> Tensor:
        inputs = self.encode(images)
        code = torch.where(torch.arange(CLASSES) % 2 == 0, self.strength, -self.strength).to(inputs)
        logits: Tensor = self.network(images) + (self.added(inputs) - self.copy(inputs)) * code
        return logits


def test_a_server_that_knows_the_checks_passes_them_and_still_gets_the_image(batches: dict[int, ClientBatch]) -> None:
    batch = batches[1]
    network = client_of(batch).network
    energies = {
        name: float(tensor.square().sum())
        for name, tensor in gradient_of(Evasive(network, 1.0), batch.images, batch.labels).items()
    }
    rest = sum(energies.values()) - energies["added.weight"]
    evasive = Evasive(network, math.sqrt(0.95 / 0.05 * rest / energies["added.weight"]))
    assert alarms(evasive, batch) == set()
    gradient = gradient_of(evasive, batch.images, batch.labels)
    assert energy_share(gradient).value == pytest.approx(0.95, abs=0.01)
    copy = torch.cosine_similarity(gradient["added.weight"][:1], Evasive.encode(batch.images)).abs()
    assert float(copy) == pytest.approx(1)


def test_looking_changes_nothing(batches: dict[int, ClientBatch]) -> None:
    network = client_of(batches[4], network="resnet18").network.eval()
    before, state = deepcopy(network.state_dict()), torch.random.get_rng_state()
    inspect_model(network, batches[4].images, batches[4].labels)
    after: dict[str, Tensor] = network.state_dict()
    assert all(after[name].equal(value) for name, value in before.items())
    assert not any(module.training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.random.get_rng_state().equal(state)


@pytest.mark.parametrize("check", THRESHOLDS)
def test_a_finding_says_what_it_found(check: str) -> None:
    alarming, quiet = Finding(check, 0.999, THRESHOLDS[check], "layer"), Finding(check, 0.0, THRESHOLDS[check], "")
    assert alarming.alarm
    assert "layer" in alarming.sentence or check == "false_gradient"
    assert any(number in alarming.sentence for number in ("99.9%", "100%", "1 inputs"))
    assert not quiet.alarm
    assert "nothing suspicious" in quiet.sentence


def test_the_committed_table_is_what_the_thresholds_were_chosen_by() -> None:
    with (Path(__file__).parents[2] / "results" / "detector.csv").open(newline="") as file:
        assert next(file).startswith("# python scripts/detector.py; lightning_recon ")
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"ordinary", "leaks honestly", "structure"}
    for row in rows:
        alarming = {check for check, threshold in THRESHOLDS.items() if float(row[check]) > threshold}
        assert alarming == set(row["alarms"].split()) - {"none"}
        assert bool(alarming) == (row["kind"] != "ordinary"), row
