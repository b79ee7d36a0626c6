# SPDX-License-Identifier: Apache-2.0
"""A Flower app that a config names: an app as users have it, whose network and data a function replaces."""

import os
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_recon.api import verify
from lightning_recon.errors import UserError
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.client_under_test import Batch, client_named
from lightning_recon.verification.report import Verification
from tests.verification.museum import SAMPLES, SHAPE, Net

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # typer's, about click
    pytest.importorskip("flwr", reason="flwr is not installed: pip install 'lightning_recon[flower]'")

FLOWER_APP = "lightning_recon.verification.flower_app:FlowerApp"
CLIENT_APP = """
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod

app = ClientApp()
word = "no app"

class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(192, 10))

def load_data(partition, partitions, batch_size):
    raise RuntimeError("there is no data set here")

# A noise multiplier of 0.3 by Flower's formula, sqrt(2 ln(1.25/delta)) / epsilon
@app.train(mods=[LocalDpMod(1.0, 1.0, 16.1493509, 1e-5)])
def train(message, context):
    model = Net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    node, batch_size = context.node_config, context.run_config["batch-size"]
    optimizer = torch.optim.SGD(model.parameters(), lr=message.content["config"]["lr"])
    total = 0.0
    for images, labels in load_data(node["partition-id"], node["num-partitions"], batch_size):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item()
    metrics = MetricRecord({"train_loss": total, "num-examples": batch_size})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
"""
REPLACING = """
from flower_app_of_a_user import client_app

def app_of(model, batch):
    client_app.Net = lambda: model
    client_app.load_data = lambda *_: [batch]
    return client_app.app
"""
CLAIMS = Claims(Privacy(1.0, 0.3, "update"), SAMPLES, released="state_dict")
ARGUMENTS = {"run_config": {"batch-size": SAMPLES}, "train_config": {"lr": 1.0}}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package = tmp_path / "flower_app_of_a_user"
    package.mkdir()
    (package / "client_app.py").write_text(CLIENT_APP)
    (package / "broken.py").write_text("import module_that_nobody_has\n")
    (tmp_path / "replacing_network_and_data.py").write_text(REPLACING)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith(("flower_app_of_a_user", "replacing_network"))]:
        sys.modules.pop(name)


def verified(restart: bool) -> Verification:
    np.random.seed(0)  # Flower draws its noise from numpy's global generator
    arguments = {"app_of": "replacing_network_and_data:app_of", **ARGUMENTS}
    network = import_module("flower_app_of_a_user.client_app").Net()
    return verify(FLOWER_APP, network, CLAIMS, SHAPE, client_arguments=arguments, restart=restart, releases=8)


def test_an_app_as_users_have_it_is_verified_by_name(app: None) -> None:
    found = {line.check.name: line for line in verified(restart=False).lines}
    assert [name for name, line in found.items() if line.verdict == "refuted"] == ["unprotected other values"]
    assert found["unprotected other values"].remark == "sent raw: metrics.train_loss"
    assert found["independence clients"].verdict == "holds"


@pytest.mark.slow
def test_an_app_that_is_named_is_started_again_in_a_new_process(app: None) -> None:
    found = {line.check.name: line for line in verified(restart=True).lines}
    assert found["independence restarts"].verdict == "holds"


@pytest.mark.parametrize(
    ("app_of", "message"),
    [
        (
            "replacing_network_and_data",
            "app_of is 'replacing_network_and_data': give module:attribute",
        ),
        ("no_module_of_this_name:app_of", r"No module named .*: run recon in the folder that holds the module"),
        ("flower_app_of_a_user.broken:app_of", "No module named 'module_that_nobody_has'.: see that python -c"),
        ("replacing_network_and_data:app", "no attribute app: did you mean replacing_network_and_data:app_of"),
        ("flower_app_of_a_user.client_app:word", "is no function of model and batch that returns a Flower app"),
        (
            "flower_app_of_a_user.client_app:app",
            "is a Flower app, whose network and data cannot be",
        ),
    ],
)
def test_a_wrong_name_of_an_app_is_a_mistake_in_one_line(app: None, app_of: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        client_named(FLOWER_APP, 0, {"app_of": app_of})


def test_an_app_in_place_of_the_client_is_a_mistake_in_one_line(app: None) -> None:
    with pytest.raises(UserError, match=r"client_app:app is a Flower app: give .*:FlowerApp, and in"):
        client_named("flower_app_of_a_user.client_app:app", 0, {})


def test_a_function_that_returns_no_app_is_a_mistake_in_one_line() -> None:
    from lightning_recon.verification.flower_app import FlowerApp

    def app_of(model: nn.Module, batch: Batch) -> nn.Module:
        return model

    client = FlowerApp(0, app_of)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="app_of returned Net: return the flwr"):
        client(Net(), (torch.zeros(1, *SHAPE), torch.zeros(1, dtype=torch.int64)))
