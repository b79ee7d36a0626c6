# SPDX-License-Identifier: Apache-2.0
"""What users type: shipped configs found by name, folders and checkpoints checked first, mistakes told in one line."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentError

from lightning_recon.checkpoints import checkpoint_fault, restoring
from lightning_recon.errors import UserError
from lightning_recon.storage import reason_of as reason

# An installed package carries the configs; a source checkout has them at its top.
CONFIGS = [Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs"]


def writable(folder: Path) -> None:
    """Check, before any work is done, that a run folder can be written.

    Raises:
        UserError: If it cannot.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise UserError(f"the name of {folder} is not UTF-8, as TensorBoard needs it: rename that folder") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"cannot write to {folder} ({error.strerror})"
        raise UserError(f"{reason}: choose another --trainer.default_root_dir") from None


def check_checkpoint(path: Path) -> None:
    """Check, before any work is done, that a file is a checkpoint; reading it executes no code.

    Raises:
        UserError: If it is not there or something else.
    """
    if not path.is_file():
        raise UserError(
            f"there is no checkpoint {path}: leave out --ckpt_path, or give a file from checkpoints/ of a run"
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # unpickling foreign bytes can raise anything
        found = None
    advice = "give --ckpt_path a file from checkpoints/ of a run"
    if not isinstance(found, dict) or not found.keys() >= {"state_dict", "loops", "pytorch-lightning_version"}:
        raise UserError(f"{path} is no checkpoint of this program: {advice}")
    if fault := checkpoint_fault(found, path):
        raise UserError(f"{path} is damaged ({fault}): {advice}, or start anew without --ckpt_path")


def with_shipped_configs(args: Sequence[str]) -> list[str]:
    """Replace names of configs that are no files here by those that ship with the package.

    Args:
        args: Command line.

    Returns:
        The same with `--config imagenet.yaml`, `-c` or `--config=` pointing to the shipped file where it exists.
    """
    found: list[str] = []
    for place, argument in enumerate(args):
        flag, separator, name = argument.rpartition("=") if argument.startswith(("--config=", "-c=")) else ("", "", "")
        if not separator and place and args[place - 1] in ("--config", "-c"):
            name = argument
        name = name.removeprefix("configs/") if name and not Path(name).exists() else ""
        shipped = [folder / name for folder in CONFIGS if name and (folder / name).is_file()]
        found.append(f"{flag}{separator}{shipped[0]}" if shipped else argument)
    return found


def configs_first(args: Sequence[str]) -> list[str]:
    """Move the configs of a subcommand, in their order, before its other arguments: those win wherever they stand.

    Args:
        args: Command line.
    """
    configs: list[str] = []
    others: list[str] = []
    for place, argument in enumerate(args):
        follows = place > 0 and args[place - 1] in ("--config", "-c")
        is_config = argument in ("--config", "-c") or argument.startswith(("--config=", "-c="))
        (configs if follows or is_config else others).append(argument)
    return [*others[:1], *configs, *others[1:]]


def reason_of(error: ArgumentError) -> str:
    """What jsonargparse has to say, in one line and without its account of types that do not matter."""
    text = " ".join(str(error).split())
    text = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: ", "", text)
    text = re.sub(r" Given value type: .*?(?= - |$)", "", text)
    text = re.sub(r"- Expected a <class 'NoneType'>", "", text)
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    return " ".join(text.replace(": - ", ": ").split()).rstrip(".")


def user_error(error: BaseException) -> UserError | None:
    """The `UserError` that an exception is, was caused by, or replaced; None if the fault is not the user's."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, ArgumentError):
        return UserError(f"{reason_of(error)}: see recon --help, or recon fit --help for all options")
    if isinstance(error, RuntimeError) and "Error(s) in loading state_dict" in str(error):
        return UserError(
            "the checkpoint belongs to another model: give --ckpt_path a file from checkpoints/ of this run"
        )
    if isinstance(error, Exception) and restoring(error):
        return UserError(
            f"the checkpoint cannot be resumed ({type(error).__name__}: {reason(error)[:200]}): give --ckpt_path "
            "another file from checkpoints/ of this run, or start anew without it"
        )
    return None
