# SPDX-License-Identifier: Apache-2.0
"""What `recon` answers to people who type: help, lists, one line for a mistake with one suggestion, and plain logs."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich

from lightning_recon import __version__, console
from lightning_recon.callbacks.progress import step_line
from lightning_recon.cli import find_modules_here, main
from lightning_recon.command_line.commands import COMMANDS, help_of
from lightning_recon.command_line.config_files import line_of, read_config
from lightning_recon.command_line.lightning_cli import roots
from lightning_recon.command_line.options import choices_of, described, group_of, type_of
from lightning_recon.command_line.replay import sameness
from lightning_recon.command_line.shipped_configs import CONFIGS, shipped
from lightning_recon.errors import UserError
from lightning_recon.suggestions import closest

Fit = Callable[..., dict[str, Any]]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(arguments)
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("recon: error: ")
    return line.removeprefix("recon: error: ")


# --- help, lists, versions ---


def test_asking_about_the_program_imports_no_torch() -> None:
    asked = (
        "[[], ['--help'], ['fit', '--help'], ['help', 'audit'], ['configs'], ['configs', 'quickstart'], ['version']]"
    )
    code = f"from lightning_recon.cli import main\nimport sys\nfor args in {asked}: main(args)\n"
    code += "assert not {'torch', 'lightning', 'jsonargparse', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_every_command_is_listed_with_what_it_does(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(capsys, *arguments)
    assert all(
        re.search(rf"^  {name} +{re.escape(command.summary)}$", said, re.M) for name, command in COMMANDS.items()
    )
    assert "Lightning" not in said


def test_commands_teach_by_examples_of_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        said = answer(capsys, name, "--help")
        assert said == help_of(name) == answer(capsys, "help", name)
        assert len(said.splitlines()) < 65
        assert max(map(len, said.splitlines())) <= 120


def test_the_options_that_help_teaches_exist() -> None:
    """An option that was renamed would stay in the help."""
    from lightning_recon.command_line.completion import flattened

    known = dict(flattened(roots()))
    taught = {
        name
        for command in ("fit", "validate", "test", "predict")
        for name in re.findall(r"--([\w.]+)", help_of(command))
    }
    assert taught - {"model.help", "OPTION"} <= known.keys() | roots().keys()
    assert len(taught) > 20


def test_the_whole_reference_begins_with_our_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help_all"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: recon fit [--config FILE]")
    assert said.index("--results.inspect") < said.index("--trainer.max_steps")
    assert "<class" not in said.partition("--trainer.accelerator")[0].replace("type: <class", "")


@pytest.mark.parametrize("word", ["version", "--version"])
def test_the_version_has_the_programs_name(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, word) == f"recon {__version__}\n"


def test_shipped_configs_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(capsys, "configs")
    for name, path in shipped().items():
        (line,) = [line for line in said.splitlines() if line.startswith(f"{name} ")]
        assert line.split(maxsplit=1)[1].startswith(path.read_text().splitlines()[0].removeprefix("# "))
    assert {"quickstart.yaml", "attack/paper.yaml", "defense/dp_sgd.yaml", "trainer/cpu.yaml"} <= shipped().keys()
    for name in ("attack/paper.yaml", "attack/paper", "configs/attack/paper.yaml"):
        assert answer(capsys, "configs", name) == (CONFIGS[1] / "attack/paper.yaml").read_text()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    text = answer(capsys, "completion", shell)
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)
    assert all(f"{word}" in text for word in (*COMMANDS, "--model.client.privacy.noise_multiplier", "RobbingTheFed"))


def complete(script: str, typed: list[str]) -> list[str]:
    words = " ".join(f"'{word}'" for word in typed)
    ask = f"{script}\nCOMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}\n"
    ask += '"$(complete -p recon | sed "s/.*-F //; s/ .*//")" recon "${COMP_WORDS[COMP_CWORD]}"\n'
    ask += 'printf "%s\\n" "${COMPREPLY[@]}"'
    return subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=False).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_options_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    script = answer(capsys, "completion", "bash")
    assert complete(script, ["recon", "rep"]) == ["replay", "report"]
    assert complete(script, ["recon", "fit", "--model.client.privacy.gran"]) == ["--model.client.privacy.granularity"]
    assert complete(script, ["recon", "fit", "--model.structure", "Dig"]) == ["Digital"]
    assert complete(script, ["recon", "fit", "--data.source", "ci"]) == ["cifar100"]
    assert "quickstart.yaml" in complete(script, ["recon", "fit", "--config", "quick"])


# --- mistakes ---


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("fitt", "there is no command 'fitt': did you mean fit? commands: fit, validate, test, predict, replay, audit"),
        ("--verson", "there is no option --verson: did you mean --version?"),
        ("--trainer.max_steps 3 fit", "--trainer.max_steps comes before the command"),
        ("help fot", "did you mean fit?"),
        ("configs quickstrat", "no config 'quickstrat' ships: did you mean quickstart.yaml?"),
        ("completion fish", "for which shell? recon completion bash|zsh|tcsh"),
        ("replay", "RUN and --output are missing: recon replay RUN --output DIR"),
        ("replay x", "--output is missing: recon replay RUN --output DIR"),
        ("replay x --ouput y", "there is no option --ouput of recon replay: did you mean --output?"),
        ("report", "RUN and --output are missing: recon report RUN... --output FILE.html"),
        ("report x --tolerance big --output y.html", "--tolerance is 'big': give a number"),
        ("audit --config audit.yaml", "--output is missing: recon audit --config FILE --output DIR"),
        ("audit --config audit.yaml --output x --audit.seed 1", "did you mean --audit.seeds?"),
        ("audit --config audit.yaml --output x --audit.reference.round 2", "did you mean --audit.reference.rounds?"),
        ("QS --model.structure null", "--model.structure is missing: give it, or a config that has it, such as"),
        ("audit --config audit.yaml --output x --audit.jobs two", "--audit.jobs is 'two': give a whole number"),
        (
            "audit --config audit.yaml --output x --audit.granularity [samples]",
            "--audit.granularity is 'samples': did you mean sample? give a list, each entry one of sample, update",
        ),
        ("fit --config quickstrat.yaml", "there is no config quickstrat.yaml: did you mean quickstart.yaml?"),
        ("fit --config /nowhere/x.yaml", "there is no config /nowhere/x.yaml: give the path of a file"),
        ("fit --config", "--config has no value: give one, as in --config VALUE"),
        (
            "fit --data.batch_size 4",
            "--data.batch_size belongs to a class that was not chosen: give --config quickstart",
        ),
        ("QS --hlep", "there is no option --hlep of recon fit: did you mean --help?"),
        ("QS -x", "there is no option -x of recon fit: see recon fit --help"),
        ("QS stray", "'stray' belongs to no option: options are --NAME VALUE; see recon fit --help"),
        ("QS --confg a.yaml", "did you mean --config?"),
        ("QS --seed 3", "did you mean --seed_everything?"),
        ("QS --modle.draws 2", "there is no option --modle.draws of recon fit: did you mean --model.draws?"),
        ("QS --model.clinet.network convnet", "did you mean --model.client.network?"),
        ("QS --model.client.privcy.delta 1", "did you mean --model.client.privacy.delta?"),
        (
            "QS --model.client.privacy.noise_multiplie 1",
            "there is no option --model.client.privacy.noise_multiplie of VictimClient: did you mean "
            "--model.client.privacy.noise_multiplier?",
        ),
        (
            "QS --trainer.max_step=3",
            "there is no option --trainer.max_step of recon fit: did you mean --trainer.max_steps?",
        ),
        (
            "QS --data.nonsense 3",
            "there is no option --data.nonsense of ClientDataModule: it has root, source, image_size",
        ),
        ("QS --data.image_size", "--data.image_size has no value: give one, as in --data.image_size VALUE"),
        ("QS --data.image_size big", "--data.image_size is 'big': give a whole number"),
        ("QS --model.structure.units many", "--model.structure.units is 'many': give a whole number or null"),
        ("QS --data.download ja", "--data.download is 'ja': give true or false"),
        ("QS --data.source cifar10", "--data.source is 'cifar10': did you mean cifar100? give one of samples, folder"),
        ("QS --trainer.precision bf17", "--trainer.precision is 'bf17': did you mean bf16? give one of"),
        ("QS --model.client.privacy 3", "--model.client.privacy is '3': give its parts by name: max_grad_norm,"),
        (
            "QS --model ReconstructionAtack",
            "--model: there is no class ReconstructionAtack: did you mean Reconstruction",
        ),
        ("QS --model.structure Digitl", "--model.structure: there is no class Digitl: did you mean Digital?"),
        ("QS --model.structure lightning_recon.strcture.Digital", "did you mean Digital?"),
        (
            "QS --model.structure torch.nn.Linear",
            "torch.nn.Linear is no Structure: give Digital, Feedback, RobbingTheFed,",
        ),
        ("QS --model.optimizer torch.optim.Adm", "there is no class torch.optim.Adm: did you mean Adam?"),
        ("QS --trainer.logger CSVLoger", "there is no class CSVLoger: did you mean CSVLogger?"),
        ("QS --comparison.structure Digitl", "--comparison.structure: there is no class Digitl: did you mean Digital?"),
        (
            "QS --model.denoiser bilaterl.Bilateral",
            "--model.denoiser: there is no module 'bilaterl': run recon in the folder that holds it, or put that "
            "folder on PYTHONPATH",
        ),
    ],
)
def test_a_mistake_is_one_line_with_one_suggestion(typed: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, *typed.replace("QS", "fit --config quickstart.yaml").split())
    assert says in line
    assert line.count("did you mean") <= 1
    assert not re.search(r"Parser key|class_path|Union|typing|error:|<class", line)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"# \xe9t\xe9\nmodel: {}\n", "line 1: not UTF-8: save the file with that encoding"),
        ("seed_everything: 1\n".encode("utf-16"), "line 1: not UTF-8"),
        (b"seed_everything: 1\nmodel:\n\tclass_path: x\n", "line 3: indent with spaces, not tabs"),
        (b"model: [1,\n  b: {", "line 2: expected the node content"),
        (b"a: *x\n", "line 1: found undefined alias 'x'"),
        (b"seed_everything: 1\x00\n", "line 1: special characters are not allowed"),
        (b"a: !!python/object/apply:os.system [exit]\n", "line 1: could not determine a constructor"),
        (b"", "sets nothing: write settings into it, or leave it out"),
        (b"# nothing\n", "sets nothing"),
        (b"- a\n", "is a list, not settings"),
        (b"a text\n", "is a text, not settings"),
        (b"data:\n  seed: 1\n  seed: 2\n", "line 3: seed is already set in line 2: keep one"),
        (b"[" * 3000, "nested too deeply"),
        (
            b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40)),
            "stands for more",
        ),
        (b"modle:\n  draws: 2\n", "line 1: there is no setting modle: did you mean model?"),
        (b"audit:\n  jobs: 2\n", "line 1: there is no setting audit"),
        (b"data:\n  init_args:\n    batch_size: many\n", "--data.batch_size is 'many' ("),
        (b"trainer:\n\n  max_step: 3\n", "there is no option --trainer.max_step of recon fit ("),
    ],
)
def test_a_bad_config_is_named_with_its_line(
    content: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    line = refusal(capsys, "fit", "--config", "quickstart.yaml", "--config", str(path))
    assert says in line
    assert str(path) in line
    if says.endswith("("):
        assert f"({path}, line 3)" in line


def test_folders_are_no_configs_and_a_byte_order_mark_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is a directory"):
        read_config(str(tmp_path))
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfmodel:\n  init_args:\n    draws: 3\n")
    assert read_config(str(tmp_path / "bom.yaml")) == {"model": {"init_args": {"draws": 3}}}
    assert line_of(str(tmp_path / "bom.yaml"), ["model", "draws"]) == 3
    assert line_of(str(tmp_path / "bom.yaml"), ["model", "draw"]) is None


def test_suggestions() -> None:
    assert closest("Digitl", ["Digital", "Feedback"]) == "Digital"
    assert closest("seed", ["seed_everything", "results"]) == "seed_everything"
    assert closest("nonsense", ["model", "data"]) is None
    assert described(type_of(roots(), "trainer.max_steps")) == "a whole number"
    assert choices_of(type_of(roots(), "results.show")) == ["true", "false"]
    assert group_of(roots()["model"]) is None


# --- modules of the current folder ---


def test_a_class_path_finds_a_module_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", list(before))
    for name in ("mine.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('executed')\n")
    find_modules_here(["fit", "--model.client.network", "json.Net", "--data.root", "elsewhere.x", "0.5", "mine.py"])
    assert sys.path == before  # nothing of here was named, or what is installed has the name
    find_modules_here(["--model.structure=mine.Structure"])
    assert sys.path == [*before, str(tmp_path)]


# --- the terminal ---


@pytest.mark.parametrize("name", ["x[/red]y", "[bold]", "a\x1b[31mb", "\\[x", "é…–"])
def test_names_are_printed_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.say(f"pictures in {name}")
    assert capsys.readouterr().out == f"pictures in {name}\n".replace("\x1b", "\\x1b")


def test_a_run_into_a_folder_with_markup_in_its_name(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "x[/red]y"
    fit(root, "--results.show", "true", "--trainer.max_steps", "3")
    said = capsys.readouterr().out
    assert f"tensorboard --logdir {root}" in said
    # What pytest captures is no terminal: lines instead of a bar.
    assert re.search(r"^step 1 of 3, objective [\d.e+-]+, \d+ s left$", said, re.M)
    assert re.search(r"^step 3 of 3, .*, 0 s left$", said, re.M)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", said)


def test_quiet_says_nothing_of_a_good_run(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, "--results.show", "true", "--quiet")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    main(["version"])
    assert not rich.get_console().quiet  # the next command is not quiet for that


def test_lines_of_a_log() -> None:
    assert step_line(40, 300, 0.0123, 0.05) == "step 40 of 300, objective 0.0123, 13 s left"
    assert step_line(40, -1, None, 0.05) == "step 40"


# --- what was written ---


def test_commands_say_what_they_wrote(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    shutil.copytree(finished, run)
    here = ["--trainer.default_root_dir", str(run)]
    before = sorted(run.rglob("*"))
    assert "nothing was attacked" in answer(capsys, "validate", "--config", str(run / "config.yaml"), *here)
    assert sorted(run.rglob("*")) == before
    said = answer(capsys, "predict", "--config", str(run / "config.yaml"), *here)
    assert f"{len(list((run / 'predictions').glob('*.png')))} reconstructions of {run}" in said
    assert str(run / "predictions") in said
    said = answer(capsys, "replay", str(run), "--output", str(again))
    assert f"reconstructions in {again}: equal to those of {run}, bit for bit" in said


def test_replays_that_differ(finished: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    name = "reconstructions.safetensors"
    assert sameness(finished, finished).endswith("bit for bit")
    assert "has none to compare them with" in sameness(tmp_path, finished)
    pictures = load_file(finished / name)
    save_file({key: one * 0.5 for key, one in pictures.items()}, tmp_path / name, {"beliefs": "{}"})
    assert re.search(r"not equal to those of .* pixels differ by up to 0\.\d+ of 1", sameness(finished, tmp_path))
    save_file({key: one[:1] for key, one in pictures.items()}, tmp_path / name)
    assert "others than those of" in sameness(finished, tmp_path)
