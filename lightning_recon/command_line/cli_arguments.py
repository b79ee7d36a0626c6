# SPDX-License-Identifier: Apache-2.0
"""Checks before a run starts, and the conversion of exceptions into messages for the user."""

import errno
import tempfile
from pathlib import Path

from lightning_recon.errors import UserError


def writable(folder: Path) -> None:
    """Check that a run folder can be written.

    Raises:
        UserError: The folder cannot be written.
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
    """Check that a file is a checkpoint; reading it executes no code.

    Raises:
        UserError: The file does not exist, is not a checkpoint, or is damaged.
    """
    if not path.is_file():
        raise UserError(
            f"there is no checkpoint {path}: leave out --ckpt_path, or give a file from checkpoints/ of a run"
        )
    import torch  # takes seconds, and the help of a command does without

    from lightning_recon.files.checkpoints import checkpoint_fault

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # unpickling foreign bytes can raise anything
        found = None
    advice = "give --ckpt_path a file from checkpoints/ of a run"
    if not isinstance(found, dict) or not found.keys() >= {"state_dict", "loops", "pytorch-lightning_version"}:
        raise UserError(f"{path} is no checkpoint of this program: {advice}")
    if fault := checkpoint_fault(found, path):
        raise UserError(f"{path} is damaged ({fault}): {advice}, or start anew without --ckpt_path")


def user_error(error: BaseException) -> UserError | None:
    """The `UserError` in the chain of an exception, or one for a known mistake; None for a fault of the program."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, RuntimeError) and "Error(s) in loading state_dict" in str(error):
        return UserError(
            "the checkpoint belongs to another model: give --ckpt_path a file from checkpoints/ of this run"
        )
    # These libraries take seconds to import, and the help of a command does without them.
    import torch
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lightning_recon.command_line.trainer_options import first_sentence, refused_by_library
    from lightning_recon.files.checkpoints import restoring
    from lightning_recon.files.faults import reason_of

    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
        return UserError("out of memory: lower --data.batch_size, --data.image_size or the sizes of --model")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"cannot write ({error.strerror}): make room; what was written before is whole")
    if isinstance(error, Exception) and restoring(error):
        return UserError(
            f"the checkpoint cannot be resumed ({type(error).__name__}: {reason_of(error)[:200]}): give --ckpt_path "
            "another file from checkpoints/ of this run, or start anew without it"
        )
    if isinstance(error, MisconfigurationException) or (
        isinstance(error, ValueError | RuntimeError | ImportError) and refused_by_library(error)
    ):
        return UserError(f"{first_sentence(error)} (LIGHTNING_RECON_DEBUG=1 shows where)")
    return None
