# SPDX-License-Identifier: Apache-2.0
"""The commands of `recon` and their help texts; this module is fast to import."""

from dataclasses import dataclass

from lightning_recon.errors import UserError
from lightning_recon.suggestions import closest


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        usage: Its usage line.
        summary: A description in one line.
        help: Further text of `--help`.
    """

    usage: str
    summary: str
    help: str = ""


_RUN_OPTIONS = """
What is attacked (--data ClientDataModule)
  --data.root DIR                                your own images; default: the bundled photographs
  --data.source NAME                             samples, samples_grey16, folder, imagenet, cifar100, caltech256,
                                                 flowers102
  --data.download true                           fetch a data set that torchvision knows
  --data.image_size N                            width and height in pixels; [H, W] where they differ
  --data.channels N                              3 for RGB, 1 for grey, or as many as the files have
  --data.bit_depth N                             bits of a value, 8 to 16
  --data.value_range [LOW, HIGH]                 numbers that become 0 and 1 in files of more than 8 bits
  --data.batch_size N                            images in a client's batch
  --data.local_images N                          images that a client holds, of which a round uses a batch
  --data.clients N                               number of attacked clients

How it is protected (--model.client VictimClient)
  --model.client.network NAME                    torchvision or timm name, convnet, or a class path
  --model.client.privacy.max_grad_norm C         clipping norm
  --model.client.privacy.noise_multiplier Z      standard deviation of the noise / C
  --model.client.privacy.granularity G           update: one clip for the whole update; sample: each image, as DP-SGD
  --model.client.privacy.rounds N                rounds, with the same images unless batches are drawn:
  --model.client.sampling NAME                   shuffle (in every epoch), fixed_size or poisson (in every round)
  --model.client.privacy.mechanism NAME          gaussian, laplace, skellam, discrete_gaussian, or a class path
  --model.client.privacy.noise_bands N           noise correlated over N rounds, as in DP-FTRL
  --model.client.privacy.adaptive_clip.clipbound_learning_rate R    a clipping norm that adapts, as in Opacus
  --model.client.aggregated N                    the server sees only sums of N clients (secure aggregation)
  --model.client.quantization.clipping_range R   sums of integers modulo a number, as in Flower's SecAgg+

How it is attacked (--model ReconstructionAttack, a malicious server; GradientInversion, an honest one)
  --config attack/NAME.yaml                      a shipped attack, see `recon configs`
  --model.structure NAME                         Digital, WaterFilling, Feedback, SeedPaper, RobbingTheFed,
                                                 CuriousAbandonHonesty
  --model.draws N                                independent draws of the noise
  --model.update PATH                            attack an update captured from another program

How it runs
  --trainer.default_root_dir DIR                 folder of the run, by default runs/recon
  --trainer.max_steps N                          refinement steps; 0: decoding only
  --trainer.accelerator NAME                     auto, cpu, gpu, mps
  --seed_everything N                            seed of the attack; --data.seed selects the images
  --ckpt_path last                               resume a run that was stopped
  --results.show false                           no table at the end
  --quiet                                        errors and warnings only

Configs (-c, --config) may be repeated: later ones win, and options win over configs; --print_config shows the result.
Every setting is explained in the shipped configs: `recon configs quickstart.yaml` prints one.
  recon {command} --help_all               every option, those of Lightning's Trainer included
  recon {command} --model.help CLASS       the options of a class, such as ReconstructionAttack
"""

_EXAMPLES = {
    "fit": """
Examples
  recon fit --config quickstart.yaml
  recon fit --config quickstart.yaml --config attack/paper.yaml --data.root photos/
  recon fit --config quickstart.yaml --model.client.privacy.noise_multiplier 1e-3 --trainer.default_root_dir runs/z3
""",
    "validate": """
Examples
  recon validate --config quickstart.yaml --model.client.privacy.granularity sample
  recon validate --config captured.yaml --model.update captured/
""",
    "test": """
Give the config.yaml of the run, which names its folder and its images.

Examples
  recon test --config runs/quickstart/config.yaml
""",
    "predict": """
Give the config.yaml of the run, which names its folder.

Examples
  recon predict --config runs/quickstart/config.yaml
""",
}

OPTIONS = "[--config FILE]... [--OPTION VALUE]..."

RUNS = {
    "fit": "attack the configured clients: reconstruct their images, score them, write the run's folder",
    "validate": "show what each client would release, and its privacy guarantee, without an attack",
    "test": "score the reconstructions of a finished run again",
    "predict": "write the reconstructions of a finished run as PNG files",
}

COMMANDS = {
    **{
        name: Command(f"recon {name} {OPTIONS}", summary, _EXAMPLES[name] + _RUN_OPTIONS.replace("{command}", name))
        for name, summary in RUNS.items()
    },
    "replay": Command(
        "recon replay RUN --output DIR",
        "repeat a run's reconstruction from its recorded payloads and updates, without the images",
        """
  RUN                the folder of a finished run, with config.yaml and exchange/
  --output DIR       folder for the reconstructions and their images
  --overwrite        replace a run that is in that folder
  --trust_config true  run code outside this package that its config.yaml names; only for configs that you trust

The command reports whether they equal the run's own reconstructions bit for bit.

Examples
  recon replay runs/quickstart --output replayed
""",
    ),
    "audit": Command(
        "recon audit --config FILE --output DIR [--audit.OPTION VALUE]... [--OPTION VALUE]...",
        "attack under many privacy settings, and write a report",
        """
Every cell of the sweep is a separate `recon fit`, kept in OUTPUT/cells. The same command resumes a stopped audit, and
several audits may share one OUTPUT. All options of `recon fit` are accepted; they apply to all cells.

  --config FILE                     config with a section `audit`, or of `recon fit`; may be repeated
  --output DIR                      cells, results.csv and report.html
  --audit.noise_multiplier [Z,...]  noise multipliers; or --audit.epsilon [E,...]
  --audit.granularity [G,...]       update, sample
  --audit.batch_size [N,...]        images per client
  --audit.rounds [N,...]            rounds with the same batch
  --audit.seeds [N,...]             seeds of images, network and noise
  --audit.jobs N                    number of cells that run in parallel
  --quiet                           errors and warnings only

All options: recon audit --help_all; the shipped config, commented: recon configs audit.yaml

Examples
  recon audit --config audit.yaml --output runs/audit --audit.jobs 2
  recon audit --config audit.yaml --output runs/mine --data.root photos/ --audit.epsilon [1,8,64]
""",
    ),
    "report": Command(
        "recon report RUN... --output FILE.html",
        "write the report of an audit from finished runs",
        """
  RUN...                  folders of finished runs, or of an audit
  --output FILE.html      the report; a table (.csv) and JSON go beside it
  --tolerance DB          gain in PSNR over the mean image that still counts as no leakage
  --population_size N     number of people whose data are protected, to which delta is compared
  --sampling_rate Q       announced probability of Poisson sampling: also state epsilon with amplification

Examples
  recon report runs/quickstart --output quickstart.html
""",
    ),
    "verify": Command(
        "recon verify --config FILE [--output DIR] [--verify.OPTION VALUE]...",
        "test whether a client's releases are as private as claimed: noise, clip, epsilon",
        """
The client, a function of model and batch, is sent a silenced network, whose release is noise alone, and canaries of
known direction and norm. Each claim gets a line: claimed, measured, verdict.

  --config FILE                                config with a section `verify`; may be repeated
  --output DIR                                 gets verify.json and verify.xml (JUnit); default: runs/verify
  --verify.client MODULE:ATTRIBUTE             the client: a function, or a class of such functions
  --verify.network NAME                        torchvision or timm name, convnet, or a class path
  --verify.claims.privacy.noise_multiplier Z   claimed standard deviation of the noise / C
  --verify.claims.privacy.max_grad_norm C      claimed clipping norm
  --verify.claims.privacy.granularity G        claimed unit of clipping: update, sample
  --verify.releases N                          releases of noise alone; of canaries twice as many
  --quiet                                      errors and warnings only

Exit status: 0 if no claim is refuted, 1 if one is, 2 for a mistake in the options or a client that fails.
All options: recon verify --help_all; the shipped config, commented: recon configs verify.yaml

Examples
  recon verify --config verify.yaml
  recon verify --config verify.yaml --verify.client my_client:train_step --verify.claims.batch_size 64
""",
    ),
    "capture": Command(
        "recon capture --before FILE --after FILE --output DIR --network NAME [--OPTION VALUE]...",
        "make a captured update of the weights before and after a client's training, from any program",
        """
The files are state dicts (.safetensors, or .pt and .ckpt of torch.save), also with prefixes of wrappers: module.,
_module., _orig_mod. Reading them executes no code. Their difference is the update of a client of an honest server.

  --before FILE            weights that the server sent
  --after FILE             weights that the client sent back
  --output DIR             gets the captured update, and network.safetensors
  --network NAME           torchvision or timm name, convnet, or a class path
  --num_classes N          number of classes of the network
  --image_size N           width and height of the images in pixels
  --batch_size N           images that the client trained on
  --local.optimizer CLASS  how it trained: one step of SGD by default; --local.optimizer.lr, --local.epochs,
                           --local.batch_size, ... as of --model.client in recon fit
  --privacy.OPTION VALUE   how the update is protected: max_grad_norm, noise_multiplier, granularity, rounds, ...
  --client N, --clients N, --round N    of several clients and rounds, each captured into the same DIR

Examples
  recon capture --before round0.pt --after client7.pt --output captured --network resnet18 --num_classes 10 \\
      --image_size 32 --batch_size 8 --local.optimizer SGD --local.optimizer.lr 0.01
  recon fit --config captured.yaml --config attack/likelihood.yaml --model.update captured
""",
    ),
    "recommend": Command(
        "recon recommend --risk LIMIT... [--OPTION VALUE]...",
        "state the noise that keeps a risk below a limit, or the risks under a given noise",
        """
A LIMIT is a measure and what it may be at most, over all rounds together, whatever the attack:
  advantage=0.1            membership advantage: true- minus false-positive rate of guessing who is in the data
  tpr@0.01=0.05            true-positive rate of such guesses at a false-positive rate of 1 %
  reconstruction@0.1=0.2   probability of reconstructing what a blind guess gets right with probability 0.1
  epsilon=8, mu=1          parameters of differential privacy

  --noise_multiplier Z     state the risks under this noise instead
  --rounds N               releases of the same data
  --max_grad_norm C        clipping norm, to state the standard deviation of the noise
  --mechanism NAME         gaussian, laplace, skellam, discrete_gaussian, or a class path
  --delta D                delta of the stated epsilon
  --adjacency A            add_remove: a record is missing from neighbouring data; replace_one: another is in its place

Examples
  recon recommend --risk tpr@0.01=0.05 --rounds 20 --max_grad_norm 1
  recon recommend --risk advantage=0.1 tpr@0.001=0.01
  recon recommend --noise_multiplier 0.6
""",
    ),
    "configs": Command(
        "recon configs [NAME]",
        "list the configs that ship with the program, or print one",
        """
Examples
  recon configs
  recon configs attack/paper.yaml > mine.yaml
""",
    ),
    "completion": Command(
        "recon completion bash|zsh|tcsh",
        "print a script that completes commands, options and values in your shell",
        """
Needs `pip install 'lightning_recon[completion]'`.

Examples
  recon completion bash > ~/.local/share/bash-completion/completions/recon
  recon completion zsh > ~/.zfunc/_recon         # a folder of $fpath
""",
    ),
    "version": Command("recon version", "print the version"),
}


def overview() -> str:
    """The help of the program, with one line for every command."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return f"""Measure what a server can reconstruct of its users' images despite clipping and noise.

usage: recon COMMAND ...

{commands}

`recon COMMAND --help` explains a command. The first run, under a minute: recon fit --config quickstart.yaml
"""


def help_of(name: str) -> str:
    """The help of a command.

    Args:
        name: A key of `COMMANDS`.
    """
    command = COMMANDS[name]
    summary = command.summary[0].upper() + command.summary[1:]
    return f"usage: {command.usage}\n\n{summary}.\n{command.help}"


def unknown_command(word: str) -> UserError:
    """The error for a first argument that is not a command.

    Args:
        word: The first argument.
    """
    if near := closest(word, ("--help", "--version")):
        return UserError(f"there is no option {word}: did you mean {near}?")
    if word.startswith("-"):
        return UserError(
            f"{word} comes before the command: type recon COMMAND {word} ...; commands: {', '.join(COMMANDS)}"
        )
    near = closest(word, COMMANDS)
    hint = f"did you mean {near}? " if near else ""
    return UserError(f"there is no command {word!r}: {hint}commands: {', '.join(COMMANDS)}")
