# SPDX-License-Identifier: Apache-2.0
"""Where a client's noise comes from during a run: one key on all ranks, over interruptions too."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_recon.client.noise_key import FLAG, Generators, NoiseKey, key_file, key_folder, load_key, save_key
from lightning_recon.console import say
from lightning_recon.errors import UserError


class NoiseSource(Callback):
    """The key of a client's noise, which is drawn by the operating system unless a seed is given.

    As a callback of the trainer it gives all ranks the key of rank zero, and keeps it in a file of the user's, outside
    the run folder, for as long as the run needs noise. Checkpoints hold only its identifier. Without a trainer the key
    exists in memory alone.
    """

    def __init__(self, seed: int | None = None, folder: str | None = None, adds_noise: bool = True) -> None:
        """Draw a key.

        Args:
            seed: a seed for reproducible noise; None: a secret.
            folder: folder of key files, see `key_folder`.
            adds_noise: whether the client adds noise at all.
        """
        self.seed, self.folder, self.adds_noise = seed, key_folder(folder), adds_noise
        self._key: NoiseKey | UserError = NoiseKey.fresh() if seed is None else NoiseKey.from_seed(seed)
        self.trainings = 0  # of a network under this key, before the present one
        self._most_trainings = 0
        self._resumed: dict[str, Any] = {}
        self._used = False
        self._next_step = 0
        self._answered: dict[tuple[int, int, int], tuple[object, ...]] = {}

    @property
    def key(self) -> NoiseKey:
        """The key.

        Raises:
            UserError: the run was resumed, and its key file is missing.
        """
        if isinstance(self._key, UserError):
            raise self._key
        return self._key

    def generator(self, purpose: str, *place: int | str) -> np.random.Generator:
        """The generator of one stream, see `NoiseKey.generator`."""
        return self.key.generator(purpose, *place)

    def generators(self, client: int, draw: int, round: int, *step: int) -> Generators:
        """The generators of one update's noise, by the names of its tensors.

        Args:
            client: index of the client.
            draw: index of the noise realization.
            round: index of the round.
            step: index of the local step, where each step has noise of its own.
        """
        key = self.key
        return lambda name: key.generator("noise", client, draw, round, *step, name)

    def check_single_use(self, client: int, draw: int, round: int, content: tuple[object, ...]) -> None:
        """Refuse to hide two different updates under the same secret noise: their difference would have none.

        Args:
            client: index of the client.
            draw: index of the noise realization.
            round: index of the round.
            content: what the update is computed from; equal for equal updates.

        Raises:
            UserError: an update of something else was released here.
        """
        if self._answered.setdefault((client, draw, round), content) != content:
            raise UserError(
                f"client {client} has answered another payload in round {round} of draw {draw}, or this one with other "
                "images, weights or options, and the difference of two updates under the same noise has no noise: ask "
                "in another round or draw"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: the seed, or the identifier of the key."""
        if self.seed is not None:
            return {"seed": self.seed} | ({"trainings": self.trainings} if self.trainings else {})
        return {"seed": None, "key": self._resumed["key"] if self._resumed else self.key.identifier}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember which key the run was begun with.

        Args:
            state_dict: what `state_dict` gave.

        Raises:
            UserError: the noise configured now is not that of the run's first part.
        """
        if state_dict["seed"] != self.seed:
            now, before = ("null" if one is None else one for one in (self.seed, state_dict["seed"]))
            raise UserError(
                f"--model.client.noise_seed is {now}, but the run to be resumed had {before}: use the config.yaml of "
                "that run"
            )
        self._resumed = dict(state_dict)
        self.trainings = state_dict.get("trainings", 0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A run begins; if it is a resumed one, its checkpoint is read next."""
        if stage == "fit":
            self._resumed = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give all ranks one key, that of the resumed run or rank zero's, and keep it in a file."""
        repeats = trainer.global_step < max(1, self._next_step)  # a trainer that goes on does not
        if repeats and (self._used or self._answered) and not self._resumed:
            self._begin_anew(self._trains(pl_module))
        self._used = self._used or bool(self._resumed)
        if self.seed is not None:
            if self.adds_noise and trainer.is_global_zero:
                say(
                    f"the noise is reproducible (--model.client.noise_seed {self.seed}): whoever knows the seed can "
                    "subtract it"
                )
            return
        if self.folder.resolve().is_relative_to(Path(trainer.default_root_dir).resolve()):
            raise UserError(f"{FLAG} is {self.folder}, in the run folder: name one that nobody else can read")
        if trainer.is_global_zero and self._resumed:
            try:
                self._key = load_key(self.folder, self._resumed["key"])
            except UserError as error:  # raised where noise is needed: an attack repeats recorded answers
                self._key = error
        elif trainer.is_global_zero:
            save_key(self.folder, self.key)
        self._key = trainer.strategy.broadcast(self._key)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there are checkpoints, which need the key."""
        self._used = True

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Remember how far the noise is used."""
        self._next_step = trainer.global_step + 1

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Delete the key of a run that cannot be resumed, because it failed before its first step."""
        if not (self._used or self._resumed):
            self._delete(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Delete the key of a finished attack: its clients' answers are recorded, and no more noise will be drawn."""
        if stage == "fit" and not (self._used and self._trains(pl_module)):  # a network may be given more steps
            self._delete(trainer)

    def _trains(self, pl_module: LightningModule) -> bool:
        """Whether the client's own network is trained; otherwise the client is attacked."""
        return getattr(pl_module, "noise_source", None) is self

    def _begin_anew(self, training: bool) -> None:
        """Leave the noise of earlier runs to them: steps are numbered from 0 again, and the weights are others."""
        if self.seed is None:
            self._key = NoiseKey.fresh()
            self._answered.clear()
            self._used = False
        elif training:
            self._most_trainings = max(self._most_trainings, self.trainings) + 1
            self.trainings = self._most_trainings

    def _delete(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self.seed is None:
            with suppress(OSError):
                key_file(self.folder, self.state_dict()["key"]).unlink(missing_ok=True)
