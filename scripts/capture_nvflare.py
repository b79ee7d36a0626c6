# SPDX-License-Identifier: Apache-2.0
"""An NVFlare job with a privacy filter, in NVFlare's simulator on this machine; keep what leaves its clients.

    python scripts/capture_nvflare.py runs/nvflare --protection percentile --structure linear
    recon fit --config captured.yaml --model.update runs/nvflare --model.structure.strength 0.01 \
        --data CapturedPictures --data.root runs/nvflare

The simulator runs the server and each client in a process of its own; they talk over 127.0.0.1. NVFlare copies this
file into the job and runs it as the clients' training script, too.
"""

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_recon.capture.nvflare import NVFlareAudit
from lightning_recon.exchange import LocalTraining
from lightning_recon.plural import counted
from lightning_recon.structure import Digital, Structure, WaterFilling

CLASSES = 16  # of the bundled photographs
CLIENT = "--client"  # first argument of the training script
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        folder: where captured updates and the truth go.
        protection: the privacy filter of the job: "none", "percentile" or "svt".
        percentile: PercentilePrivacy's: the values of smaller magnitude become 0.
        gamma: largest magnitude of a value; 0: the filter's default.
        noise_var: SVTPrivacy's; a larger one means less noise.
        structure: what the server adds to the network: "none", "linear", or "digital", which is attacked with
            `--config attack/digital.yaml`.
        strength: factor of the structure's gradient; 0: gamma under "percentile", so that nothing is limited.
        image_size: width and height of the images, in pixels.
        batch_size: images of each client.
        clients: how many clients take part.
        lr: learning rate of their one step of SGD.
    """

    folder: str = "runs/nvflare"
    protection: str = "percentile"
    percentile: float = 10.0
    gamma: float = 0.0
    noise_var: float = 0.1
    structure: str = "linear"
    strength: float = 0.0
    image_size: int = 32
    batch_size: int = 4
    clients: int = 1
    lr: float = 0.01


class Net(nn.Module):
    """The job's own network."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        """Build it with random weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 48, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(48, 48, 5, stride=2, padding=2)
        self.head = nn.Linear(48 * 4 * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, height, width)."""
        features = F.gelu(self.conv2(F.gelu(self.conv1(images))))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(features, 4).flatten(1))
        return logits


class ServedModel(nn.Module):
    """What the server sends, built on both sides from the settings of the job."""

    def __init__(self, folder: str) -> None:
        """Build it.

        Args:
            folder: with the settings; NVFlare writes the arguments of a model into the job's configuration.
        """
        super().__init__()
        self.folder = folder
        self.served = audit_of(read_settings(folder)).model()

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the images."""
        logits: Tensor = self.served(images)
        return logits

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """That of the model inside, by whose names updates are captured."""
        state: dict[str, Tensor] = self.served.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> object:
        """Likewise."""
        return self.served.load_state_dict(state_dict, strict, assign)


def read_settings(folder: str) -> Settings:
    """The settings of the job whose updates are captured in this folder."""
    return Settings(**json.loads(Path(folder, SETTINGS).read_text(encoding="utf-8")))


def protection_of(settings: Settings) -> PercentilePrivacy | SVTPrivacy | None:
    """The privacy filter of the job."""
    gamma = {"gamma": settings.gamma} if settings.gamma else {}
    if settings.protection == "percentile":
        return PercentilePrivacy(settings.percentile, **gamma)
    return SVTPrivacy(noise_var=settings.noise_var, **gamma) if settings.protection == "svt" else None


def structure_of(settings: Settings) -> Structure | None:
    """What the server adds to the network."""
    strength = settings.strength
    protection = protection_of(settings)
    if not strength and isinstance(protection, PercentilePrivacy):
        strength = protection.gamma
    options = {"strength": strength} if strength else {}
    if settings.structure == "linear":
        return WaterFilling(**options)
    return Digital(**options) if settings.structure == "digital" else None


def audit_of(settings: Settings) -> NVFlareAudit:
    """The server's model code, which both sides run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Net()
    return NVFlareAudit(
        network=network,
        structure=structure_of(settings),
        protection=protection_of(settings),
        image_size=settings.image_size,
        num_classes=CLASSES,
        batch_size=settings.batch_size,
        clients=settings.clients,
        name="capture_nvflare.Net",
        local=LocalTraining(learning_rates=(settings.lr,), update="delta"),
    )


def pictures_file(settings: Settings, client: int) -> Path:
    """The file of a client's images, which are the truth when the attack is scored."""
    return Path(settings.folder, f"truth-c{client:03d}.safetensors")


def write_pictures(settings: Settings) -> None:
    """Distribute the bundled photographs to the clients."""
    # Not at the top: clients, who import this file, do without the data module and all that it needs.
    from lightning_recon.data import ClientDataModule, NoMasks
    from lightning_recon.data.truth_file import save_truth

    data = ClientDataModule(
        image_size=settings.image_size, batch_size=settings.batch_size, clients=settings.clients, masks=NoMasks()
    )
    data.prepare_data()
    data.setup()
    for client, batch in enumerate(data.client_batches):
        save_truth(pictures_file(settings, client), batch.images, batch.labels, client)


def train(settings: Settings) -> None:
    """A client of NVFlare's client API: one step of SGD on its images in every round."""
    import nvflare.client as flare

    flare.init()
    client = int(flare.get_site_name().removeprefix("site-")) - 1
    own = load_file(pictures_file(settings, client))
    while flare.is_running():
        received = flare.receive()
        model = ServedModel(settings.folder)
        model.load_state_dict({name: torch.as_tensor(value) for name, value in received.params.items()})
        optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr)
        F.cross_entropy(model(own["images"]), own["labels"]).backward()
        optimizer.step()
        np.random.seed(client)  # from which the privacy filter draws: a job can be repeated
        flare.send(flare.FLModel(params=model.state_dict(), meta={"NUM_STEPS_CURRENT_ROUND": 1}))


def run(settings: Settings, workspace: Path) -> None:
    """Run the job in NVFlare's simulator until every update is there.

    Args:
        settings: what to run.
        workspace: folder of the simulator.

    Raises:
        RuntimeError: a client sent no update.
    """
    from nvflare.app_common.workflows.fedavg import FedAvg
    from nvflare.app_opt.pt.job_config.model import PTModel
    from nvflare.client.config import TransferType
    from nvflare.job_config.api import FedJob
    from nvflare.job_config.defs import FilterType
    from nvflare.job_config.script_runner import ScriptRunner

    sys.modules.setdefault("capture_nvflare", sys.modules[__name__])  # by which the job names this file
    audit = audit_of(settings)
    Path(settings.folder, SETTINGS).write_text(json.dumps(asdict(settings)), encoding="utf-8")
    audit.announce(settings.folder)
    job = FedJob("capture_nvflare", min_clients=settings.clients)
    job.set_app_packages(["lightning_recon"])  # installed where the clients run: not copied into the job
    job.to_server(PTModel(ServedModel(settings.folder)), id="persistor")
    job.to_server(FedAvg(num_clients=settings.clients, num_rounds=1, persistor_id="persistor"))
    for client in range(settings.clients):
        site = f"site-{client + 1}"
        runner = ScriptRunner(
            str(Path(__file__).resolve()),
            script_args=f"{CLIENT} {shlex.quote(settings.folder)}",
            params_transfer_type=TransferType.DIFF,
        )
        job.to(runner, site, tasks=["train"])
        # The order matters: first protection, then capture.
        for one in filter(None, (audit.protection, audit.capture(settings.folder))):
            job.to(one, site, filter_type=FilterType.TASK_RESULT, tasks=["train"])
        job.to(audit.capture(settings.folder), site, filter_type=FilterType.TASK_DATA, tasks=["train"])
    job.simulator_run(str(workspace), log_config="concise")
    if len(list(Path(settings.folder).glob("update-*"))) != settings.clients:
        raise RuntimeError(f"not every client sent an update: see the logs in {workspace}")


def main() -> None:
    """Run the job, write its images for scoring, and print what the filter releases."""
    if CLIENT in sys.argv:  # run by NVFlare
        train(read_settings(sys.argv[sys.argv.index(CLIENT) + 1]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", help="gets the captured updates and the truth")
    for field in fields(Settings):
        if field.name != "folder":
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    settings = Settings(**given | {"folder": str(Path(given["folder"]).resolve())})
    if list(Path(settings.folder).glob("update-*")):
        parser.error(f"{settings.folder} holds captured updates already: give a new folder")
    Path(settings.folder).mkdir(parents=True, exist_ok=True)
    write_pictures(settings)
    with tempfile.TemporaryDirectory() as scratch:
        run(settings, Path(scratch, "simulator"))
    print(f"{counted(settings.clients, 'update')} and the truth in {settings.folder}")


if __name__ == "__main__":
    main()
