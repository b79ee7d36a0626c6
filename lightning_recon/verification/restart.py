# SPDX-License-Identifier: Apache-2.0
"""Run a client in a new process, as after a restart of its program; what it imports, users wait for once more."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.verification.client_under_test import Batch, client_named
from lightning_recon.verification.probes import ProbeModel

ASKED, ANSWERED = "asked.pt", "answered.pt"


def restarted_replies(
    path: str, arguments: Mapping[str, Any], probe: tuple[ProbeModel, Batch], count: int
) -> list[Mapping[str, Tensor]]:
    """Replies of a client's first calls in a new process.

    Args:
        path: of the client, see `client_named`.
        arguments: of its class.
        probe: model and batch of every call.
        count: number of calls.

    Raises:
        UserError: the model cannot be handed to another process, or the client fails there.
    """
    with TemporaryDirectory() as folder:
        try:
            torch.save((path, dict(arguments), probe, count), Path(folder, ASKED))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(f"the network cannot be pickled ({error}), as a restart of the client needs it") from error
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "lightning_recon.verification.restart", folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode or not Path(folder, ANSWERED).exists():  # a client may end its program, with any status
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"the client failed in a new process ({reason[:300]}): see that it can be started twice")
        found: list[Mapping[str, Tensor]] = torch.load(Path(folder, ANSWERED), weights_only=True)
        return found


def main(folder: Path) -> None:
    """Answer what `restarted_replies` has written to a folder of its own."""
    path, arguments, (model, (images, labels)), count = torch.load(folder / ASKED, weights_only=False)
    client = client_named(path, 0, arguments)
    replies = []
    for _ in range(count):
        reply = client(copy.deepcopy(model), (images.clone(), labels.clone()))
        replies.append({name: torch.as_tensor(value).detach().cpu().clone() for name, value in reply.items()})
    torch.save(replies, folder / ANSWERED)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(error.for_command_line)  # whose text the process that waits quotes
