# SPDX-License-Identifier: Apache-2.0
"""Iterations per second of Inverting Gradients: ours and its authors' package, alternating on the same machine.

    python scripts/speed.py --peer-python PATH          # writes results/speed.csv; without the peer only ours
    python scripts/speed.py --device cuda --victims 1 4 16 64

PATH is the interpreter of an environment with breaching 0.1.2, torch, torchvision and safetensors. Both tools get the
same network, updates, labels, start and schedule, and take turns of a few iterations; a row is the median turn. Ours
runs through Lightning's Trainer, as a user runs it. The peer attacks victims one after another: it is measured with
one, and its rate is the same for many. `cpu_s` is processor time an iteration of one victim, which other processes on
the machine disturb less; `objective` is the lowest after all iterations, each tool's own reckoning. The tools
do not reckon alike, so that equal quality is an equal share of the way: `level` is the objective at 99 % of the way
from the first to the lowest of the tool, and `seconds_to_level` and `cpu_s_to_level` are the time of the turns until
then, with the first and the compilation in it. On a GPU the code path exists and is untested.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = [
    "device", "tool", "attack", "network", "size", "victims", "victim_iterations_per_s", "peak_mib", "cpu_s",
    "precision", "compile", "ranks", "iterations", "objective_first", "objective", "threads",
    "level", "seconds_to_level", "cpu_s_to_level",
]  # fmt: skip
PRESETS = {"inverting_gradients": "invertinggradients", "inverting_gradients_modern": "modern"}
CLASSES = {"convnet": 10, "resnet18": 1000}
WAY = 0.99


def processor_time() -> float:
    """Seconds of this process and of the compilers that it has started."""
    compilers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + compilers.ru_utime + compilers.ru_stime


class Turns:
    """Stops a tool every few iterations until it is its turn again; a turn is timed without the waiting."""

    def __init__(self, length: int, cuda: bool) -> None:
        """Prepare turns of `length` iterations."""
        self.length, self.cuda, self.count, self.begun = length, cuda, 0, (0.0, 0.0)

    def iteration(self) -> None:
        """An iteration begins."""
        if self.count % self.length == 0:
            self.wait()
        self.count += 1

    def wait(self) -> None:
        """Report the duration of the turn, and wait for the next one."""
        if self.cuda:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), processor_time()
        print("TURN", json.dumps([wall - self.begun[0], cpu - self.begun[1]]), flush=True)
        sys.stdin.readline()
        self.begun = time.perf_counter(), processor_time()


def ours(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Our attack; saves the network, the first update, its label and its initialization for the peer."""
    import yaml
    from lightning.pytorch import Callback, LightningModule, Trainer

    from lightning_recon.attack import GradientInversion
    from lightning_recon.client import Privacy, VictimClient
    from lightning_recon.data.sources import ClientBatch
    from lightning_recon.priors.regularizers import Regularization

    torch.manual_seed(0)
    size, turns = job["size"], Turns(job["turn"], job["device"] == "cuda")
    client = VictimClient(
        job["network"],
        CLASSES[job["network"]],
        privacy=Privacy(max_grad_norm=None),
        batch_norm="eval",
        normalization="imagenet",
        noise_seed=0,
    )
    mask, batches = torch.ones(1, 1, size, size, dtype=torch.bool), []
    for victim in range(job["victims"]):
        picture, label = torch.rand(1, 3, size, size), torch.randint(10, (1,))
        batches.append(ClientBatch(picture, picture, mask, label, [str(victim)]))
    client.bind(batches)
    preset: dict[str, Any] = yaml.safe_load((ROOT / f"configs/attack/{job['attack']}.yaml").read_text())
    settings = preset["model"]["init_args"]
    rate = settings.pop("optimizer")["init_args"]["lr"]
    settings |= {"regularization": Regularization(**settings["regularization"]), "labels": "oracle", "record": False}
    settings |= {"compile": job["compile"], "optimizer": lambda params: torch.optim.Adam(params, lr=rate)}
    attack = GradientInversion(client, **settings)
    values: list[float] = []
    curve: list[float] = []  # the lowest objective after every turn

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: object, index: int) -> None:
            if index == 0:
                observation = next(iter(attack.observations.values()))
                start = attack.search.dummies[0].detach().cpu()
                content = {"network": client.network.state_dict(), "gradients": list(observation.update.values())}
                torch.save(content | {"label": observation.labels, "start": start}, folder / "shared.pt")
            if index == 1:
                values.append(attack.search.lowest.mean().item())
            if index and index % job["turn"] == 0:
                curve.append(attack.search.lowest.mean().item())
            if trainer.is_global_zero:
                turns.iteration()

    flags = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="gpu" if job["device"] == "cuda" else "cpu", devices=job["ranks"], max_steps=job["iterations"],
        precision=job["precision"], default_root_dir=folder, callbacks=[Watch()],
        strategy="ddp" if job["ranks"] > 1 else "auto", **flags,
    )  # fmt: skip
    trainer.fit(attack)
    if trainer.is_global_zero:
        turns.wait()
    lowest = attack.search.lowest.mean().item()
    return {"objective_first": values[0], "objective": lowest, "curve": [*curve, lowest]}


def peer(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The peer's attack on the first of our victims, from our start; its loop is untouched."""
    import breaching

    from lightning_recon.networks.construction import build_network
    from lightning_recon.networks.normalization import IMAGENET_MEAN, IMAGENET_STD

    class Metadata:
        modality, task, classes, vocab_size = "vision", "classification", CLASSES[job["network"]], 0
        shape, mean, std = (3, job["size"], job["size"]), IMAGENET_MEAN, IMAGENET_STD

        def __getitem__(self, key: str) -> object:
            return getattr(self, key)

    device = torch.device(job["device"])
    shared = torch.load(folder / "shared.pt", map_location=device)
    # It takes standardised images.
    network = build_network(job["network"], CLASSES[job["network"]], normalization="none")
    network.load_state_dict(shared["network"])
    model, loss = network.to(device).eval(), torch.nn.CrossEntropyLoss()
    changes = [f"optim.max_iterations={job['iterations']}", f"optim.callback={10 * job['iterations']}"]
    config = breaching.get_attack_config(PRESETS[job["attack"]], overrides=changes)
    attacker = breaching.attacks.prepare_attack(model, loss, config, {"device": device, "dtype": torch.float})
    turns, original = Turns(job["turn"], job["device"] == "cuda"), attacker._compute_objective

    def counted(*given: object, **named: object) -> object:
        turns.iteration()
        return original(*given, **named)

    attacker._compute_objective = counted
    shipped = [{"parameters": list(model.parameters()), "buffers": list(model.buffers()), "metadata": Metadata()}]
    told = {"num_data_points": 1, "labels": shared["label"], "local_hyperparams": None}
    answered = [{"gradients": shared["gradients"], "buffers": None, "metadata": told}]
    _, stats = attacker.reconstruct(shipped, answered, {}, initial_data=shared["start"], dryrun=False)
    turns.wait()
    values = stats["Trial_0_Val"]
    ends = range(job["turn"], job["iterations"] + 1, job["turn"])
    return {"objective_first": values[0], "objective": min(values), "curve": [min(values[:end]) for end in ends]}


class Worker:
    """A tool in a separate process, which waits for its turns."""

    def __init__(self, python: str, role: str, job: dict[str, Any], folder: Path) -> None:
        """Start it; it waits at its first iteration."""
        self.job, self.turns, self.result = job, list[list[float]](), dict[str, Any]()
        path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
        command = [python, __file__, "--role", role, "--job", json.dumps(job), "--folder", str(folder)]
        own = {"PYTHONPATH": path} | ({"OMP_NUM_THREADS": str(job["threads"])} if "threads" in job else {})
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | own
        )
        self.listen()

    def listen(self) -> bool:
        """Read until the tool waits or ends; return whether it waits."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            kind, _, content = line.partition(" ")
            if kind == "TURN":
                self.turns.append(json.loads(content))
                return True
            if kind == "RESULT":
                self.result = json.loads(content)
        if self.process.wait():
            raise SystemExit(f"{self.job} failed")
        return False

    def turn(self) -> bool:
        """Give it a turn; return whether there are more."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.listen()

    def row(self, tool: str) -> dict[str, object]:
        """The measurements; the first turn is warm-up."""
        walls, cpus = zip(*self.turns[2:], strict=True)
        steps, victims = self.job["turn"], self.job["victims"]
        kept = {name: self.job[name] for name in COLUMNS if name in self.job}
        return kept | {
            "tool": tool, "victim_iterations_per_s": round(steps * victims / statistics.median(walls), 4),
            "cpu_s": round(statistics.median(cpus) / steps / victims, 6),
            **{name: value for name, value in self.result.items() if name in COLUMNS},
        }  # fmt: skip

    def time_to_level(self) -> dict[str, object]:
        """Time until the lowest objective has gone most of the way from the first to the last."""
        first, last = self.result["objective_first"], self.result["objective"]
        level = first - WAY * (first - last)
        reached = next(turn for turn, lowest in enumerate(self.result["curve"], start=1) if lowest <= level)
        wall, cpu = (sum(times) for times in zip(*self.turns[1 : reached + 1], strict=True))  # the first is the start
        return {"level": level, "seconds_to_level": round(wall, 3), "cpu_s_to_level": round(cpu, 3)}


def measure(jobs: list[dict[str, Any]], peer_python: str | None) -> list[dict[str, object]]:
    """Rows of several variants of one job, which take turns; the peer is compared with the first of one victim."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / str(number) for number in range(len(jobs))]
        for folder in folders:
            folder.mkdir()
        workers = [
            (Worker(sys.executable, "ours", job, folder), "ours") for job, folder in zip(jobs, folders, strict=True)
        ]
        if peer_python:
            # As many victim-iterations in a turn: after every wait the first ones are slow, which must hit both alike.
            job, many = jobs[0], jobs[0]["victims"]
            alone = job | {"victims": 1, "turn": job["turn"] * many, "iterations": job["iterations"] * many}
            workers.append((Worker(peer_python, "peer", alone, folders[0]), "breaching"))
        waiting = list(workers)
        while waiting:
            waiting = [pair for pair in waiting if pair[0].turn()]
        rows = [worker.row(tool) for worker, tool in workers]
        rows = [row | worker.time_to_level() for row, (worker, _) in zip(rows, workers, strict=True)]
    for row in rows:
        print(row, flush=True)
    return rows


def work(role: str, job: dict[str, Any], folder: Path) -> None:
    """Run one worker."""
    warnings.filterwarnings("ignore")
    result = (ours if role == "ours" else peer)(job, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if job["device"] == "cuda":
        peak = torch.cuda.max_memory_allocated()
    result |= {"peak_mib": round(peak / 2**20), "threads": torch.get_num_threads()}
    print("RESULT", json.dumps(result), flush=True)


def main() -> None:
    """Measure all jobs, and write a row for each tool and variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter of the peer's environment")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--networks", nargs="+", default=["convnet", "resnet18"], choices=list(CLASSES))
    parser.add_argument("--attacks", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--victims", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--turns", type=int, default=7, help="the first is warm-up")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too: minutes at the start")
    parser.add_argument("--ranks", action="store_true", help="measure one and two processes of a thread each too")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "speed.csv")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.role:
        return work(chosen.role, chosen.job, chosen.folder)
    rows: list[dict[str, object]] = []
    for network in chosen.networks:
        for attack in chosen.attacks:
            for victims in chosen.victims:
                small = network == "convnet"
                turn = max(1, (40 if small else 2) // (victims if chosen.device == "cpu" else 1))
                if chosen.ranks:
                    turn = max(10, turn)  # the other process goes on to the next exchange while this one waits
                job = {
                    "device": chosen.device, "attack": attack, "network": network, "size": 32 if small else 224,
                    "victims": victims, "precision": "32-true", "compile": False, "ranks": 1, "turn": turn,
                    "iterations": turn * chosen.turns,
                }  # fmt: skip
                jobs = [job, job | {"precision": "bf16-mixed"}]
                jobs += [job | {"compile": True}] if chosen.compile and small else []
                if chosen.ranks and victims > 1:
                    jobs += [job | {"threads": 1}, job | {"ranks": 2, "threads": 1}]
                rows += measure(jobs, chosen.peer_python)
                write(chosen.output, rows)
    return None


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """Write the measurements so far."""
    command = "python scripts/speed.py " + " ".join(part if os.sep not in part else "PATH" for part in sys.argv[1:])
    versions = ", ".join(f"{name} {version(name)}" for name in ("lightning_recon", "torch", "lightning"))
    with path.open("w", newline="") as file:
        file.write(f"# {command.strip()}; {versions}, breaching 0.1.2\n")
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
