# SPDX-License-Identifier: Apache-2.0
"""What a GPU does: tests, results equal to the CPU's, speed, decoding, images a minute, peak memory.

    python scripts/gpu_check.py                                   # writes results/gpu.csv
    python scripts/gpu_check.py --peer-python PATH                # speed of breaching in the same run, see speed.py
    python scripts/gpu_check.py --device cpu --results DIR        # the same at small sizes without a GPU

A row is one measurement: the check, what was measured, the quantity, its value, and whether it passed; this is empty
where nothing can fail. The bundled photographs are attacked, so nothing has to be downloaded. The exit status is 1 if
a check fails. On `--device cpu`, which shows that the script works, the tests that need a GPU are skipped, and the
"equality" compares two runs on the CPU.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measuring import write_rows
from safetensors.torch import load_file

from lightning_recon.attack.protocol import run_protocol
from lightning_recon.cli import main as recon
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.structure import Digital

ROOT = Path(__file__).resolve().parent.parent
# Largest difference of a pixel between the runs, a grey level: kernels round differently, and convolutions on NVIDIA's
# GPUs use TF32 unless the user forbids it.
TOLERANCE = 1 / 255
ALONE = (
    "--data.masks lightning_recon.data.NoMasks --model.client.noise_seed 0 --comparison.structure null "
    "--comparison.noise_factor null --model.record false"
)


@dataclass(frozen=True)
class Row:
    """One measurement; `passed` is None where there is nothing to pass."""

    check: str
    case: str
    quantity: str
    value: float
    passed: bool | None = None


@dataclass(frozen=True)
class Case:
    """A run of the malicious attack: options of `recon fit`, and those that make it small."""

    name: str
    options: str
    small: str

    def words(self, small: bool) -> list[str]:
        """The options by words."""
        return f"{self.options} {ALONE} {self.small if small else ''}".split()


QUICKSTART = Case("quickstart", "--config quickstart.yaml", "")
IMAGENET = Case(
    "imagenet",
    "--config imagenet.yaml --data.source samples --data.num_classes 16 --model.client.num_classes 16 --data.clients 4 "
    "--data.batch_size 4",
    "--data.image_size 32 --data.clients 1 --model.client.network convnet --trainer.max_steps 2",
)
# Its images depend on rounding, while those of a decoded file are exact.
LINEAR = Case(
    "linear code", "--config quickstart.yaml --config attack/linear.yaml", "--data.image_size 32 --trainer.max_steps 2"
)


def tests() -> Iterator[Row]:
    """The tests marked `gpu`, which are skipped without one."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "0",
            "-q",
            "-m",
            "gpu",
            f"--junit-xml={report}",
            "tests/devices",
        ]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        suite = next(ElementTree.parse(report).iter("testsuite"))
    for quantity in ("tests", "failures", "errors", "skipped"):
        yield Row("tests", "pytest -m gpu", quantity, int(suite.attrib[quantity]), status == 0)


def fitted(case: Case, device: str, small: bool, root: Path) -> Path:
    """Run the attack on a device; the folder of the run."""
    accelerator = "gpu" if device == "cuda" else device
    place = ["--trainer.default_root_dir", str(root), "--trainer.accelerator", accelerator]
    recon(["fit", *case.words(small), *place])
    return root


def attacks(device: str, small: bool) -> Iterator[Row]:
    """Images equal to the CPU's, images a minute, and peak memory."""
    # At small sizes the linear code alone, whose options hold those of the quickstart: a minute has to be enough.
    for case in (LINEAR, IMAGENET) if small else (QUICKSTART, LINEAR, IMAGENET):
        with tempfile.TemporaryDirectory() as folder:
            reference = fitted(case, "cpu", small, Path(folder) / "cpu")
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            run = fitted(case, device, small, Path(folder) / "device")
            yield Row("peak memory", case.name, "MiB", round(peak_memory(device) / 2**20))
            there, here = (load_file(one / "reconstructions.safetensors") for one in (run, reference))
            record = json.loads((run / "results.json").read_text())
        same = there.keys() == here.keys() and all(there[name].shape == here[name].shape for name in there)
        worst = max(float((there[name].double() - here[name].double()).abs().max()) for name in there) if same else 1.0
        yield Row("equality", case.name, "largest difference of a pixel", worst, worst <= TOLERANCE)
        summary = record["summary"]
        yield Row("images", case.name, "PSNR in dB", round(summary["psnr_mean"], 4))
        yield Row("images", case.name, "seconds of the attack", round(summary["seconds"], 3))
        yield Row("images", case.name, "images a minute", round(60 * len(record["victims"]) / summary["seconds"], 2))


def decoding(device: str, small: bool) -> Iterator[Row]:
    """A client's answer, and the digital code's decoding, which runs in host memory."""
    size, batch = (32, 4) if small else (224, 16)
    data = ClientDataModule(image_size=size, batch_size=batch, masks=NoMasks())
    data.prepare_data()
    data.setup()
    client = VictimClient("convnet", 16, privacy=Privacy(10.0, 2e-4), noise_seed=0)
    client.bind(data.client_batches)
    client.to(device)
    structure = Digital()
    payload = structure.payload(client.task)
    client.share(payload, 0, 0, 0)  # warm-up
    begun = time.perf_counter()
    client.share(payload, 0, 1, 0).gradient["structure.weight"].cpu()
    answered = time.perf_counter()
    found = run_protocol(client, structure, payload, 0, 2, None)
    both = time.perf_counter() - answered
    case = f"{batch} images of {size} x {size}"
    yield Row("decoding", case, "seconds of an answer", round(answered - begun, 4))
    yield Row("decoding", case, "seconds of an answer and its decoding", round(both, 4))
    yield Row("decoding", case, "images found", len(found.images), len(found.images) == batch)


def speed(device: str, small: bool, peer_python: str | None) -> Iterator[Row]:
    """Victim-iterations a second of gradient inversion, by `scripts/speed.py`."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "speed.csv"
        command = [sys.executable, str(ROOT / "scripts" / "speed.py"), "--device", device, "--output", str(table)]
        command += ["--attacks", "inverting_gradients"]
        if small:
            command += ["--networks", "convnet", "--victims", "1", "--turns", "3"]
        if peer_python:
            command += ["--peer-python", peer_python]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": _path()})
        with table.open(newline="") as file:
            next(file)
            for row in csv.DictReader(file):
                case = " ".join(row[name] for name in ("tool", "network", "size", "victims", "precision"))
                yield Row("speed", case, "victim-iterations a second", float(row["victim_iterations_per_s"]))
                yield Row("speed", case, "peak MiB", float(row["peak_mib"]))


def peak_memory(device: str) -> int:
    """Bytes: allocated on the GPU since the last reset, or resident in this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _path() -> str:
    return os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)


def main() -> None:
    """Run all checks in order, and write the table after each, so that one that fails loses nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of gpu.csv")
    parser.add_argument("--peer-python", help="interpreter of an environment with breaching 0.1.2")
    chosen = parser.parse_args()
    device, small = chosen.device, chosen.device == "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device: give --device cpu to try the script without one")
    warnings.filterwarnings("ignore")  # Lightning's, about loaders without workers
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    rows: list[Row] = []
    steps = (
        tests(),
        attacks(device, small),
        speed(device, small, chosen.peer_python),
        decoding(device, small),
    )
    chosen.results.mkdir(parents=True, exist_ok=True)
    for step in steps:
        for row in step:
            rows.append(row)
            print(f"{row.check:12} {row.case:40} {row.quantity:38} {row.value:12g} {row.passed}", flush=True)
        kept = [{"device": name, "torch": torch.__version__} | asdict(one) for one in rows]
        write_rows(chosen.results / "gpu.csv", f"python scripts/gpu_check.py --device {device}", kept)
    failed = [row for row in rows if row.passed is False]
    if failed:
        raise SystemExit(
            "failed: " + "; ".join(f"{row.check} {row.case}: {row.quantity} {row.value}" for row in failed)
        )


if __name__ == "__main__":
    main()
