# SPDX-License-Identifier: Apache-2.0
"""A real Flower app is audited: what LocalDpMod does, what its client sends, and what can be reconstructed."""

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_recon.capture import CapturedClient, load_captured, save_captured
from lightning_recon.capture.noise_check import check_noise, null_noise
from lightning_recon.cli import main
from lightning_recon.errors import UserError
from lightning_recon.networks.construction import build_network
from lightning_recon.structure import WaterFilling

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # typer's, about click
    flwr = pytest.importorskip("flwr", reason="flwr is not installed: pip install 'lightning_recon[flower]'")

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from lightning_recon.capture.flower import FlowerAudit, captured_update

NULLS = 256  # of the structure, by default
Fit = Callable[..., dict[str, Any]]


class InProcess(Grid):
    """Carries messages between a ServerApp and a ClientApp of the same process."""

    def __init__(self, app: Any, clients: int) -> None:  # noqa: ANN401 - a ClientApp
        self.app = app
        self.contexts = {index + 1: context(index) for index in range(clients)}

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self.app(message, self.contexts[message.metadata.dst_node_id]) for message in messages]

    # What is left of the interface is not needed here.
    run = property(lambda self: None)
    set_run = create_message = push_messages = pull_messages = None


def context(partition: int) -> Context:
    place = {"partition-id": partition}
    return Context(run_id=1, node_id=partition + 1, node_config=place, state=RecordDict(), run_config={})


def message_of(arrays: dict[str, np.ndarray]) -> Message:
    content = RecordDict({"arrays": ArrayRecord({name: torch.as_tensor(value) for name, value in arrays.items()})})
    return Message(content=content, message_type="train", dst_node_id=1)


def through(mod: Any, received: dict[str, np.ndarray], trained: dict[str, np.ndarray]) -> dict[str, np.ndarray]:  # noqa: ANN401
    """What a mod lets out of a client that was sent `received` and answers `trained`."""

    def client(message: Message, _: Context) -> Message:
        return Message(message_of(trained).content, reply_to=message)

    reply = mod(message_of(received), context(0), client)
    return {name: array.numpy() for name, array in reply.content["arrays"].items()}


@pytest.fixture(autouse=True)
def _flower(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Flower sets up the process of an app, and quietly."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(name="script")
def _script() -> ModuleType:
    import capture_flower

    return capture_flower


def nulls_of(tensors: dict[str, Tensor]) -> Tensor:
    return tensors["structure.weight"][:, -NULLS:]


def attacked(run: Path, *arguments: str) -> dict[str, Any]:
    main(["fit", *arguments, "--trainer.default_root_dir", str(run), "--trainer.max_steps", "0"])
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    return results


def captured(run: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    files = ["--model.update", str(folder), "--data", "CapturedPictures", "--data.root", str(folder)]
    return attacked(run, "--config", "captured.yaml", *files, *arguments)


@pytest.fixture(scope="module")
def ours(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Mean PSNR of the same attack on the same images when our own client clips and adds the same noise."""
    noise = 10 * np.sqrt(2 * np.log(1.25e5)) / 2e4 / 10
    options = (
        f"--data.image_size 64 --data.batch_size 8 --model.draws 3 --model.client.privacy.noise_multiplier {noise}"
    )
    results = attacked(tmp_path_factory.mktemp("ours"), "--config", tiny, *options.split())
    assert results["summary"]["detected"] == 8
    return float(results["summary"]["psnr_mean"])


def test_local_dp_mod_clips_and_noises_the_delta_of_all_arrays_but_scalars() -> None:
    shapes = {"weight": (200, 300), "bn.running_var": (5000,), "bn.num_batches_tracked": (), "temperature": ()}
    received = {name: np.full(shape, 3.0, np.float32) for name, shape in shapes.items()}
    trained = {name: value + np.float32(2.0) for name, value in received.items()}
    received["bn.num_batches_tracked"], trained["bn.num_batches_tracked"] = np.array(7), np.array(8)
    mod = LocalDpMod(clipping_norm=50.0, sensitivity=0.5, epsilon=10.0, delta=1e-5)
    sent = through(mod, received, trained)
    std = 0.5 * np.sqrt(2 * np.log(1.25 / 1e-5)) / 10
    # The delta is 2 in 65000 arrays' numbers and both scalars, and it is clipped to 50 together with them.
    clipped = 2 * 50 / np.sqrt(4 * 65001 + 1)
    for name in ("weight", "bn.running_var"):
        delta = sent[name] - received[name]
        assert delta.mean() == pytest.approx(clipped, abs=4 * std / np.sqrt(delta.size))
        assert delta.std() == pytest.approx(std, rel=0.04)
    assert sent["temperature"] == trained["temperature"]
    assert sent["bn.num_batches_tracked"] == 8


def test_local_dp_mod_stops_on_integer_arrays() -> None:
    received = {"weight": np.zeros(10, np.float32), "index": np.arange(2)}
    with pytest.raises(TypeError, match="int64"):
        through(LocalDpMod(1.0, 1.0, 1.0, 1e-5), received, {**received, "weight": np.ones(10, np.float32)})


def test_three_captured_draws_show_what_our_own_client_shows(script: ModuleType, tmp_path: Path, ours: float) -> None:
    settings = script.Settings(str(tmp_path / "captured"))
    script.write_pictures(settings)
    audit = replace(script.audit_of(settings), network=build_network("convnet", 16))
    app = script.client_app_of(settings, audit)
    received = {name: array.numpy() for name, array in audit.arrays().items()}
    noises = []
    np.random.seed(0)  # Flower's noise comes from numpy's global generator, which nothing seeds otherwise
    for draw in (2, 1, 0):  # each is captured as draw 0, and moved away before the next
        app(message_of(received), context(0))
        first = Path(settings.folder, "update-c000-d000-r0000.safetensors")
        update = load_captured(first)
        noises.append(nulls_of(update.tensors))
        first.unlink()
        save_captured(first.with_stem(f"update-c000-d{draw:03d}-r0000"), replace(update, draw=draw))
    with pytest.raises(UserError, match="was captured already: empty the folder"):
        app(message_of(received), context(0))
    noise = torch.cat(noises)
    assert float(noise.std()) == pytest.approx(10 * np.sqrt(2 * np.log(1.25e5)) / 2e4, rel=0.03)
    assert abs(float(torch.corrcoef(torch.stack([part.flatten() for part in noises]))[0, 1])) < 0.05
    results = captured(tmp_path / "run", Path(settings.folder), "--model.draws", "3")
    assert results["summary"]["detected"] == 8
    assert results["summary"]["psnr_mean"] == pytest.approx(ours, abs=0.2)
    assert ours > results["baselines"]["mean_image_psnr"] + 10


def test_local_epochs_of_adam_are_announced_and_captured(script: ModuleType, tmp_path: Path) -> None:
    training = {"optimizer": "adam", "lr": 1e-3, "epochs": 2, "batches": 4}
    settings = script.Settings(str(tmp_path / "captured"), epsilon=1e8, image_size=16, **training)
    script.write_pictures(settings)
    audit = script.audit_of(settings)
    received = {name: array.numpy() for name, array in audit.arrays().items()}
    script.client_app_of(settings, audit)(message_of(received), context(0))
    update = load_captured(Path(settings.folder, "update-c000-d000-r0000.safetensors"))
    local = update.task.local
    assert (local.optimizer, local.steps(8), local.update) == ("torch.optim.adam.Adam", 8, "delta")
    largest = max(float(tensor.abs().max()) for tensor in update.tensors.values())
    assert 1e-3 <= largest <= 2e-2  # eight steps of about the learning rate


def test_files_of_local_epochs_of_adam_are_captured_bit_for_bit(script: ModuleType, tmp_path: Path) -> None:
    training = {"optimizer": "adam", "lr": 1e-3, "epochs": 2, "batches": 2, "structure": "digital"}
    protection = {"clipping_norm": 1.0, "sensitivity": 1.0, "epsilon": 5e4}
    settings = script.Settings(str(tmp_path), image_size=16, batch_size=4, **protection, **training)
    script.write_pictures(settings)
    audit = script.audit_of(settings)
    received = {name: array.numpy() for name, array in audit.arrays().items()}
    script.client_app_of(settings, audit)(message_of(received), context(0))
    update = load_captured(tmp_path / "update-c000-d000-r0000.safetensors")
    assert update.task.noise_multiplier == pytest.approx(9.7e-5, rel=0.01)
    measured, count = null_noise(update.update(), audit.payload) or (0.0, 0)
    assert measured == pytest.approx(update.task.noise_multiplier, rel=5 / (2 * count) ** 0.5)
    check_noise(update, update.update(), audit.payload)
    decoded = audit.structure.decode(audit.payload, audit.task, update.update())
    images = load_file(script.pictures_file(settings, 0))["images"]
    assert all((decoded.images == image).flatten(1).all(dim=1).any() for image in images)


@pytest.mark.slow
def test_a_client_and_a_server_over_loopback(script: ModuleType, tmp_path: Path, ours: float) -> None:
    settings = script.Settings(str(tmp_path / "captured"))
    script.write_pictures(settings)
    script.run(settings, seconds=150)
    update = load_captured(tmp_path / "captured" / "update-c000-d000-r0000.safetensors")
    assert update.source == f"flwr {flwr.__version__}, LocalDpMod"
    std = 10 * np.sqrt(2 * np.log(1.25e5)) / 2e4
    assert float(nulls_of(update.tensors).std()) == pytest.approx(std, rel=0.03)
    assert captured(tmp_path / "run", tmp_path / "captured")["summary"]["psnr_mean"] == pytest.approx(ours, abs=0.5)


def test_processes_end_with_all_that_they_started(script: ModuleType, tmp_path: Path) -> None:
    started = [["sh", "-c", "sleep 60 & wait"]]
    with pytest.raises(KeyError), script._running(started, dict(os.environ), tmp_path / "log") as (leader,):
        raise KeyError
    for _ in range(100):  # until init has buried what was killed
        try:
            os.killpg(leader.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("what a process started outlived it")


def test_two_clients_over_two_rounds(script: ModuleType, tmp_path: Path) -> None:
    settings = script.Settings(str(tmp_path), image_size=32, batch_size=4, clients=2, rounds=2)
    script.write_pictures(settings)
    audit = script.audit_of(settings)
    grid = InProcess(script.client_app_of(settings, audit), clients=2)
    script.server_app_of(settings, audit)(grid, context(0))
    client = CapturedClient(tmp_path)
    network = {name: tuple(tensor.shape) for name, tensor in script.Net().named_parameters()}
    client.check(audit.payload, network)
    assert sorted(client.files) == [(c, 0, r) for c in range(2) for r in range(2)]
    updates = [[client.share(audit.payload, c, 0, r).gradient for r in range(2)] for c in range(2)]
    for rounds in updates:
        # The server ships the same arrays each round, so what is averaged is the same signal under fresh noise.
        mean = torch.stack([nulls_of(gradient) for gradient in rounds]).mean(0)
        assert float(mean.std()) == pytest.approx(audit.privacy.noise_std / 2**0.5, rel=0.03)
    assert audit.privacy.epsilon_rounds["add_remove"] > 1.5 * audit.privacy.epsilon_round["add_remove"]
    assert not torch.allclose(updates[0][0]["structure.weight"], updates[1][0]["structure.weight"], atol=0.5)


def audit_of(network: nn.Module, protection: LocalDpMod) -> FlowerAudit:
    return FlowerAudit(network, WaterFilling(), protection, image_size=16, num_classes=4, batch_size=1)


def tiny_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))


def test_images_and_loss_are_announced() -> None:
    audit = replace(
        audit_of(nn.Sequential(nn.Flatten(), nn.Linear(16 * 24, 4)), LocalDpMod(1.0, 1.0, 10.0, 1e-5)),
        image_size=(16, 24),
        channels=1,
        loss="mean_squared_error",
    )
    assert (audit.task.image_shape, audit.task.loss) == ((1, 16, 24), "mean_squared_error")
    assert audit.model()(torch.rand(2, 1, 16, 24)).shape == (2, 4)


def test_a_mod_after_the_protection_is_refused(tmp_path: Path) -> None:
    audit = audit_of(tiny_network(), LocalDpMod(1.0, 1.0, 10.0, 1e-5))
    arrays = {name: array.numpy() for name, array in audit.arrays().items()}
    unclipped = {name: value + 1 for name, value in arrays.items()}
    capture = audit.capture(tmp_path)

    def inside(message: Message, place: Context, call_next: Any) -> Message:  # noqa: ANN401 - the app
        return audit.protection(message, place, lambda *both: capture(*both, call_next))

    with pytest.raises(UserError, match=r"before LocalDpMod, mods=\[audit.capture"):
        through(inside, arrays, unclipped)
    assert not list(tmp_path.iterdir())


def test_a_client_that_trains_another_model_is_refused(tmp_path: Path) -> None:
    audit = audit_of(tiny_network(), LocalDpMod(1.0, 1.0, 1.0, 1e-5))
    own = dict(tiny_network().state_dict())
    with pytest.raises(UserError, match=r"lack network\.1\.weight: send FlowerAudit\.arrays\(\)"):
        captured_update(audit, own, own, client=0, round=0)


@pytest.mark.parametrize(("place", "message"), [((1, 0), "FlowerAudit clients=2"), ((0, 1), "FlowerAudit rounds=2")])
def test_more_than_was_announced_is_refused(place: tuple[int, int], message: str) -> None:
    audit = audit_of(tiny_network(), LocalDpMod(1.0, 1.0, 1.0, 1e-5))
    own = dict(audit.model().state_dict())
    assert captured_update(audit, own, own, client=0, round=0).place == (0, 0, 0)
    with pytest.raises(UserError, match=message):
        captured_update(audit, own, own, *place)


def test_messages_without_arrays_pass(tmp_path: Path) -> None:
    capture = audit_of(tiny_network(), LocalDpMod(1.0, 1.0, 1.0, 1e-5)).capture(tmp_path)
    content = RecordDict({"metrics": MetricRecord({"accuracy": 0.5})})
    reply = capture(message_of({"a": np.ones(2)}), context(0), lambda message, _: Message(content, reply_to=message))
    assert reply.content["metrics"]["accuracy"] == 0.5
    assert not list(tmp_path.iterdir())


def test_the_shipped_model_answers_like_the_app_s_own() -> None:
    network = tiny_network()
    model = audit_of(network, LocalDpMod(1.0, 1.0, 100.0, 1e-5)).model()
    images = torch.rand(5, 3, 16, 16)
    assert torch.equal(model(images), network(images))
    names = [name for name, _ in model.named_parameters()]
    assert sorted(model.state_dict()) == sorted(names)  # nothing infinite or whole-numbered goes through LocalDpMod
