# SPDX-License-Identifier: Apache-2.0
"""The recorded exchange of a run: how much is recorded, and whether it belongs to what is configured now."""

import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from lightning_recon.attack.protocol import fingerprint
from lightning_recon.errors import UserError
from lightning_recon.exchange import RecordedClient, Task
from lightning_recon.files.run_folder import WAVES, belongs_to_a_run

_FIRST = "00000"  # folder of the first wave, below `WAVES`

Record = bool | int | Literal["rows"]


def recorded_updates(record: Record, task: Task) -> int:
    """How many updates are recorded, the first ones: of all clients, or of a number of them.

    Args:
        record: The option `--model.record`.
        task: What was announced.
    """
    if record is True or record == "rows":
        return task.updates
    return min(task.updates, math.ceil(int(record) / task.aggregated))


def recorded_task(record: Record, task: Task) -> Task:
    """The task of the clients that are recorded, which is complete for their recording."""
    return replace(task, clients=recorded_updates(record, task) * task.aggregated)


def recorded_client(exchange: Path) -> RecordedClient:
    """The client that repeats a recorded exchange.

    Raises:
        UserError: Nothing is recorded there.
    """
    check_recorded(exchange)
    if not (exchange / "task.json").exists():
        raise UserError(f"no recorded exchange in {exchange}: run `recon fit` with this output folder first")
    return RecordedClient(exchange)


def check_recorded(exchange: Path) -> None:
    """Refuse a folder of a run in waves that has no exchange: each wave has its own, and later ones have none.

    Raises:
        UserError: Says which folder has one, or how a run gets one.
    """
    root, waves = exchange.parent, exchange.with_name(WAVES)
    if exchange.exists():
        return
    later = "later waves record theirs if --model.record is a number of clients that reaches them"
    if waves.is_dir():
        raise UserError(
            f"{root} was attacked in waves, which have exchange folders of their own: name that of the first wave, "
            f"{waves / _FIRST}; {later}"
        )
    numbered = root.parent.name == WAVES and re.fullmatch(r"[0-9]{5,}", root.name) is not None
    if numbered and root.name != _FIRST and belongs_to_a_run(root.parent.parent):
        raise UserError(f"{root} is a wave without a recorded exchange: name the first wave; {later}")


def check_same_task(configured: Task, recorded: Task, exchange: Path) -> None:
    """Refuse a recording that was made under other parameters than are configured now.

    Raises:
        UserError: A field of the task differs.
    """
    for name in asdict(recorded):
        now, before = getattr(configured, name), getattr(recorded, name)
        if name in ("subjects", "participation") and before is None:  # earlier versions announced nothing of them
            continue
        if now != before:
            advice = "use the config.yaml of that run"
            if name == "clients" and before < now:
                advice += f", or, if that has --model.record {before}, begin again: later clients are not recorded"
            if name == "normalization":  # earlier versions had no such option, and did not record it
                advice += f", with --model.client.normalization {before}"
            raise UserError(f"{name} is {now}, but {exchange} was recorded with {before}: {advice}")


def check_resumable(checkpoint: dict[str, Any], exchange: Path, max_steps: int | None) -> None:
    """Refuse a checkpoint of another run, or one that has taken more steps than are configured now.

    Args:
        checkpoint: As read from the file.
        exchange: Recorded exchange of this run.
        max_steps: Steps that are configured; None if no steps will be taken.

    Raises:
        UserError: The checkpoint cannot be continued here.
    """
    if checkpoint.get("exchange") == "":
        raise UserError("the run recorded nothing (--model.record false), so it cannot be resumed: give --overwrite")
    if checkpoint.get("exchange") != fingerprint(exchange):
        raise UserError(
            f"--ckpt_path names a checkpoint that does not belong to {exchange}: give last, or a file from "
            "checkpoints/ of this run"
        )
    taken = int(checkpoint.get("global_step", 0))
    if max_steps is not None and 0 <= max_steps < taken:
        raise UserError(
            f"the run has taken {taken} steps already, and --trainer.max_steps is {max_steps}: give "
            f"{taken} or more to go on, or --overwrite instead of --ckpt_path to start again"
        )
