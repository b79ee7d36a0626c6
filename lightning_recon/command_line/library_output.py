# SPDX-License-Identifier: Apache-2.0
"""Silence messages of libraries that do not concern the user."""

import logging
import warnings

from lightning_recon.console import log_above_bars


def quieten() -> None:
    """Silence messages and warnings of libraries about which a user can do nothing."""
    log_above_bars()
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "LightningCLI's args parameter is intended",  # names of configs are replaced in it
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning 2.6 with newer torch
        ".*does not have many workers",  # the attack's loader yields step numbers
        "The number of training batches",  # logging more often than there are steps is intended
        "Your `IterableDataset` has `__len__` defined",  # the loader of step numbers has no workers
        "Checkpoint directory .* exists and is not empty",  # as it is when a run is resumed or repeated
        "The dirpath has changed from",  # a run folder may be moved
        "You're resuming from a checkpoint that ended before the epoch ended",  # every step has its own state
        "Using ModelCheckpoint with manual optimization",  # the state after a step is the one to resume from
    ):
        warnings.filterwarnings("ignore", message=message)
