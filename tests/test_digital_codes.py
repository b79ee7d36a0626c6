# SPDX-License-Identifier: Apache-2.0
"""Digital codes from the command line: what the record says of the files, which is the same however it is made."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_recon.callbacks.reconstruction_file import finished
from lightning_recon.cli import main

Fit = Callable[..., dict[str, Any]]
FLAGS = ["--config", "attack/digital.yaml", "--data.clients", "2", "--trainer.max_steps", "1"]
FLAGS += ["--model.structure.jpeg_xl", "false"]  # whether the extra is installed or not
QUIET = [*FLAGS, "--model.client.privacy.noise_multiplier", "2.0e-4"]
# More noise than the server designed for: no codeword gets through.
LOUD = ["--config", "attack/digital.yaml", "--model.client.privacy.granularity", "sample", "--trainer.max_steps", "0"]
LOUD += ["--model.client.privacy.noise_multiplier", "0.01", "--model.structure.assumed_noise", "0.006"]
FIELDS = ("codec", "code_rate", "bits_sent", "capacity_bits")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, fit: Fit) -> Path:
    """A finished run whose files all arrive."""
    root = tmp_path_factory.mktemp("quiet")
    fit(root, *QUIET)
    return root


def record_of(root: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((root / "results.json").read_text())
    return record


def test_every_file_is_named_with_its_rate_and_its_bits(quiet: Path) -> None:
    record = record_of(quiet)
    summary, bounds = record["summary"], record["bounds"]
    assert record["schema_version"] == 1
    for victim in record["victims"]:
        assert (victim["codec"], victim["bit_exact"], victim["psnr"]) == ("webp", True, 100.0)
        assert 0 < victim["bits_sent"] < victim["capacity_bits"] <= victim["bits_sent"] / victim["code_rate"] * 1.001
        assert victim["capacity_bits"] < bounds["channel_bits"]
    assert summary["channel_code"] == "irregular repeat-accumulate"
    assert (summary["file_decoded_fraction"], summary["bit_exact_share"]) == (1.0, 1.0)
    assert summary["bits_sent_mean"] == statistics.fmean(victim["bits_sent"] for victim in record["victims"])
    assert bounds["channel_bits"] == pytest.approx(1.442695 * bounds["channel_nats"])


def test_a_lost_file_leaves_null(fit: Fit, tmp_path: Path) -> None:
    record = fit(tmp_path, *LOUD)
    assert all(victim[name] is None for victim in record["victims"] for name in FIELDS)
    summary = record["summary"]
    assert (summary["channel_code"], summary["file_decoded_fraction"]) == ("irregular repeat-accumulate", 0.0)
    assert (summary["bits_sent_mean"], summary["capacity_bits_mean"]) == (None, None)


def test_what_is_sent_as_numbers_has_no_file(finished: Path) -> None:
    record = record_of(finished)
    assert all(victim[name] is None for victim in record["victims"] for name in FIELDS)
    names = ("channel_code", "file_decoded_fraction", "bits_sent_mean", "capacity_bits_mean")
    assert [record["summary"][name] for name in names] == [None] * 4


def same(one: Path, other: Path) -> bool:
    """Whether two records say the same, but for what a clock told."""
    for record in (records := [record_of(root) for root in (one, other)]):
        del record["sha256"]
        for name in ("seconds", "steps_per_second"):
            del record["summary"][name]
    return records[0] == records[1]


def test_a_replay_knows_of_the_same_files(quiet: Path, tmp_path: Path) -> None:
    main(["replay", str(quiet), "--output", str(tmp_path)])
    name = "reconstructions.safetensors"
    assert (tmp_path / name).read_bytes() == (quiet / name).read_bytes()
    files = [file for said in finished(tmp_path)[1].values() for file in said["files"]]
    assert sorted(file.bits for file in files) == sorted(one["bits_sent"] for one in record_of(quiet)["victims"])


def test_a_run_that_is_scored_again_has_the_same_record(quiet: Path) -> None:
    before = record_of(quiet)
    main(["test", "--config", str(quiet / "config.yaml")])
    assert record_of(quiet) == before


@pytest.mark.slow
def test_two_ranks_come_to_the_same_record(tiny: str, quiet: Path, tmp_path: Path) -> None:
    ranks = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.default_root_dir", str(tmp_path)]
    command = [sys.executable, "-m", "lightning_recon", "fit", "--config", tiny, *QUIET, *ranks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert same(quiet, tmp_path)
