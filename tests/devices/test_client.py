# SPDX-License-Identifier: Apache-2.0
"""A client on an accelerator mixes no devices, releases what it releases on the CPU, and waits seldom."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

from lightning_recon.attack.protocol import run_protocol
from lightning_recon.client import LocalOptions, Privacy, VictimClient
from lightning_recon.data import ClientBatch
from lightning_recon.data.sources import DataProtocol
from lightning_recon.exchange import Compression, Quantization, ServerPayload
from lightning_recon.privacy.adaptive_clipping import AdaptiveClip
from lightning_recon.structure import (
    CuriousAbandonHonesty,
    Digital,
    Feedback,
    RobbingTheFed,
    SeedPaper,
    Structure,
    WaterFilling,
    build_layer,
)
from tests.devices.conftest import COUNT
from tests.devices.pretend import Log, Pretended, numbers_of, waits_of

Device = tuple[torch.device, Log]
AClient = Callable[..., VictimClient]


def released(client: VictimClient, device: torch.device | str, payload: ServerPayload) -> dict[str, torch.Tensor]:
    return client.to(device).share(payload, 0, 0, 0).gradient


def check_equal(client: VictimClient, device: torch.device, payload: ServerPayload) -> None:
    """The update of the device is on the device, and equals that of the CPU to the last bit."""
    there, here = released(client, device, payload), released(client, "cpu", payload)
    assert list(there) == list(here)
    for name, tensor in there.items():
        assert isinstance(tensor, Pretended), name
        assert torch.equal(numbers_of(tensor), here[name]), name


PLAIN = ServerPayload()
FAINT = Privacy(1.0, 1e-4, "update")  # noise under which a digital code works
UPDATE, SAMPLE = Privacy(1.0, 0.1, "update"), Privacy(1.0, 0.1, "sample")
SETTINGS: dict[str, dict[str, Any]] = {
    "one clip": {"privacy": UPDATE},
    "one clip for each tensor": {"privacy": Privacy(1.0, 0.1, "update", per_layer=True)},
    "no clip": {"privacy": Privacy(None, 0.0, "update")},
    "running statistics": {"privacy": UPDATE, "batch_norm": "eval"},
    "each sample": {"privacy": SAMPLE},
    "samples in one pass": {"privacy": SAMPLE, "chunk_size": 3},
    "Laplace": {"privacy": Privacy(1.0, 0.1, "sample", mechanism="laplace")},
    "adaptive clip": {"privacy": Privacy(1.0, 2.0, "sample", adaptive_clip=AdaptiveClip(unclipped_num_std=2.0))},
    "sum of clients": {"privacy": UPDATE, "aggregated": 2, "noise_share": "distributed"},
    "whole numbers": {"privacy": UPDATE, "aggregated": 2, "quantization": Quantization(clipping_range=8.0)},
    "Skellam": {
        "privacy": Privacy(1.0, 0.1, "update", mechanism="skellam"),
        "aggregated": 2,
        "quantization": Quantization(clipping_range=8.0),
    },
    "local training": {"privacy": UPDATE, "local": LocalOptions(epochs=2, batch_size=2, shuffle=True)},
    "local DP-SGD": {"privacy": SAMPLE, "local": LocalOptions(epochs=2, batch_size=2)},
    **{
        method: {"privacy": UPDATE, "compression": Compression(method)}
        for method in ("float16", "int8", "sign", "qsgd", "top_k", "random_k")
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_updates_equal_those_of_the_cpu(name: str, a_client: AClient, pretended: Device) -> None:
    check_equal(a_client(**SETTINGS[name]), pretended[0], PLAIN)


STRUCTURES: dict[str, tuple[Structure, dict[str, Any]]] = {
    "digital": (Digital(), {"privacy": FAINT}),
    "digital, samples": (Digital(), {"privacy": Privacy(1.0, 1e-4, "sample")}),
    "linear": (WaterFilling(), {}),
    "linear, samples": (WaterFilling(), {"privacy": SAMPLE, "chunk_size": 2}),
    "feedback": (Feedback(), {"privacy": Privacy(1.0, 0.1, "update", rounds=4)}),
    "seed paper": (SeedPaper(), {}),
    "Robbing the Fed": (RobbingTheFed(units=16), {}),
    "Curious Abandon Honesty": (CuriousAbandonHonesty(units=32), {}),
    "under Adam": (
        WaterFilling(),
        {"local": LocalOptions(epochs=2, batch_size=2, optimizer=lambda params: torch.optim.Adam(params, lr=1e-3))},
    ),
    "signs": (WaterFilling(), {"compression": Compression("sign")}),
}


# The checks of "mps" are those of "cuda" and one more.
@pytest.mark.parametrize("pretended", ["mps"], indirect=True)
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_shipped_layer_works_on_the_device(name: str, a_client: AClient, pretended: Device) -> None:
    structure, settings = STRUCTURES[name]
    client = a_client(**{"privacy": UPDATE} | settings)
    check_equal(client, pretended[0], structure.payload(client.task))


def test_feedback_about_changing_batches_finds_what_it_finds_on_the_cpu(
    photographs: list[ClientBatch], pretended: Device
) -> None:
    """From the second round on, updates are decoded as they come from the client's device."""
    held, found = photographs[0], []
    for device in (torch.device("cpu"), pretended[0]):
        privacy = Privacy(1.0, 0.02, "sample", rounds=3)
        client = VictimClient("convnet", 16, privacy=privacy, noise_seed=0, sampling="shuffle")
        client.bind([held], DataProtocol(COUNT // 2, subjects=False, local_images=COUNT))
        structure = Feedback()
        payload = structure.payload(client.task)
        found.append(run_protocol(client.to(device), structure, payload, 0, 0, None).images)
    assert len(found[0]) == COUNT
    assert torch.equal(*found)


@pytest.mark.parametrize("granularity", ["update", "sample"])
def test_the_host_waits_once_for_each_gradient_that_is_clipped(
    granularity: Literal["update", "sample"], a_client: AClient, pretended: Device
) -> None:
    device, log = pretended
    client = a_client(privacy=Privacy(1.0, 0.1, granularity)).to(device)
    client.share(PLAIN, 0, 0, 0)
    assert len(log.waits) == (1 if granularity == "update" else COUNT)
    assert all(line.startswith("clipping.py") for line in log.waits)


def test_the_digital_code_waits_once_for_its_image_files(a_client: AClient, pretended: Device) -> None:
    """Compressing images to files and giving them units is done in host memory on purpose; nothing else waits."""
    device, log = pretended
    client = a_client(privacy=FAINT)
    layer = build_layer(Digital().payload(client.task)).to(device)
    images = client._batches[0].images.to(device)
    log.clear()
    layer(images, torch.zeros(COUNT, 16, device=device))
    assert len([wait for wait in log.waits if not wait.startswith("own_units.py")]) == 1
    assert log.waits[0].startswith("modulation.py")
    linear = build_layer(WaterFilling().payload(client.task)).to(device)
    assert not waits_of(lambda: linear(images, torch.zeros(COUNT, 16, device=device)), log)
