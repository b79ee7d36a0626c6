# SPDX-License-Identifier: Apache-2.0
"""Flower's own SecAgg+ is attacked: its workflow and its mods run, and the server gets nothing but the sum."""

import json
import logging
import os
import warnings
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch

from lightning_recon.capture import CapturedClient, load_captured
from lightning_recon.cli import main
from lightning_recon.errors import UserError

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # typer's, about click
    flwr = pytest.importorskip("flwr", reason="flwr is not installed: pip install 'lightning_recon[flower]'")

from flwr.app import Context, Error, Message, RecordDict
from flwr.common import Code, FitRes, Parameters, Status
from flwr.common.secure_aggregation import quantization as flower_quantization
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from lightning_recon.capture.flower_secagg import CapturedSums, captured_sum, serve_sums

if TYPE_CHECKING:
    from flwr.server.client_proxy import ClientProxy

NOISE = {"epsilon": 4e3, "clipping_norm": 10.0, "sensitivity": 10.0}
STD = 10 * np.sqrt(2 * np.log(1.25e5)) / 4e3


class InProcess(Grid):
    """Carries messages between a ServerApp and ClientApps of the same process; a client that fails answers an error."""

    run = property(lambda self: SimpleNamespace(run_id=1))  # type: ignore[assignment]
    set_run = create_message = push_messages = pull_messages = None  # type: ignore[assignment]

    def __init__(self, app: Any, clients: int) -> None:  # noqa: ANN401 - a ClientApp
        self.app = app
        self.seen: list[Message] = []
        self.contexts = {index + 1: context(index) for index in range(clients)}

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for sent in messages:
            message = deepcopy(sent)  # each client gets its own, as from the wire
            try:
                replies.append(self.app(message, self.contexts[message.metadata.dst_node_id]))
            except RuntimeError:
                replies.append(Message(Error(code=0), reply_to=message))
        self.seen += replies
        return replies


def context(partition: int) -> Context:
    place = {"partition-id": partition}
    return Context(run_id=1, node_id=partition + 1, node_config=place, state=RecordDict(), run_config={})


@pytest.fixture(autouse=True)
def _flower(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Flower sets up the process of an app, and quietly."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    np.random.seed(0)  # Flower's noise and rounding come from numpy's global generator, which nothing seeds otherwise


@pytest.fixture(name="script")
def _script() -> ModuleType:
    import capture_flower

    return capture_flower


def summed(script: ModuleType, folder: Path, **options: Any) -> tuple[Any, InProcess]:  # noqa: ANN401 - a FlowerAudit
    settings = script.Settings(
        str(folder), clients=4, batch_size=2, secure_aggregation=1, **({"image_size": 16} | NOISE | options)
    )
    script.write_pictures(settings)
    audit = script.audit_of(settings)
    grid = InProcess(script.client_app_of(settings, audit), clients=4)
    serve_sums(audit, folder, grid, context(0))
    return audit, grid


def attacked(run: Path, *arguments: str) -> dict[str, Any]:
    main(["fit", *arguments, "--trainer.default_root_dir", str(run), "--trainer.max_steps", "0"])
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    return results


def captured(run: Path, folder: Path) -> dict[str, Any]:
    files = ["--model.update", str(folder), "--data", "CapturedPictures", "--data.root", str(folder)]
    return attacked(run, "--config", "captured.yaml", *files)


def simulated(run: Path, size: int) -> dict[str, Any]:
    """The same attack on the real sum of four clients of our own, which clip and add the same noise."""
    options = f"--data.image_size {size} --data.batch_size 2 --data.clients 4 --model.client.aggregated 4"
    network = "--model.client.network capture_flower.Net --model.client.normalization none --data.num_classes 16"
    linear = f"--config quickstart.yaml --config attack/linear.yaml --data.masks lightning_recon.data.NoMasks {network}"
    quiet = "--comparison.structure null --comparison.noise_factor null --results.show false"
    noise = f"--model.draws 3 --model.client.privacy.noise_multiplier {STD / 10} --model.client.noise_seed 0"
    return attacked(run, *linear.split(), *options.split(), *noise.split(), *quiet.split())


def test_the_sum_at_flower_s_defaults_shows_what_the_real_sum_shows(script: ModuleType, tmp_path: Path) -> None:
    audit, grid = summed(script, tmp_path / "sum")
    task, quantization = audit.task, audit.task.quantization
    assert (task.aggregated, task.updates, task.victims) == (4, 1, 8)
    assert (quantization.clipping_range, quantization.quantization_range) == (8.0, 1 << 22)
    assert (quantization.modulus_range, quantization.weight) == (1 << 32, pytest.approx(2 / 1000, rel=1e-3))
    update = load_captured(tmp_path / "sum" / "update-c000-d000-r0000.safetensors")
    assert update.source == f"flwr {flwr.__version__}, LocalDpMod, SecAgg+"
    zeros = update.tensors["structure.weight"][:, -256:]
    assert float(zeros.std()) == pytest.approx(10 * task.update_noise, rel=0.03)
    assert 10 * task.update_noise == pytest.approx(np.hypot(2 * STD, quantization.rounding_noise(4)))
    # No reply of a client has arrays in the clear.
    arrays = [record for reply in grid.seen for record in reply.content.array_records.values()]
    assert arrays
    assert not any(arrays)
    results, ours = captured(tmp_path / "run", tmp_path / "sum"), simulated(tmp_path / "ours", 16)
    assert results["summary"]["detected"] == ours["summary"]["detected"] == 8
    assert results["summary"]["psnr_mean"] == pytest.approx(ours["summary"]["psnr_mean"], abs=1.0)
    assert results["summary"]["psnr_mean"] > results["baselines"]["mean_image_psnr"] + 5
    assert results["quantization"]["modulus_range"] == 1 << 32
    assert results["mismatch"] is None


def test_a_client_drops_out_of_the_sum(script: ModuleType, tmp_path: Path) -> None:
    audit, _ = summed(script, tmp_path / "sum", dropped=1)
    update = CapturedClient(tmp_path / "sum").share(audit.payload, 0, 0, 0)
    assert update.contributors == 3
    zeros = update.gradient["structure.weight"][:, -256:]
    assert float(zeros.std()) == pytest.approx(
        np.hypot(np.sqrt(3) * STD, audit.quantization.rounding_noise(3)), rel=0.03
    )
    results = captured(tmp_path / "run", tmp_path / "sum")
    assert (results["summary"]["victims"], results["summary"]["detected"]) == (8, 6)
    assert results["mismatch"] is None


def test_two_rounds_are_captured(script: ModuleType, tmp_path: Path) -> None:
    audit, _ = summed(script, tmp_path / "sum", rounds=2)
    client = CapturedClient(tmp_path / "sum")
    rows = [client.share(audit.payload, 0, 0, number).gradient["structure.weight"] for number in range(2)]
    mean = (rows[0] + rows[1])[:, -256:] / 2
    assert float(mean.std()) == pytest.approx(10 * audit.task.update_noise / np.sqrt(2), rel=0.05)


def test_our_rounding_is_flower_s() -> None:
    from lightning_recon.client.quantize import quantized
    from lightning_recon.exchange import Quantization

    values = torch.linspace(-9, 9, 2001)
    ours = quantized({"w": values}, Quantization(8.0, 1 << 22), lambda _: np.random.default_rng(0))["w"]
    theirs = flower_quantization.quantize([values.double().numpy()], 8.0, 1 << 22)[0] - (1 << 21)
    assert int(np.abs(ours.numpy() - theirs).max()) <= 1


def test_what_is_no_sum_is_refused(script: ModuleType, tmp_path: Path) -> None:
    audit = script.audit_of(script.Settings(str(tmp_path), image_size=16, clients=4, secure_aggregation=1, **NOISE))
    own = dict(audit.model().state_dict())
    with pytest.raises(UserError, match=r"the sum has norm .*mods=\[secaggplus_mod"):
        captured_sum(audit, own, {name: value + 1 for name, value in own.items()}, 4, 0)
    unequal = FitRes(Status(Code.OK, ""), Parameters([], ""), audit.batch_size + 1, {})
    with pytest.raises(UserError, match=r"clients report \d+ examples, by which SecAgg\+ weighs"):
        CapturedSums(audit, tmp_path).aggregate_fit(1, [(cast("ClientProxy", None), unequal)], [])
    with pytest.raises(UserError, match="this audit has no secure aggregation"):
        serve_sums(replace(audit, secure_aggregation=None), tmp_path, InProcess(None, 1), context(0))


@pytest.mark.skipif(
    not os.environ.get("LIGHTNING_RECON_LOOPBACK"),
    reason="starts 20 processes that each import torch and Flower, for minutes: set LIGHTNING_RECON_LOOPBACK=1",
)
@pytest.mark.slow
def test_secagg_over_loopback(script: ModuleType, tmp_path: Path) -> None:
    settings = script.Settings(
        str(tmp_path / "sum"), clients=4, batch_size=2, secure_aggregation=1, image_size=16, **NOISE
    )
    script.write_pictures(settings)
    script.run(settings, seconds=280)
    results = captured(tmp_path / "run", tmp_path / "sum")
    assert results["summary"]["detected"] == 8
    assert results["summary"]["psnr_mean"] == pytest.approx(
        simulated(tmp_path / "ours", 16)["summary"]["psnr_mean"], abs=1.0
    )
