# SPDX-License-Identifier: Apache-2.0
"""Flower apps with any strategy and any mods are audited: what reaches the server, and what it reconstructs."""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.capture import load_captured
from lightning_recon.cli import main
from lightning_recon.client import Privacy
from lightning_recon.data import ClientBatch, save_truth
from lightning_recon.errors import UserError
from lightning_recon.networks.construction import build_network
from lightning_recon.structure import WaterFilling

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # typer's, about click
    pytest.importorskip("flwr", reason="flwr is not installed: pip install 'lightning_recon[flower]'")

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)
from flwr.serverapp import Grid
from flwr.serverapp import strategy as strategies
from flwr.supercore.task_identity import TaskIdentity

from lightning_recon.capture.flower import FlowerAudit

CLIENTS = 6  # as many as Bulyan needs to leave some out
UPDATE = "update-c000-d000-r0000.safetensors"
ALL = {"fraction_evaluate": 0.0, "min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS}
CLIP = 0.04  # of central differential privacy, below the norm of an update
OWN_CLIP, OWN_NOISE = 2.0, 1e-3


class InProcess(Grid):
    """Carries messages between a server and the client apps of the same process."""

    def __init__(self, app: ClientApp, clients: int) -> None:
        self.app, self.clients = app, clients

    def get_node_ids(self) -> Iterable[int]:
        return range(1, self.clients + 1)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self.app(message, context(message.metadata.dst_node_id - 1)) for message in messages]

    # What is left of the interface is not needed here.
    run = property(lambda self: None)
    set_run = create_message = push_messages = pull_messages = None


def context(partition: int) -> Context:
    return Context(1, partition + 1, {"partition-id": partition}, RecordDict(), {})


@pytest.fixture(autouse=True)
def _flower(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As Flower sets up the process of an app, and quietly."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    with torch.random.fork_rng(devices=[]):
        yield


def app_of(
    audit: FlowerAudit, pictures: ClientBatch, mods: list[Any]
) -> tuple[ClientApp, dict[int, dict[str, Tensor]]]:
    """An app whose clients train one step on the images; and what they would send without mods, by their number."""
    app, plain = ClientApp(mods=mods), dict[int, dict[str, Tensor]]()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = audit.model()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        F.cross_entropy(model(pictures.images), pictures.labels).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        number = int(str(context.node_config["partition-id"]))
        plain[number] = {name: one.detach() - before[name] for name, one in model.named_parameters()}
        metrics = MetricRecord({"num-examples": len(pictures.labels), "train_loss": 0.5})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    return app, plain


def audit_of(protection: Any, clients: int = 1, rounds: int = 1, strength: float = 1.0) -> FlowerAudit:  # noqa: ANN401 - of Flower
    structure = WaterFilling(strength=strength)
    return FlowerAudit(build_network("convnet", 16), structure, protection, 24, 16, 4, clients=clients, rounds=rounds)


def norm_of(tensors: dict[str, Tensor]) -> float:
    return float(torch.cat([one.flatten() for one in tensors.values()]).double().norm())


def attacked(folder: Path, pictures: ClientBatch, strength: float = 1.0) -> dict[str, Any]:
    save_truth(folder / "truth.safetensors", pictures.images, pictures.labels)
    files = ["--model.update", str(folder), "--data", "CapturedPictures", "--data.root", str(folder)]
    run = ["--trainer.default_root_dir", str(folder / "run"), "--results.show", "false", "--trainer.accelerator", "cpu"]
    main(["fit", "--config", "captured.yaml", *files, *run, "--model.structure.strength", str(strength)])
    found: dict[str, Any] = json.loads((folder / "run" / "results.json").read_text())
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda: strategies.FedAvg(**ALL),
        lambda: strategies.FedAvgM(**ALL),
        lambda: strategies.FedAdagrad(**ALL),
        lambda: strategies.FedAdam(**ALL),
        lambda: strategies.FedYogi(**ALL),
        lambda: strategies.FedProx(proximal_mu=0.1, **ALL),
        lambda: strategies.FedMedian(**ALL),
        lambda: strategies.FedTrimmedAvg(**ALL),
        lambda: strategies.QFedAvg(client_learning_rate=0.1, train_loss_key="train_loss", **ALL),
        lambda: strategies.Krum(num_malicious_nodes=1, **ALL),
        lambda: strategies.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2, **ALL),
        lambda: strategies.Bulyan(num_malicious_nodes=0, **ALL),
    ],
    ids=[
        *("FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi", "FedProx", "FedMedian", "FedTrimmedAvg"),
        *("QFedAvg", "Krum", "MultiKrum", "Bulyan"),
    ],
)
@pytest.mark.parametrize("same_arrays", [False, True], ids=["its own arrays", "the same arrays"])
def test_updates_are_captured_under_every_strategy(
    make: Callable[[], strategies.Strategy], same_arrays: bool, pictures: ClientBatch, tmp_path: Path
) -> None:
    rounds = 2 if same_arrays else 1
    audit = audit_of(None, CLIENTS, rounds)
    app, plain = app_of(audit, pictures, [audit.capture(tmp_path)])
    strategy = audit.strategy(make()) if same_arrays else make()
    strategy.start(InProcess(app, CLIENTS), audit.arrays(), num_rounds=rounds)
    assert len(list(tmp_path.glob("update-*"))) == rounds * CLIENTS
    for client in range(CLIENTS):
        found = load_captured(tmp_path / f"update-c{client:03d}-d000-r{rounds - 1:04d}.safetensors")
        assert found.source.endswith("no mod")
        for name, delta in plain[client].items():
            torch.testing.assert_close(found.tensors[name], delta, rtol=1e-4, atol=1e-6)


CENTRAL = {
    "client, fixed": (
        lambda one: strategies.DifferentialPrivacyClientSideFixedClipping(one, 1.0, CLIP, 1),
        fixedclipping_mod,
    ),
    "client, adaptive": (
        lambda one: strategies.DifferentialPrivacyClientSideAdaptiveClipping(
            one, 1.0, 1, initial_clipping_norm=CLIP, clipped_count_stddev=1.0
        ),
        adaptiveclipping_mod,
    ),
    "server, fixed": (lambda one: strategies.DifferentialPrivacyServerSideFixedClipping(one, 1.0, CLIP, 1), None),
    "server, adaptive": (
        lambda one: strategies.DifferentialPrivacyServerSideAdaptiveClipping(
            one, 1.0, 1, initial_clipping_norm=CLIP, clipped_count_stddev=1.0
        ),
        None,
    ),
}


@pytest.mark.parametrize("case", CENTRAL)
def test_central_privacy_hides_nothing_from_the_server(case: str, pictures: ClientBatch, tmp_path: Path) -> None:
    wrap, mod = CENTRAL[case]
    strategy = wrap(audit_of(None).strategy())
    audit = audit_of(strategy)
    app, plain = app_of(audit, pictures, [audit.capture(tmp_path), *filter(None, [mod])])
    strategy.start(InProcess(app, 1), audit.arrays(), num_rounds=1)
    captured = load_captured(tmp_path / UPDATE)
    clip = CLIP if mod else None
    assert (captured.task.max_grad_norm, captured.task.noise_multiplier) == (clip, 0.0)
    assert captured.source.endswith(type(strategy).__name__)
    factor = 1.0 if clip is None else clip / norm_of(plain[0])
    assert mod is None or factor < 0.5
    for name, delta in plain[0].items():
        torch.testing.assert_close(captured.tensors[name], factor * delta, rtol=1e-3, atol=5e-6)
    found = attacked(tmp_path, pictures)
    assert found["summary"]["detected"] == 4
    assert found["summary"]["psnr_mean"] > found["baselines"]["mean_image_psnr"] + 20


def own_mod(message: Message, place: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """A mod as apps write them: clips the change and adds noise."""
    received = message.content["arrays"].to_torch_state_dict()
    reply = call_next(message, place)
    sent = reply.content["arrays"].to_torch_state_dict()
    delta = {name: one - received[name] for name, one in sent.items()}
    factor = min(1.0, OWN_CLIP / norm_of(delta))
    noised = {
        name: received[name] + factor * one + OWN_CLIP * OWN_NOISE * torch.randn(one.shape)
        for name, one in delta.items()
    }
    reply.content["arrays"] = ArrayRecord(noised)
    return reply


def test_a_mod_of_the_app_is_described_by_its_privacy(pictures: ClientBatch, tmp_path: Path) -> None:
    audit = audit_of(Privacy(OWN_CLIP, OWN_NOISE), strength=1e4)
    # Others may stand anywhere between.
    mods = [audit.capture(tmp_path), message_size_mod, own_mod, arrays_size_mod]
    app, _ = app_of(audit, pictures, mods)
    audit.strategy().start(InProcess(app, 1), audit.arrays(), num_rounds=1)
    captured = load_captured(tmp_path / UPDATE)
    assert (captured.task.max_grad_norm, captured.task.noise_multiplier) == (OWN_CLIP, OWN_NOISE)
    nulls = captured.tensors["structure.weight"][:, -64:]
    assert float(nulls.std()) == pytest.approx(OWN_CLIP * OWN_NOISE, rel=0.05)
    assert attacked(tmp_path, pictures, 1e4)["summary"]["detected"] == 4


def test_an_unclipped_update_is_refused_where_a_clip_is_announced(pictures: ClientBatch, tmp_path: Path) -> None:
    audit = audit_of(Privacy(1e-3, 0.0))
    app, _ = app_of(audit, pictures, [audit.capture(tmp_path)])
    with pytest.raises(UserError, match="list the capturing mod before"):
        audit.strategy().start(InProcess(app, 1), audit.arrays(), num_rounds=1)


def test_several_array_records_are_refused(pictures: ClientBatch, tmp_path: Path) -> None:
    audit = audit_of(None)
    message = Message(RecordDict({"a": audit.arrays(), "b": audit.arrays()}), message_type="train", dst_node_id=1)
    with pytest.raises(UserError, match="has the array records a, b"):
        audit.capture(tmp_path)(message, context(0), lambda sent, _: Message(RecordDict(), reply_to=sent))


@pytest.mark.parametrize(
    ("protection", "said"),
    [
        (Privacy(1.0, 0.1, granularity="sample"), "granularity update"),
        (Privacy(1.0, 0.1, mechanism="laplace"), "independent Gaussian noise"),
        ("LocalDpMod", "describe what it does"),
    ],
)
def test_what_cannot_be_described(protection: Any, said: str) -> None:  # noqa: ANN401
    with pytest.raises(UserError, match=said):
        _ = audit_of(protection).task


def test_a_norm_that_adapts_is_audited_in_one_round() -> None:
    wrapper = strategies.DifferentialPrivacyClientSideAdaptiveClipping(
        strategies.FedAvg(), 1.0, 1, clipped_count_stddev=1.0
    )
    with pytest.raises(UserError, match="audit a single round"):
        _ = replace(audit_of(wrapper), rounds=2).task


def test_only_local_privacy_is_declared_of_an_update() -> None:
    assert audit_of(LocalDpMod(1.0, 1.0, 1.0, 1e-5)).privacy.epsilon_declared == 1.0
    with pytest.raises(UserError, match="no mod declares no privacy"):
        _ = audit_of(None).privacy
