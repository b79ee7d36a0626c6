# SPDX-License-Identifier: Apache-2.0
"""Thousands of damaged files: every loader refuses in one line or reads what was written, at once and in little memory.

The damage is the same every time (a seed). `LIGHTNING_RECON_FUZZ=20000` tries more of it,
`LIGHTNING_RECON_FUZZ_SEED=7` other damage.
"""

import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lightning_recon.audit.load import read_runs
from lightning_recon.callbacks.reconstruction_file import finished as finished_pictures
from lightning_recon.capture import CapturedUpdate, load_captured, save_captured
from lightning_recon.cli import main
from lightning_recon.command_line.cli_arguments import check_checkpoint
from lightning_recon.command_line.replay_config import replay_config
from lightning_recon.data.truth_file import load_truth, save_truth
from lightning_recon.errors import UserError
from lightning_recon.evaluation.run_record import read_results
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task, payload_name, update_name
from lightning_recon.files.checkpoints import content_digest
from lightning_recon.files.digests import DIGEST

from .mutations import damaged

COUNT = int(os.environ.get("LIGHTNING_RECON_FUZZ", "3000"))
SEED = int(os.environ.get("LIGHTNING_RECON_FUZZ_SEED", "0"))
COMMANDS = max(4, COUNT // 300)  # whole commands are run over so many of them
SLOW = 5.0  # seconds
MEMORY = 4 << 30  # bytes of address space beyond those of the start

Load = Callable[[Path], object]


def _tensors(content: object) -> object:
    """A comparable form: tensors by hash."""
    return content_digest({"content": content})


def _update(path: Path) -> object:
    return _tensors(vars(ClientUpdate.load(path.parent, path.stem)))


def _captured(path: Path) -> object:
    found = vars(load_captured(path))
    return _tensors({**found, "task": repr(found["task"]), "declared": repr(found["declared"])})


def _checkpoint(path: Path) -> object:
    check_checkpoint(path)
    return content_digest(torch.load(path, weights_only=True))


def _results(path: Path) -> object:
    return {name: value for name, value in (read_results(path.parent) or {}).items() if name != DIGEST}


# Of each kind of file: how it is read, to something that can be compared.
LOADERS: dict[str, Load] = {
    "exchange/task.json": lambda path: Task.load(path.parent),
    "exchange/payload-r0000.json": lambda path: ServerPayload.load(path.parent, payload_name(0)).digest(),
    "exchange/payload-r0000.safetensors": lambda path: ServerPayload.load(path.parent, payload_name(0)).digest(),
    "exchange/update-c000-d000-r0000.json": _update,
    "exchange/update-c000-d000-r0000.safetensors": lambda path: _update(path.parent / f"{update_name(0, 0, 0)}.json"),
    "reconstructions.safetensors": lambda path: _tensors(finished_pictures(path.parent)),
    "results.json": _results,
    "truth/index.json": lambda path: [vars(one)["originals"] for one in read_runs([path.parent.parent]).outcomes],
    "checkpoints/last.ckpt": _checkpoint,
    "config.yaml": lambda path: replay_config(path.parent, Path("out")),
    "captured/update.safetensors": _captured,
    "captured/truth.safetensors": lambda path: _tensors(vars(load_truth(path)[1])),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """A finished run, with a captured update and the pictures behind it."""
    root = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(finished, root)
    generator = torch.Generator().manual_seed(0)
    task = Task((3, 8, 8), 10, 2, 1, "convnet", "update", False, 2.0, 0.5, 1, 2)
    tensors = {"network.a": torch.randn(4, 3, generator=generator), "network.b": torch.randn(5, generator=generator)}
    save_captured(root / "captured" / "update.safetensors", CapturedUpdate(task, tensors, "gradient_mean"))
    pictures = torch.rand(2, 3, 8, 8, generator=generator)
    save_truth(root / "captured" / "truth.safetensors", pictures, torch.tensor([1, 2]))
    return root


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """Address space for a few gigabytes more than are taken now: what asks for terabytes fails at once."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.usefixtures("bounded_memory")
def test_loaders_refuse_in_one_line_or_read_what_was_written(name: str, run: Path) -> None:
    load, path = LOADERS[name], run / name
    whole, true = path.read_bytes(), load(path)
    rng = random.Random(f"{SEED} {name}")
    accepted = 0
    try:
        for _ in range(COUNT // len(LOADERS)):
            kind, content = damaged(path, whole, rng)
            path.write_bytes(content)
            start = time.monotonic()
            refusal, found = "", None
            try:
                found = load(path)
            except UserError as error:
                refusal = str(error)
            assert refusal.isprintable()
            if not refusal:
                accepted += 1
                # A forged digest, and a config, which people edit, may say anything that the schema accepts.
                assert found == true or kind == "forged" or path.suffix == ".yaml", f"{kind} was not noticed"
            assert time.monotonic() - start < SLOW
    finally:
        path.write_bytes(whole)
    assert load(path) == true
    assert accepted < COUNT // len(LOADERS)  # most are refused


@pytest.mark.parametrize("command", ["replay", "report", "test"])
@pytest.mark.usefixtures("bounded_memory")
def test_commands_end_in_one_line_or_well(
    command: str, run: Path, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "replay": ["replay", str(run), "--output", str(tmp_path / "out")],
        "report": ["report", str(run), "--output", str(tmp_path / "report.html")],
        "test": ["test", "--config", tiny, "--trainer.default_root_dir", str(run)],
    }[command]
    read = [name for name in LOADERS if not name.startswith(("captured", "checkpoints"))]
    if command == "report":
        read = ["results.json", "truth/index.json", "config.yaml"]
    rng, results = random.Random(f"{SEED} {command}"), (run / "results.json").read_bytes()
    for _ in range(COMMANDS):
        path = run / rng.choice(read)
        whole = path.read_bytes()
        kind, content = damaged(path, whole, rng)
        path.write_bytes(content)
        capsys.readouterr()
        start = time.monotonic()
        status: object = 0
        try:
            main(arguments)
        except SystemExit as stop:
            status = stop.code
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recon: error: ")]
        assert (status, len(said)) in ((0, 0), (2, 1)), (path.name, kind)
        assert time.monotonic() - start < 6 * SLOW
        path.write_bytes(whole)
        (run / "results.json").write_bytes(results)  # scoring again writes it anew
