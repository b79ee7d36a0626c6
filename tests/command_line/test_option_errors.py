# SPDX-License-Identifier: Apache-2.0
"""A mistake on the command line is one line with one suggestion."""

import re

import pytest

from lightning_recon.command_line.lightning_cli import roots
from lightning_recon.command_line.options import choices_of, described, group_of, type_of
from lightning_recon.suggestions import closest

from .typed import refusal


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
            "audit --config audit.yaml --output x --audit.attacks null",
            "--audit.attacks is null: give a mapping of names to values",
        ),
        ("version --foo", "recon version takes no arguments, and --foo was given: leave it out"),
        (
            "QS --data.alpha 0.5",
            "--data.alpha is an option of DatasetClients, not of ClientDataModule: give --data DatasetClients",
        ),
        (
            "QS --data.nonsense 3",
            "there is no option --data.nonsense of ClientDataModule: it has root, source, image_size",
        ),
        (
            "QS --model.denoiser lightning_recon.priors.SmallDenoiser",
            "there is no class lightning_recon.priors.SmallDenoiser: give its name alone, SmallDenoiser",
        ),
        ("QS --data.image_size", "--data.image_size has no value: give one, as in --data.image_size VALUE"),
        ("QS --data.image_size big", "--data.image_size is 'big': give a whole number"),
        ("QS --model.structure.units many", "--model.structure.units is 'many': give a whole number or null"),
        ("QS --data.download ja", "--data.download is 'ja': give true or false"),
        ("QS --data.source cifar10", "--data.source is 'cifar10': did you mean cifar100? give one of samples, "),
        ("QS --trainer.precision bf17", "--trainer.precision is 'bf17': did you mean bf16? give one of"),
        (
            "QS --model.client.local.optimizer.lr 0.1",
            "--model.client.local.optimizer.lr belongs to a class that was not chosen: give "
            "--model.client.local.optimizer CLASS before it",
        ),
        ("QS --model.client.local.scheduler.gamma 0.1", "give --model.client.local.scheduler CLASS before it"),
        ("QS --model.client.local.batch_size null", "cannot be set to null on the command line: set it in a file"),
        ("QS --model.client.compression null", "--model.client.compression cannot be set to null on the command line"),
        (
            "QS --model.client.compression top_k",
            "--model.client.compression is 'top_k': give its parts by name: method,",
        ),
        ("QS --model.client.compression.share 0.5", "--model.client.compression.method is missing: give it"),
        (
            "QS --model.client.compression.method top_k --model.client.compression.share 7",
            "--model.client.compression.share is 7, but it should be less than or equal to 1",
        ),
        (
            "QS --model.client.compression.method qsgd --model.client.compression.levels 2.5",
            "--model.client.compression.levels is 2.5, but it should be a valid integer",
        ),
        ("QS --model.client.privacy 3", "--model.client.privacy is '3': give its parts by name: max_grad_norm,"),
        (
            "QS --model ReconstructionAtack",
            "--model: there is no class ReconstructionAtack: did you mean Reconstruction",
        ),
        ("QS --model.structure Digitl", "--model.structure: there is no class Digitl: did you mean Digital?"),
        ("QS --model.structure lightning_recon.strcture.Digital", "give its name alone, Digital"),
        (
            "QS --model.structure torch.nn.Linear",
            "torch.nn.Linear is no Structure: give CuriousAbandonHonesty, Digital, Feedback,",
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


def test_suggestions() -> None:
    assert closest("Digitl", ["Digital", "Feedback"]) == "Digital"
    assert closest("seed", ["seed_everything", "results"]) == "seed_everything"
    assert closest("nonsense", ["model", "data"]) is None
    assert described(type_of(roots(), "trainer.max_steps")) == "a whole number"
    assert choices_of(type_of(roots(), "results.show")) == ["true", "false"]
    assert group_of(roots()["model"]) is None
