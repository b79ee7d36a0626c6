# SPDX-License-Identifier: Apache-2.0
"""A Flower app under local differential privacy, its server malicious: run it on this machine and keep what leaves it.

    python scripts/capture_flower.py runs/flower --epsilon 20000
    recon fit --config captured.yaml --model.update runs/flower --data CapturedPictures --data.root runs/flower

Flower copies this file to server and clients, as it does with the code of any app: there it is imported as a module,
whose `server_app` and `client_app` they run. Here it starts a SuperLink and a SuperNode for each client, which talk
HTTP over 127.0.0.1, and ends them. Flower's telemetry, its search for updates and its installing of dependencies are
switched off.
"""

import argparse
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import Client, NumPyClient
from flwr.client.mod import LocalDpMod as LegacyLocalDpMod
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_recon.capture.flower import FlowerAudit
from lightning_recon.capture.flower_secagg import serve_sums
from lightning_recon.exchange import LocalTraining, training_by
from lightning_recon.structure import Digital, WaterFilling

SETTINGS = "CAPTURE_FLOWER"  # environment variable that tells the apps what the command line said
CLASSES = 16  # of the bundled photographs
SHARES, THRESHOLD = 3, 2  # of SecAgg+, which has no defaults for these two


@dataclass(frozen=True)
class Settings:
    """What is run: LocalDpMod's four numbers, the pictures, and the client's local training.

    Args:
        folder: where captured updates and the truth go.
        clipping_norm: LocalDpMod's clip of the update.
        sensitivity: LocalDpMod's, from which its noise follows.
        epsilon: LocalDpMod's, of one round.
        delta: LocalDpMod's.
        image_size: width and height of the images, in pixels.
        batch_size: images of each client.
        clients: how many clients take part.
        rounds: how often each of them answers.
        optimizer: the client's optimizer: "sgd", "adam" or "adamw".
        lr: its learning rate.
        momentum: momentum of "sgd".
        batches: number of batches of a client; each one is a local step.
        epochs: how often it goes through them.
        structure: what the server ships: "linear", or "digital", which is attacked with `--config attack/digital.yaml`.
        secure_aggregation: 1: behind SecAgg+ at Flower's defaults, so that the server gets only the sum of all clients.
        dropped: how many clients fail when they have trained, and drop out of the sum.
    """

    folder: str = "runs/flower"
    clipping_norm: float = 10.0
    sensitivity: float = 10.0
    epsilon: float = 2e4
    delta: float = 1e-5
    image_size: int = 64
    batch_size: int = 8
    clients: int = 1
    rounds: int = 1
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    batches: int = 1
    epochs: int = 1
    structure: str = "linear"
    secure_aggregation: int = 0
    dropped: int = 0


class Net(nn.Module):
    """The app's own network."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        """Build it with random weights."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(4)
        )
        self.classifier = nn.Linear(16 * 4 * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of pictures (B, 3, height, width)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def optimizer_of(settings: Settings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The client's optimizer."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer](parameters, lr=settings.lr)


def local_training_of(settings: Settings) -> LocalTraining:
    """The client's local training, as the server announces it."""
    one = training_by(optimizer_of(settings, [nn.Parameter(torch.zeros(1))]))
    size = None if settings.batches == 1 else math.ceil(settings.batch_size / settings.batches)
    return replace(one, epochs=settings.epochs, batch_size=size, update="delta")


def audit_of(settings: Settings) -> FlowerAudit:
    """The server's model code, which both sides run."""
    return FlowerAudit(
        network=Net(),
        structure={"linear": WaterFilling, "digital": Digital}[settings.structure](),
        protection=LocalDpMod(settings.clipping_norm, settings.sensitivity, settings.epsilon, settings.delta),
        image_size=settings.image_size,
        num_classes=CLASSES,
        batch_size=settings.batch_size,
        clients=settings.clients,
        rounds=settings.rounds,
        local=local_training_of(settings),
        secure_aggregation=SecAggPlusWorkflow(SHARES, THRESHOLD) if settings.secure_aggregation else None,
    )


def pictures_file(settings: Settings, client: int) -> Path:
    """The file of a client's images, which are the truth when the attack is scored."""
    return Path(settings.folder, f"truth-c{client:03d}.safetensors")


def write_pictures(settings: Settings) -> None:
    """Distribute the bundled photographs to the clients."""
    # Not at the top: server and clients, who import this file, do without the data module and all that it needs.
    from lightning_recon.data import ClientDataModule, NoMasks
    from lightning_recon.data.truth_file import save_truth

    data = ClientDataModule(
        image_size=settings.image_size, batch_size=settings.batch_size, clients=settings.clients, masks=NoMasks()
    )
    data.prepare_data()
    data.setup()
    for client, batch in enumerate(data.client_batches):
        save_truth(pictures_file(settings, client), batch.images, batch.labels, client)


def trained(
    settings: Settings, audit: FlowerAudit, client: int, received: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """A client's arrays after local training, and how many images it has."""
    model = audit.model()
    model.load_state_dict(received)
    own = load_file(pictures_file(settings, client))
    optimizer = optimizer_of(settings, model.parameters())
    for batch in list(torch.arange(len(own["labels"])).chunk(settings.batches)) * settings.epochs:
        optimizer.zero_grad()
        F.cross_entropy(model(own["images"][batch]), own["labels"][batch]).backward()
        optimizer.step()
    return model.state_dict(), len(own["labels"])


class LegacyClient(NumPyClient):
    """The same client behind the interface that SecAgg+ needs."""

    def __init__(self, settings: Settings, audit: FlowerAudit, client: int) -> None:
        """Store the arguments of `trained`."""
        self.settings, self.audit, self.client = settings, audit, client

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
        """Train, and return all arrays in the order of the state dict."""
        received = {name: torch.as_tensor(value) for name, value in zip(self.audit.arrays(), parameters, strict=True)}
        state, examples = trained(self.settings, self.audit, self.client, received)
        if self.client < self.settings.dropped:
            raise RuntimeError("this client drops out")
        return [tensor.numpy() for tensor in state.values()], examples, {}


def client_app_of(settings: Settings, audit: FlowerAudit) -> ClientApp:
    """An ordinary client app, except for the two lines that mention `audit`."""
    if settings.secure_aggregation:

        def client_of(context: Context) -> Client:
            return LegacyClient(settings, audit, int(context.node_config["partition-id"])).to_client()

        mod = audit.protection  # SecAgg+ has a LocalDpMod of its own, with the same four numbers
        protection = LegacyLocalDpMod(mod.clipping_norm, mod.sensitivity, mod.epsilon, mod.delta)
        return ClientApp(client_of, mods=[secaggplus_mod, protection])
    app = ClientApp()

    @app.train(mods=[audit.capture(settings.folder), audit.protection])
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        state, examples = trained(settings, audit, client, message.content["arrays"].to_torch_state_dict())
        content = {"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": examples})}
        return Message(RecordDict(content), reply_to=message)

    return app


def server_app_of(settings: Settings, audit: FlowerAudit) -> ServerApp:
    """A server that sends a new structure inside the model in every round."""
    app = ServerApp()

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        if settings.secure_aggregation:
            serve_sums(audit, settings.folder, grid, context)
        else:
            audit.strategy().start(grid, audit.arrays(), num_rounds=audit.rounds)
        Path(settings.folder, "done").touch()

    return app


PROJECT = """
[project]
name = "capture-flower"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "local"
[tool.flwr.app.components]
serverapp = "capture_flower:server_app"
clientapp = "capture_flower:client_app"
"""


def run(settings: Settings, seconds: float) -> None:
    """Run the app: SuperLink, SuperNodes and all that they start, over loopback, until every update is there.

    Args:
        settings: what to run.
        seconds: how long it may take.

    Raises:
        RuntimeError: it took longer, or a process failed.
    """
    folder = Path(settings.folder).resolve()
    (folder / "done").unlink(missing_ok=True)
    link, *nodes = _free_ports(1 + settings.clients)
    with tempfile.TemporaryDirectory() as scratch:
        app = Path(scratch, "capture_flower")
        app.mkdir()
        shutil.copy(__file__, app / "capture_flower.py")
        (app / "pyproject.toml").write_text(PROJECT)
        home = Path(scratch, "home")
        home.mkdir()
        (home / "config.toml").write_text(f'[superlink.loopback]\naddress = "127.0.0.1:{link}"\ninsecure = true\n')
        environment = os.environ | {
            SETTINGS: json.dumps(asdict(settings) | {"folder": str(folder)}),
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        server = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(link)]
        commands = [[*server, "--disable-runtime-dependency-installation"]]
        for index, port in enumerate(nodes):
            node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}", "--host", "127.0.0.1"]
            commands.append([*node, "--port", str(port), "--node-config", f"partition-id={index}"])
        with _running(commands, environment, folder / "flower.log") as processes:
            deadline = time.monotonic() + seconds
            _wait(lambda: _listens(link), processes, deadline)
            submit = ["flwr", "run", str(app), "loopback"]
            subprocess.run(submit, env=environment, check=True, timeout=seconds, stdout=subprocess.DEVNULL)
            _wait((folder / "done").exists, processes, deadline)
    (folder / "done").unlink()
    updates = 1 if settings.secure_aggregation else settings.clients
    if len(list(folder.glob("update-*"))) != updates * settings.rounds:
        raise RuntimeError(f"not every client answered every round: see {folder / 'flower.log'}")


@contextmanager
def _running(
    commands: list[list[str]], environment: dict[str, str], log: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that end when the block is left, together with their child processes."""
    processes: list[subprocess.Popen[bytes]] = []
    with log.open("wb") as output:
        try:
            for command in commands:
                processes.append(
                    subprocess.Popen(
                        command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                    )
                )
            yield processes
        finally:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                for process in processes:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, sign)  # a group of our own making: its leader's id is its name
                with suppress(subprocess.TimeoutExpired):
                    for process in processes:
                        process.wait(timeout=3)


def _wait(done: Callable[[], bool], processes: list[subprocess.Popen[bytes]], deadline: float) -> None:
    """Wait for a condition while the processes live and until the time limit."""
    while not done():
        if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
            raise RuntimeError("Flower stopped or took too long: see flower.log in the output folder")
        time.sleep(0.1)


def _listens(port: int) -> bool:
    """Whether a port of this machine accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    """Free ports on the loopback interface."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def main() -> None:
    """Run the app, write its images for scoring, and print what its users do not see."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", help="gets the captured updates and the truth")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long the run may take")
    for field in fields(Settings):
        if field.name != "folder":
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    seconds = given.pop("seconds")
    settings = Settings(**given)
    if list(Path(settings.folder).glob("update-*")):
        parser.error(f"{settings.folder} holds captured updates already: give a new folder")
    write_pictures(settings)
    run(settings, seconds)
    print(audit_of(settings).privacy)


if SETTINGS in os.environ:  # imported by Flower
    settings = Settings(**json.loads(os.environ[SETTINGS]))
    server_app = server_app_of(settings, audit_of(settings))
    client_app = client_app_of(settings, audit_of(settings))
elif __name__ == "__main__":
    main()
