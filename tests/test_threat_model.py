# SPDX-License-Identifier: Apache-2.0
"""The attacker knows what it shipped, what it received and public statistics, and nothing else."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file

import lightning_recon
from lightning_recon.attack import GradientInversion, ReconstructionAttack
from lightning_recon.cli import main
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.exchange import Client, ClientUpdate, RecordedClient, ServerPayload, Task
from lightning_recon.structure import WaterFilling

PACKAGE = Path(lightning_recon.__file__).parent
FORBIDDEN = ("data", "client", "evaluation", "callbacks", "cli", "command_line", "audit")


# --- what is imported ---


@cache
def imports(module: str) -> set[str]:
    """Modules of the package that a module names in an import, wherever the import stands."""
    path = PACKAGE.parent / Path(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively: this walk would miss it"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    modules = {name for name in found if name.split(".")[0] == "lightning_recon" and exists(name)}
    return modules | {name.rpartition(".")[0] for name in modules if name.count(".") > 1}


def exists(name: str) -> bool:
    path = PACKAGE.parent / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def reachable(module: str) -> set[str]:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        here = waiting.pop()
        if here not in seen:
            seen.add(here)
            waiting += imports(here)
    return seen


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


ATTACKERS = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for attacker in ("attack", "structure", "priors")
    for path in (PACKAGE / attacker).rglob("*.py")
)


@pytest.mark.parametrize("module", ATTACKERS)
def test_the_attacker_imports_no_room_that_knows_the_truth(module: str) -> None:
    for other in reachable(module):
        assert room(other) not in FORBIDDEN, f"{module} reaches {other}"


def test_neither_the_attacker_nor_the_accounting_reaches_the_noise() -> None:
    """The attacker may draw random numbers of its own (`rng`), but not regenerate the noise of a client."""
    rooms = {name: (PACKAGE / name).glob("*.py") for name in ("privacy", "exchange")}
    others = [f"lightning_recon.{name}.{path.stem}" for name, paths in rooms.items() for path in paths]
    assert {"lightning_recon.privacy.mechanism", "lightning_recon.exchange.update"} <= set(others)
    for module in ATTACKERS + others:
        for noise in ("noise", "noise_key", "noise_source"):
            assert exists(f"lightning_recon.client.{noise}")
            assert f"lightning_recon.client.{noise}" not in reachable(module), f"{module} reaches the noise"
        assert not any(other.startswith("lightning_recon.client") for other in reachable(module)), module
    for module in others:
        assert "lightning_recon.rng" not in reachable(module), f"{module} reaches a random generator"


def test_the_attacker_does_not_ask_the_client_for_its_key() -> None:
    """The live client that an attack asks holds the key: nothing on the attacker's side may so much as name it."""
    names = {"noise_source", "noise_key", "_key", "secret", "noise_seed", "generators"}
    assert {"noise_source", "_key"} <= attributes(PACKAGE / "client" / "client.py") | attributes(
        PACKAGE / "client" / "noise_source.py"
    )
    for module in ATTACKERS:
        path = PACKAGE.parent / Path(*module.split("."))
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert not attributes(source) & names, f"{module} names {attributes(source) & names}"


def attributes(source: Path) -> set[str]:
    """Names after a dot, and texts, which may be given to getattr."""
    nodes = list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return texts | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_the_walk_sees_what_it_should() -> None:
    assert "lightning_recon.structure.water_filling" in reachable("lightning_recon.attack.malicious_server")
    assert "lightning_recon.capture.update_file" in reachable("lightning_recon.attack.malicious_server")
    assert "lightning_recon.data.sources" in reachable("lightning_recon.client.client")
    assert len(ATTACKERS) > 10


# --- what is asked and what is answered ---


class Spy:
    """A client that writes down what goes through its only door, and changes its pictures once it has answered."""

    def __init__(self, client: VictimClient, forget: bool) -> None:
        self._client = client
        self._forget = forget
        self.payloads: list[ServerPayload] = []
        self.updates: list[ClientUpdate] = []

    @property
    def task(self) -> Task:
        return self._client.task

    def share(self, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        self.payloads.append(payload)
        self.updates.append(self._client.share(payload, client, draw, round))
        if self._forget:
            for batch in self._client._batches:
                for tensor in (batch.images, batch.photographs, batch.labels):
                    tensor.zero_()
        return self.updates[-1]


def trainer(root: Path, steps: int = 3) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
    )


def bound_client() -> VictimClient:
    data = ClientDataModule(image_size=24, batch_size=4, masks=NoMasks())
    data.prepare_data()
    data.setup()
    client = VictimClient("convnet", 16, privacy=Privacy(max_grad_norm=10.0, noise_multiplier=1e-3), noise_seed=0)
    client.bind(data.client_batches)
    return client


library_noise = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`IterableDataset` has `__len__`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*logging interval"),
]


def with_library_noise(function: Callable[..., None]) -> Callable[..., None]:
    for mark in library_noise:
        function = mark(function)
    return function


@with_library_noise
def test_the_update_is_all_that_reaches_the_attack(tmp_path: Path) -> None:
    results = []
    for forget in (False, True):
        spy = Spy(bound_client(), forget)
        assert isinstance(spy, Client)
        attack = ReconstructionAttack(spy, WaterFilling())
        trainer(tmp_path / str(forget)).fit(attack)
        (found,) = attack.reconstructions()
        results.append((found.initial, found.images))
        assert len(spy.updates) == 1
        assert set(spy.updates[0].gradient) >= {"structure.weight"}
        assert not (found.images == found.initial).all()
    assert all(torch.equal(honest, blind) for honest, blind in zip(*results, strict=True))


@with_library_noise
def test_the_update_is_all_that_reaches_an_honest_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees the network, which it shipped; pictures and labels are gone once the client has answered."""
    share, results = VictimClient.share, []

    def forget(self: VictimClient, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        update = share(self, payload, client, draw, round)
        for batch in self._batches:
            for tensor in (batch.images, batch.photographs, batch.labels):
                tensor.zero_()
        return update

    for door in (share, forget):
        monkeypatch.setattr(VictimClient, "share", door)
        attack = GradientInversion(bound_client(), distance="likelihood", basis="spectrum", init="mean", boxed=False)
        trainer(tmp_path / door.__name__).fit(attack)
        (found,) = attack.reconstructions()
        assert not torch.equal(found.images, found.initial)
        results.append((found.images, found.labels))
    assert all(torch.equal(seeing, blind) for seeing, blind in zip(*results, strict=True))


@with_library_noise
def test_the_attack_hands_its_clients_public_tensors_only(tmp_path: Path) -> None:
    """The payload is fixed before any client answers: two clients with other pictures are shipped the same."""
    digests = []
    for seed in (0, 1):
        data = ClientDataModule(image_size=24, batch_size=4, masks=NoMasks(), seed=seed)
        data.prepare_data()
        data.setup()
        client = VictimClient("convnet", 16, privacy=Privacy(max_grad_norm=10.0, noise_multiplier=1e-3), noise_seed=0)
        client.bind(data.client_batches)
        spy = Spy(client, forget=False)
        trainer(tmp_path / str(seed), steps=0).fit(ReconstructionAttack(spy, WaterFilling()))
        digests += [payload.digest() for payload in spy.payloads]
    assert len(digests) == 2
    assert digests[0] == digests[1]


@with_library_noise
def test_a_recording_serves_as_well_as_the_client(tmp_path: Path) -> None:
    attack = ReconstructionAttack(bound_client(), WaterFilling())
    trainer(tmp_path / "live").fit(attack)
    again = ReconstructionAttack(RecordedClient(tmp_path / "live" / "exchange"), WaterFilling())
    trainer(tmp_path / "replayed").fit(again)
    (live,), (replayed,) = attack.reconstructions(), again.reconstructions()
    assert torch.equal(live.images, replayed.images)
    assert torch.equal(live.initial, replayed.initial)


def test_the_attack_trains_on_step_numbers(tmp_path: Path) -> None:
    attack = ReconstructionAttack(bound_client(), WaterFilling())
    attack.trainer = trainer(tmp_path, steps=5)
    assert list(attack.step_loader()) == [0, 1, 2, 3, 4]
    data = ClientDataModule(image_size=24, batch_size=4, masks=NoMasks())
    data.trainer = attack.trainer
    attack.trainer.strategy.connect(attack)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert all(isinstance(step, int) or step.dtype == torch.int64 for step in loader)


def test_clients_are_no_part_of_the_attackers_checkpoint(finished: Path) -> None:
    state = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert list(state) == ["dummies"]


# --- replay, where the pictures no longer exist ---

WITHOUT_OTHER_ROOMS = """
import sys
for name in ("data", "client", "evaluation", "callbacks", "cli", "command_line", "audit"):
    sys.modules[f"lightning_recon.{name}"] = None  # importing it fails
from pathlib import Path
from lightning.pytorch import Trainer
from safetensors.torch import save_file
from lightning_recon.attack import ReconstructionAttack
from lightning_recon.exchange import RecordedClient
from lightning_recon.structure import WaterFilling

run, output = map(Path, sys.argv[1:])
attack = ReconstructionAttack(RecordedClient(run / "exchange"), WaterFilling())
off = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
Trainer(accelerator="cpu", max_steps=4, default_root_dir=output, **off).fit(attack)
pictures = {f"client{o.client:03d}-draw{o.draw:03d}": o.images.contiguous() for o in attack.reconstructions()}
save_file(pictures, output / "mine.safetensors")
"""


@pytest.fixture(scope="module")
def orphaned(tmp_path_factory: pytest.TempPathFactory, fit: Callable[..., dict[str, Any]]) -> Path:
    """A finished run whose pictures have been deleted since."""
    root = tmp_path_factory.mktemp("orphaned")
    shutil.copytree(PACKAGE / "data" / "samples", root / "data")
    fit(root / "run", "--data.root", str(root / "data"))
    shutil.rmtree(root / "data")
    return root / "run"


def test_replay_makes_the_same_pictures_without_data_or_network(
    orphaned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a replay has no data and no network")

    for name in ("open_source", "fill_cache", "read_mask", "select", "build_network"):
        holders = [module for key, module in sys.modules.items() if key.startswith("lightning_recon")]
        holders = [module for module in holders if hasattr(module, name)]
        assert holders, name
        for module in holders:
            monkeypatch.setattr(module, name, refuse)
    for kind in (ClientDataModule, VictimClient):
        monkeypatch.setattr(kind, "__init__", refuse)
    main(["replay", str(orphaned), "--output", str(tmp_path)])
    name = "reconstructions.safetensors"
    assert (tmp_path / name).read_bytes() == (orphaned / name).read_bytes()
    (batch,) = load_file(tmp_path / name).values()
    assert len(list((tmp_path / "images").glob("*.png"))) == len(batch)
    assert not (tmp_path / "results.json").exists()  # nobody knows the truth


@pytest.mark.slow
def test_the_attack_alone_makes_the_same_pictures(orphaned: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_OTHER_ROOMS, str(orphaned), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    here, there = load_file(tmp_path / "mine.safetensors"), load_file(orphaned / "reconstructions.safetensors")
    assert list(here) == list(there)
    assert all(torch.equal(here[key], there[key]) for key in there)


@pytest.mark.parametrize(
    "flags",
    [
        ["--data.clients", "2", "--model.draws", "2"],
        ["--model.client.privacy.rounds", "3"],
        ["--model.client.privacy.granularity", "sample", "--model.client.privacy.per_layer", "true"],
        ["--config", "configs/attack/paper.yaml", "--model.client.privacy.noise_multiplier", "2e-4"],
    ],
    ids=["clients", "rounds", "per_layer", "paper"],
)
def test_replay_repeats_every_kind_of_run(flags: list[str], fit: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    fit(tmp_path / "run", *flags)
    main(["replay", str(tmp_path / "run"), "--output", str(tmp_path / "again")])
    name = "reconstructions.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_replay_can_be_replayed(finished: Path, tmp_path: Path) -> None:
    main(["replay", str(finished), "--output", str(tmp_path / "once")])
    main(["replay", str(tmp_path / "once"), "--output", str(tmp_path / "twice")])
    name = "reconstructions.safetensors"
    assert (tmp_path / "twice" / name).read_bytes() == (finished / name).read_bytes()
    assert json.loads((tmp_path / "twice" / "exchange" / "task.json").read_text())["batch_size"] == 4
