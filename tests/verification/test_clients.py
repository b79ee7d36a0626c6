# SPDX-License-Identifier: Apache-2.0
"""Real clients: Opacus and Flower's LocalDpMod as released, and the simulated client of this package."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.api import verify
from lightning_recon.client import VictimClient
from lightning_recon.errors import UserError
from lightning_recon.interrupts import interruption
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.client_under_test import Batch, client_named
from lightning_recon.verification.opacus_step import OpacusStep
from lightning_recon.verification.report import Verification
from lightning_recon.verification.simulated_client import SimulatedClient
from tests.verification.museum import CLASSES, SAMPLES, SHAPE, SUM, Net, dp_sgd, same_seed_each_round, trained

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # typer's, about click
    pytest.importorskip("flwr", reason="flwr is not installed: pip install 'lightning_recon[flower]'")

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import LocalDpMod as LegacyLocalDpMod
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod

from lightning_recon.verification.flower_app import FlowerApp

SAMPLE = Privacy(1.0, 0.3, "sample")
UPDATE = Privacy(1.0, 0.3, "update")


def refuted(found: Verification) -> dict[str, str]:
    return {line.check.name: line.check.remark for line in found.refuted}


# --- Opacus ---


@pytest.mark.parametrize(("per_layer", "reduction"), [(False, "mean"), (True, "sum")])
def test_opacus_as_released_does_what_it_says(per_layer: bool, reduction: str) -> None:
    torch.manual_seed(0)
    claims = Claims(replace(SAMPLE, per_layer=per_layer), SAMPLES, reduction)  # type: ignore[arg-type]
    client = OpacusStep(0, 1.0, 0.3, per_layer, reduction)  # type: ignore[arg-type]
    assert refuted(verify(client, Net(), claims, SHAPE, releases=8)) == {}


def test_opacus_with_half_the_noise_is_refuted() -> None:
    torch.manual_seed(0)
    found = refuted(verify(OpacusStep(0, 1.0, 0.15), Net(), Claims(SAMPLE, SAMPLES), SHAPE, releases=8))
    assert found["noise_std all tensors"] == "the noise is half as large"
    assert "epsilon of measured noise" in found


# --- Flower ---


def app_of(model: nn.Module, batch: Batch) -> ClientApp:
    """An app that trains all that it receives, and reports its loss."""
    app = ClientApp()
    # Flower's formula of the noise, solved for its epsilon.
    epsilon = float(np.sqrt(2 * np.log(1.25 / 1e-5)) / UPDATE.noise_multiplier)

    @app.train(mods=[LocalDpMod(1.0, 1.0, epsilon, 1e-5)])
    def train(message: Message, context: Context) -> Message:
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        loss = float(F.cross_entropy(model(batch[0]), batch[1]).detach())
        trained(model, batch, lr=1.0)
        metrics = MetricRecord({"loss": loss, "num-examples": len(batch[1])})
        content = RecordDict({"arrays": ArrayRecord(dict(model.state_dict())), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


@pytest.fixture(autouse=True)
def seeded() -> None:
    np.random.seed(0)  # Flower draws its noise from numpy's global generator


FLOWER = Claims(UPDATE, SAMPLES, released="state_dict")


def test_flowers_mod_noises_arrays_but_neither_scalars_nor_metrics() -> None:
    found = verify(FlowerApp(0, app_of), Net(temperature=True), FLOWER, SHAPE, releases=8)
    assert refuted(found)["unprotected parameters"] == "without noise: network.temperature"
    assert refuted(found)["unprotected other values"] == "sent raw: metrics.loss"
    tensors = {name for name in refuted(found) if name.startswith("noise_std")}
    assert tensors == {"noise_std network.temperature"}


def test_flowers_mod_protects_the_statistics_of_batch_normalization() -> None:
    found = {
        line.check.name: line
        for line in verify(FlowerApp(0, app_of), Net(batch_norm=True), FLOWER, SHAPE, releases=8).lines
    }
    assert found["unprotected buffers"].verdict == "holds"
    assert found["noise_std network.features.1.running_mean"].verdict == "holds"


def test_flowers_mod_fails_on_an_update_of_zeros() -> None:
    app = ClientApp()

    @app.train(mods=[LocalDpMod(1.0, 1.0, 1.0, 1e-5)])
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

    with pytest.raises(ZeroDivisionError):
        FlowerApp(0, lambda model, batch: app)(Net(), (torch.zeros(1, *SHAPE), torch.zeros(1, dtype=torch.int64)))


class Client(NumPyClient):
    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model, self.batch = model, batch

    def fit(self, parameters: list[np.ndarray], config: dict[str, object]) -> tuple[list[np.ndarray], int, dict]:  # type: ignore[type-arg]
        state = dict(zip(self.model.state_dict(), map(torch.as_tensor, parameters), strict=True))
        self.model.load_state_dict(state)
        trained(self.model, self.batch, lr=1.0)
        return [tensor.numpy() for tensor in self.model.state_dict().values()], len(self.batch[1]), {}


def legacy_app_of(model: nn.Module, batch: Batch) -> ClientApp:
    epsilon = float(np.sqrt(2 * np.log(1.25 / 1e-5)) / UPDATE.noise_multiplier)

    def client_of(context: Context) -> object:
        return Client(model, batch).to_client()

    return ClientApp(client_of, mods=[LegacyLocalDpMod(1.0, 1.0, epsilon, 1e-5)])  # type: ignore[arg-type]


def test_an_app_of_a_numpy_client_is_verified_too() -> None:
    assert refuted(verify(FlowerApp(0, legacy_app_of, legacy=True), Net(), FLOWER, SHAPE, releases=8)) == {}


# --- the simulated client ---


@pytest.mark.parametrize("aggregated", [1, 2])
def test_the_simulated_client_does_what_its_options_say(aggregated: int) -> None:
    privacy = Privacy(1.0, 0.3, "sample")
    victim = VictimClient(
        "convnet", CLASSES, privacy=privacy, aggregated=aggregated, noise_share="distributed", noise_seed=0
    )
    claims = Claims(privacy, SAMPLES, "sum")
    found = verify(SimulatedClient(victim), Net(), claims, SHAPE, releases=8)
    # Both clients of a group hold the same canaries, so that their sum moves twice as far as one client can.
    moved = {"clip near", "clip far", "sensitivity factor", "noise_multiplier"} if aggregated == 2 else set()
    assert refuted(found).keys() - {"epsilon of measured noise", "epsilon empirical gaussian_dp"} == moved


# --- a client by its name ---

MODULE = """
import torch
from torch.nn.functional import cross_entropy
torch.manual_seed(3)  # as scripts do, for results that can be repeated

def step(model, batch):
    cross_entropy(model(batch[0]), batch[1]).backward()
    return {name: one.grad.clamp(-1e-9, 1e-9) + torch.randn_like(one) for name, one in model.named_parameters()}

class Client:
    def __init__(self, index, scale=1.0):
        self.index = index
    def __call__(self, model, batch):
        return step(model, batch)
"""


@pytest.mark.slow
def test_noise_that_repeats_after_a_restart_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_seeded_client.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    found = verify("my_seeded_client:step", network, Claims(UPDATE, SAMPLES), SHAPE, releases=4)
    assert refuted(found)["independence restarts"].endswith("the noise repeats: a seed that is set at start")


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("my_client", {}, "give module:attribute, such as my_client:train_step"),
        ("nowhere:step", {}, "nowhere:step cannot be imported"),
        ("lightning_recon.verification.opacus_step:OpacusStep", {"nois": 1}, "cannot be created"),
        ("tests.verification.museum:dp_sgd", {"nois": 1}, "is a function"),
        ("tests.verification.museum:SAMPLES", {}, "is no function of model and batch"),
    ],
)
def test_a_wrong_name_of_a_client_is_a_mistake_in_one_line(
    path: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        client_named(path, 0, arguments)


def remarks(found: Verification) -> dict[str, str]:
    return {line.check.name: line.remark for line in found.lines if line.verdict == "not run"}


def test_what_a_function_cannot_show_is_said() -> None:
    found = verify("tests.verification.museum:dp_sgd", Net(), SUM, SHAPE, restart=False, releases=4)
    assert remarks(found)["independence clients"].startswith("name a class, which is created for each client")
    found = verify(dp_sgd, Net(), SUM, SHAPE, releases=4)
    assert remarks(found)["independence clients"] == "give second_client, which creates another client"
    assert remarks(found)["epsilon accounted"].startswith("no epsilon is claimed; the claimed noise gives ")
    said = [line.remark for line in found.lines if line.verdict in ("not run", "inconclusive")]
    assert any(": raise releases" in remark for remark in said)
    assert not any("--" in remark for remark in said)


def test_bounds_for_independent_scores_are_not_run_where_noise_repeats() -> None:
    found = verify(same_seed_each_round, Net(), SUM, SHAPE, releases=4)
    assert remarks(found)["epsilon empirical gaussian_dp"].startswith("releases share their noise")
    assert remarks(found)["epsilon empirical clopper_pearson"].startswith("releases share their noise")
    assert "epsilon empirical one_run" not in remarks(found)


EXITING = """
import sys

class Client:
    def __init__(self, index):
        sys.exit(3)

def step(model, batch):
    sys.exit(0)
"""


def test_a_client_that_ends_its_program_is_a_mistake_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_exiting_client.py").write_text(EXITING)
    (tmp_path / "my_exiting_module.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"my_exiting_client:Client cannot be created \(SystemExit: 3\)"):
        client_named("my_exiting_client:Client", 0, {})
    with pytest.raises(UserError, match=r"my_exiting_module:step cannot be imported \(SystemExit: 0\)"):
        client_named("my_exiting_module:step", 0, {})


INTERRUPTED = """
import sys

def stopped():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)  # as Lightning does
"""


def test_an_interruption_within_a_client_is_no_mistake_of_the_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = "\n\nclass Client:\n    def __init__(self, index):\n        stopped()\n"
    (tmp_path / "my_interrupted_client.py").write_text(INTERRUPTED + client)
    (tmp_path / "my_interrupted_module.py").write_text(INTERRUPTED + "\nstopped()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in ("my_interrupted_client:Client", "my_interrupted_module:step"):
        with pytest.raises(SystemExit) as stopped:
            client_named(path, 0, {})
        assert interruption(stopped.value) == ("stopped", 130)


@pytest.mark.slow
def test_a_client_that_ends_its_program_has_no_replies_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_exiting_client.py").write_text(EXITING)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="the client failed on a probe"):
        verify("my_exiting_client:step", Net(), Claims(UPDATE, SAMPLES), SHAPE, releases=4)


def no_canaries(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return {"weight": torch.zeros(3)}


def wrong_shape(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return {"canary.0.weight": torch.zeros(3)}


def infinite(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return {name: torch.full_like(one, torch.inf) for name, one in model.named_parameters()}


def failing(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    raise ValueError("no data here")


def ending_the_program(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    raise SystemExit(0)


def without_return(model: nn.Module, batch: Batch) -> None:
    pass


def a_list(model: nn.Module, batch: Batch) -> list[Tensor]:
    return list(model.parameters())


def without_gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor | None]:
    return {name: one.grad for name, one in model.named_parameters()}


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (no_canaries, "lacks canary.0.weight: it must train the model that it is given, and return the gradients"),
        (wrong_shape, r"sent canary.0.weight as \(3,\)"),
        (infinite, "NaN or infinity in"),
        (failing, "ValueError: no data here"),
        (ending_the_program, r"the client failed on a probe \(SystemExit: 0\)"),
        (without_return, "the client returned NoneType: return the gradients, a dict by parameter name"),
        (a_list, "the client returned list: return the gradients"),
        (without_gradients, "as None, a parameter without a gradient: return a dict of tensors"),
    ],
)
def test_a_client_that_cannot_be_verified_is_a_mistake_in_one_line(client: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        verify(client, Net(), Claims(UPDATE, SAMPLES), SHAPE, releases=4)  # type: ignore[arg-type]
