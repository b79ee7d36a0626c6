# SPDX-License-Identifier: Apache-2.0
"""Small runs of the whole program, shared by the tests that look at them."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_recon.cli import main

if "PYTEST_XDIST_WORKER" in os.environ:
    # There are as many workers as cores: more threads, here or in the runs that tests start, only get in their way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

TINY: dict[str, Any] = {
    "seed_everything": 0,
    "model": {
        "class_path": "lightning_recon.attack.ReconstructionAttack",
        "init_args": {
            "client": {
                "class_path": "lightning_recon.client.VictimClient",
                "init_args": {
                    "network": "convnet",
                    "num_classes": 16,
                    "privacy": {"max_grad_norm": 10.0, "noise_multiplier": 0.01},
                    "noise_seed": 0,
                },
            },
            "structure": {"class_path": "lightning_recon.structure.WaterFilling"},
        },
    },
    "data": {
        "class_path": "lightning_recon.data.ClientDataModule",
        "init_args": {
            "image_size": 24,
            "batch_size": 4,
            "num_classes": 16,
            "masks": {"class_path": "lightning_recon.data.NoMasks"},
        },
    },
    "trainer": {"max_steps": 4, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
    "results": {"show": False},
}


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, masks and noise keys apart from the user's, and no data or weights from the user's environment."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_RECON_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("LIGHTNING_RECON_NOISE_KEYS", str(tmp_path_factory.mktemp("keys")))
        patch.setenv("OMP_NUM_THREADS", "1")  # for child processes
        for name in ("DATA", "SAM_CHECKPOINT", "DEBUG"):
            patch.delenv(f"LIGHTNING_RECON_{name}", raising=False)
        yield


@pytest.fixture(autouse=True)
def restored_environment() -> Iterator[None]:
    """Take back what a run leaves in the environment, the seed for instance."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A config that runs in a second: convnet, four bundled photographs of 24 x 24, z = 0.01, four steps."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


@pytest.fixture(scope="session")
def fit(tiny: str) -> Callable[..., dict[str, Any]]:
    def run(root: Path, *flags: str) -> dict[str, Any]:
        """Fit the tiny config with further flags; what `results.json` holds then."""
        main(["fit", "--config", tiny, "--trainer.default_root_dir", str(root), *flags])
        record: dict[str, Any] = json.loads((root / "results.json").read_text())
        return record

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, fit: Callable[..., dict[str, Any]]) -> Path:
    """The folder of a finished tiny run: look, do not touch."""
    root = tmp_path_factory.mktemp("finished")
    fit(root)
    return root
