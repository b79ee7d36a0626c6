# SPDX-License-Identifier: Apache-2.0
"""`recon audit` and `recon report` with a stand-in for `recon fit`: resuming, failing, sharing a folder, exit codes."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lightning_recon.audit import runner
from lightning_recon.audit.commands import split
from lightning_recon.audit.config import AuditedAttack, Sweep
from lightning_recon.audit.plan import plan_of
from lightning_recon.cli import main
from lightning_recon.files.locking import claimed
from lightning_recon.files.run_folder import LOCK

MakeRun = Callable[..., Path]

STAND_IN = """
import json, os, shutil, signal, sys
from pathlib import Path

flags = dict(zip(sys.argv[1:], sys.argv[2:]))
folder = Path(flags["--trainer.default_root_dir"])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(folder.name + "\\n")
if os.environ.get("FAIL", "-") in folder.name and "FAIL" in os.environ:
    print("some noise\\nrecon: error: no room in /secret/place/file")
    sys.exit(2)
shutil.copytree(os.environ["TEMPLATE"], folder, dirs_exist_ok=True)
record = json.loads((folder / "results.json").read_text())
z = float(flags["--model.client.privacy.noise_multiplier"])
record["privacy"]["noise_multiplier"], record["seed"] = z, int(flags["--model.client.seed"])
for victim in record["victims"]:
    victim["psnr"] -= z
(folder / "results.json").write_text(json.dumps(record))
if "KILL" in os.environ and os.environ["KILL"] in folder.name:
    os.kill(os.getppid(), signal.SIGKILL)
"""
AUDIT = {
    "attacks": {"ours": {}, "theirs": {}},
    "noise_multiplier": [0.1, 1.0],
    "granularity": ["sample"],
    "reference": None,  # the first of each list
}
BY_EPSILON = ["--audit.noise_multiplier", "null", "--audit.epsilon", "[8]"]
DROPPING = ["--model.client.aggregated", "2", "--model.client.client_dropout", "0.1"]


@pytest.fixture
def config(tmp_path: Path, tiny: str, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of an audit of four cells; what was run stands in the file `calls`."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, "-S", str(tmp_path / "stand_in.py")))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("TEMPLATE", str(make_run("template")))
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump({"audit": AUDIT} | yaml.safe_load(Path(tiny).read_text())))
    return ["audit", "--config", str(tmp_path / "audit.yaml"), "--output"]


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().split() if (tmp_path / "calls").exists() else []


def status(*typed: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(typed)
    return int(stop.value.code or 0)


@pytest.mark.slow
def test_a_killed_audit_goes_on_and_comes_to_the_same(
    config: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main([*config, str(tmp_path / "whole")])
    assert len(calls(tmp_path)) == 4
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in ("results.csv", "report.html", "report.json")}

    driver = f"from lightning_recon.audit import runner; runner.PROGRAM = {runner.PROGRAM!r}\n"
    driver += f"from lightning_recon.cli import main; main({[*config, str(tmp_path / 'again')]!r})"
    monkeypatch.setenv("KILL", calls(tmp_path)[1])
    assert subprocess.run([sys.executable, "-c", driver], capture_output=True, timeout=250).returncode == -9
    assert len(calls(tmp_path)) == 4 + 2
    assert not (tmp_path / "again" / "results.csv").exists()
    # A cell that was under way when the machine went down has a folder, and no results.
    (tmp_path / "again" / "cells" / calls(tmp_path)[2] / "images").mkdir(parents=True)

    monkeypatch.delenv("KILL")
    main([*config, str(tmp_path / "again")])
    assert calls(tmp_path)[4:] == calls(tmp_path)[:4]  # two before it was killed, two after
    assert {name: (tmp_path / "again" / name).read_bytes() for name in whole} == whole

    main([*config, str(tmp_path / "again")])  # nothing is left to do
    assert len(calls(tmp_path)) == 8


def test_a_failed_cell_is_told_and_stops_no_other(
    config: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    monkeypatch.setenv("FAIL", "ours-sample-b8-t1-z0.1-")
    assert status(*config, str(output)) == 1
    assert len(calls(tmp_path)) == 4
    assert "failed: ours-sample-b8-t1-z0.1-" in " ".join(capsys.readouterr().out.split("\n"))
    page = (output / "report.html").read_text()
    assert "no room in …/file" in page
    assert "secret" not in page
    assert [cell["status"] for cell in json.loads((output / "report.json").read_text())["cells"]].count("failed") == 1
    # the same command tries that cell, and that cell alone, again
    monkeypatch.delenv("FAIL")
    main([*config, str(output)])
    assert calls(tmp_path)[4:] == [name for name in calls(tmp_path)[:4] if name.startswith("ours-sample-b8-t1-z0.1-")]
    assert "failed" not in (output / "results.csv").read_text()


def test_a_disk_that_is_full_at_the_end_costs_no_cell(
    config: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, write = tmp_path / "out", Path.write_text

    def full(self: Path, *given: str, **named: str) -> int:
        if "results.csv" in self.name:
            raise OSError(28, "No space left on device")
        return write(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        assert status(*config, str(output)) == 2
    told = capsys.readouterr().err.strip()
    assert told.endswith("No space left on device): choose a folder with free space that you may write")
    assert "\n" not in told
    main([*config, str(output)])
    assert len(calls(tmp_path)) == 4  # none had to run again
    assert (output / "results.csv").exists()


def test_several_audits_share_a_folder(config: list[str], tmp_path: Path) -> None:
    cell = plan_of(Sweep({"ours": AuditedAttack()}, [0.1]), [], tmp_path).cells[0]
    one = runner.Runner(tmp_path / "out", jobs=1)
    with claimed(one.locks / cell.name):  # another audit runs it
        assert not one.settle(cell, wait=False)
        waiting = threading.Thread(target=one.settle, args=(cell, True))
        waiting.start()
        assert calls(tmp_path) == []
        Path(tmp_path / "out" / "cells").mkdir()
        (tmp_path / "runs" / "template").rename(tmp_path / "out" / "cells" / cell.name)  # ... and has finished it
    waiting.join(timeout=60)
    assert not waiting.is_alive()
    assert one.settle(cell, wait=False)
    assert calls(tmp_path) == []


def test_a_run_that_has_outlived_its_audit_is_left_alone(config: list[str], tmp_path: Path) -> None:
    cell = plan_of(Sweep({"ours": AuditedAttack()}, [0.1]), [], tmp_path).cells[0]
    one = runner.Runner(tmp_path / "out", jobs=1)
    folder = tmp_path / "out" / "cells" / cell.name
    (folder / "exchange").mkdir(parents=True)
    with claimed(folder / LOCK):  # as `recon fit` holds it
        assert not one.settle(cell, wait=False)
        assert (folder / "exchange").is_dir()
    assert one.settle(cell, wait=False)
    assert not (folder / "exchange").exists()  # of the run that was stopped


def test_what_failed_a_moment_ago_elsewhere_is_not_tried_again(
    config: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "ours")
    cell = plan_of(Sweep({"ours": AuditedAttack()}, [0.1]), [], tmp_path).cells[0]
    mine, other = (runner.Runner(tmp_path / "out", jobs=1) for _ in range(2))
    mine.started = other.started = 0.0
    assert mine.settle(cell)
    assert other.settle(cell)
    assert len(calls(tmp_path)) == 1
    assert runner.failure(tmp_path / "out" / "cells" / cell.name) == "no room in …/file"


def test_a_cell_that_found_no_room_to_say_why_has_failed_all_the_same(tmp_path: Path) -> None:
    assert "no disk space" in runner.failure(tmp_path)
    for said, told in [
        ("", "no disk space"),
        ("\nexit status -9\n", "exit status -9"),
        ("a\nwhy\n\nexit status 1\n", "why"),
    ]:
        (tmp_path / "failed.txt").write_text(said)
        assert told in runner.failure(tmp_path)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--audit.epsilon", "[8]"], "both set the noise"),
        (["--audit.rounds", "[]"], "audit.rounds is empty"),
        (["--audit.noise_multiplier", "[-1]"], "noise_multiplier is -1"),
        (["--audit.delta", "1"], "audit.delta is 1"),
        (["--audit.wrong", "1"], "wrong"),
        (["--audit.interventions", "{x: {cost: much}}"], "“x” changes nothing"),
        (["--audit.interventions", "{x: {flags: {data.batch_size: 2}}}"], "use --audit.batch_size"),
        (["--audit.interventions", "{x: {flags: {data.wrong: 2}}}"], "wrong"),
        (["--audit.granularity", "[batch]"], "granularity"),
        (["--data.batch_size", "2"], "use --audit.batch_size"),
        (["--data.wrong", "2"], "wrong"),
        (["--model.client.privacy.max_grad_norm", ".inf"], "sets no bound"),
        (["--audit.attacks", "{x: {configs: [nothing.yaml]}}"], "nothing.yaml"),
        ([*BY_EPSILON, "--model.client.local.epochs", "2"], "local.epochs 2"),
        ([*BY_EPSILON, "--audit.rounds", "[1,3]", "--model.client.privacy.noise_bands", "2"], "noise_bands 2"),
        (
            [*BY_EPSILON, "--model.client.sampling", "poisson", "--data.local_images", "40"],
            "sampling poisson, under which an image is in some of the rounds only: set it to all, or give",
        ),
        (
            [*BY_EPSILON, *DROPPING, "--model.client.noise_share", "distributed"],
            "client_dropout 0.1, which takes noise out of sums: set it to 0, or give audit.noise_multiplier",
        ),
        pytest.param(
            ["--trainer.accelerator", "gpu"],
            "no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="a GPU"),
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(
    config: list[str], flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*config, str(tmp_path / "out"), *flags) == 2
    told = capsys.readouterr().err.strip()
    assert says in told
    assert told.startswith("recon: error: ")
    assert "\n" not in told
    assert calls(tmp_path) == []


def test_a_report_of_finished_runs(config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    main([*config, str(output), "--audit.seeds", "[0,1]"])
    main(["report", str(output), "--output", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_bytes() == (output / "report.html").read_bytes()
    assert (tmp_path / "again.csv").read_bytes() == (output / "results.csv").read_bytes()
    # single runs go by the name of their own attack
    runs = [str(path.parent) for path in output.glob("cells/ours*/results.json")]
    main(["report", *runs, "--output", str(tmp_path / "runs.html"), "--tolerance", "0.25", "--population_size", "10"])
    assert "0.25 dB" in (tmp_path / "runs.html").read_text()
    capsys.readouterr()
    for typed, says in [
        ([str(tmp_path), "--output", str(tmp_path / "x.html")], "holds no results.json"),
        ([str(output), "--output", str(tmp_path / "x.pdf")], "is not an HTML file"),
        (["--output", str(tmp_path / "x.html")], "RUN is missing"),
    ]:
        assert status("report", *typed) == 2
        assert says in capsys.readouterr().err


def test_a_smaller_sweep_tells_of_the_cells_that_its_report_leaves_out(
    config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*config, str(tmp_path / "out")])
    assert "not in this report" not in capsys.readouterr().out
    main([*config, str(tmp_path / "out"), "--audit.noise_multiplier", "[0.1]"])
    assert "2 finished cells of other settings in" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["own.html", "own.csv"])
def test_files_of_the_user_are_not_replaced(
    name: str, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("run")
    (tmp_path / name).write_text("name,value\nmine,1\n")
    assert status("report", str(run), "--output", str(tmp_path / "own.html")) == 2
    assert f"{name} exists and is not of a report of recon" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "name,value\nmine,1\n"
    assert [path.name for path in tmp_path.glob("own*")] == [name]
    (tmp_path / name).unlink()
    main(["report", str(run), "--output", str(tmp_path / "own.html")])
    assert f"report of 1 run: {tmp_path / 'own.html'}" in capsys.readouterr().out
    main(["report", str(run), "--output", str(tmp_path / "own.html")])


def test_a_command_line_is_parted() -> None:
    typed = "--config a.yaml --data.root photos -c b.yaml --audit.jobs=2 --trainer.max_steps=3 --seed_everything 4"
    assert split([*typed.split(), "--config=c.yaml", "--output", "out"]) == (
        ["a.yaml", "b.yaml", "c.yaml"],
        ["--data.root", "photos", "--trainer.max_steps=3", "--seed_everything", "4"],
        ["--audit.jobs=2", "--output", "out"],
    )
