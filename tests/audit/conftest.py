# SPDX-License-Identifier: Apache-2.0
"""Finished runs made by hand, without attacking anything."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from PIL import Image

from lightning_recon.audit.run import Outcome
from lightning_recon.evaluation.results import privacy_record
from lightning_recon.exchange import BatchSampling

from .pages import outcome

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(
        name: str,
        attack: str = "ours",
        z: float = 0.1,
        rounds: int = 1,
        seed: int = 0,
        gains: Sequence[Sequence[float]] = ((20.0, 20.0), (22.0, 22.0)),
        names: Sequence[str] | None = None,
        ssim: float = 0.9,
        delta: float = 1e-5,
        detected: bool = True,
        originals: bool = True,
        adjacency: str = "add_remove",
        mechanism: str = "gaussian",
        per_layer: bool = False,
        alarms: Sequence[str] | None = None,
        data: dict[str, Any] | None = None,
        exact: Sequence[Sequence[bool]] | None = None,
        identified: Sequence[bool] | None = None,
        sampling: BatchSampling = BatchSampling(),  # noqa: B008 - frozen
        first_rounds: Sequence[int] | None = None,
        local_epochs: int = 1,
        sums: Mapping[str, Any] = MappingProxyType({}),
    ) -> Path:
        """A run whose victims gain so many dB over a mean image of 12 dB: a row a picture, an entry a draw."""
        folder = tmp_path / "runs" / name
        (folder / "images").mkdir(parents=True)
        (folder / "truth").mkdir()
        victims: list[dict[str, Any]] = []
        for draw in range(len(gains[0])):
            for index, draws in enumerate(gains):
                image = f"images/{len(victims):03d}.png"
                Image.new("RGB", (8, 8), (200, 10 * len(victims), 0)).save(folder / image)
                entry = {"client": 0, "index": index, "draw": draw, "detected": detected, "image": image}
                victims.append(entry | {"psnr": 12.0 + draws[draw], "ssim": ssim})
                if exact is not None:
                    victims[-1]["bit_exact"] = exact[index][draw]
                if first_rounds is not None:
                    victims[-1] |= {"first_round": first_rounds[index], "rounds_seen": 3.0}
                if identified is not None:
                    victims[-1]["identified"] = identified[index]
        privacy = privacy_record(
            granularity="sample", per_layer=per_layer, max_grad_norm=1.0, noise_multiplier=z, rounds=rounds,
            batch_size=len(gains), delta=delta, adjacency=adjacency,
            mechanism=mechanism,
            sampling=sampling, releases_per_round=local_epochs, **sums,
        )  # fmt: skip
        psnr = sum(victim["psnr"] for victim in victims) / len(victims)
        counts = {"clients": 1, "draws": len(gains[0]), "victims": len(gains), "detected": len(gains) * detected}
        averages = {"psnr_mean": psnr, "psnr_std_over_draws": None, "psnr_median": psnr, "psnr_of_mean_mse": psnr}
        summary = counts | averages | {"collided": 0, "false_detections": 0, "ssim_mean": ssim}
        if identified is not None:
            summary |= {"gallery_size": 100, "identification_chance": 0.1, "identification_bound": 0.9}
            summary["identification"] = sum(identified) / len(identified)
        record = {
            "schema_version": 1,
            "attack": attack,
            "seed": seed,
            "privacy": privacy,
            "oracles": [],
            "public_statistics": "power law",
            "subject_fraction": 0.3,
            "batchnorm": None,
            "participation": privacy["participation"],
            "alarms": alarms,
            "baselines": {"black_psnr": 9.0, "mean_image_psnr": 12.0},
            "bounds": {"channel_nats": 50.0, "noise_law_psnr": 5.0, "gaussian_reference_psnr": 17.0}
            | {
                "gaussian_reference_low": 16.5,
                "gaussian_reference_high": 17.5,
            },
            "victims": victims,
            "summary": summary | {"seconds": 3.25, "structure_bytes": 1000},
        }
        (folder / "results.json").write_text(json.dumps(record))
        if data is not None:
            client = {"init_args": {"network": "convnet"}}
            section = {"class_path": "lightning_recon.data.ClientDataModule", "init_args": {"image_size": 8} | data}
            config = {"model": {"init_args": {"client": client}}, "data": section}
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
        if originals:
            index_of = []
            for index in range(len(gains)):
                entry = {"client": 0, "index": index, "mean_image_psnr": 12.0}
                entry["name"] = names[index] if names else f"cat/{seed}-{index}.jpg"
                for kind in ("photograph", "used"):
                    entry[kind] = f"truth/{index:03d}-{kind}.png"
                    Image.new("RGB", (8, 8), (0, 0, 200)).save(folder / entry[kind])
                index_of.append(entry)
            (folder / "truth" / "index.json").write_text(json.dumps({"victims": index_of}))
        return folder

    return make


@pytest.fixture
def sweep(make_run: MakeRun) -> list[Outcome]:
    """Two attacks, four noises: recognisable, coarse, undecided, nothing."""
    clear, coarse, wide, nothing = ((26.0, 27.0),), ((3.0, 3.0),), ((-2.0, -2.0),), ((0.1, 0.1),)
    curves = {
        "ours": {
            2e-4: (clear[0], (25.0, 25.0)),
            0.1: (coarse[0], (3.1, 3.0)),
            0.3: (wide[0], (2.5, 2.5)),
            0.6: nothing * 2,
        },
        "weak": {2e-4: (coarse[0], (3.1, 3.0)), 0.1: nothing * 2, 0.3: nothing * 2, 0.6: ((0.0, 0.0),) * 2},
    }
    folders = [
        make_run(f"{attack}{z}", attack, z=z, gains=gains, ssim=0.9 if gains[0][0] > 20 else 0.2)
        for attack, curve in curves.items()
        for z, gains in curve.items()
    ]
    return [outcome(folder) for folder in folders]
