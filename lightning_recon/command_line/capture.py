# SPDX-License-Identifier: Apache-2.0
"""The command `recon capture`: a captured update from the weights of before and after a client's training."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from jsonargparse import ArgumentParser

from lightning_recon.capture.image_shape import image_shape
from lightning_recon.capture.weights_pair import capture_pair
from lightning_recon.client.local_options import LocalOptions
from lightning_recon.command_line.option_errors import explaining
from lightning_recon.command_line.options import options_of
from lightning_recon.console import say
from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.losses import LossName
from lightning_recon.networks.construction import is_class_path
from lightning_recon.networks.normalization import Normalization
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.ranges import BIT_DEPTH, COUNT, COUNT_OR_NONE, SIZE, check_ranges


@dataclass(frozen=True)
class CaptureOptions:
    """Options of `recon capture`.

    Args:
        network: "convnet", a torchvision or timm name, or the path of a class that takes `num_classes`.
        num_classes: number of classes of the network.
        image_size: side of the images, or their height and width, in pixels.
        batch_size: number of images that the client trained on.
        local: how it trained, with `update` "delta" by default: the change of the weights is the update.
        privacy: how the update was clipped and noised; by default not at all.
        normalization: how the network normalizes its images, see the target network of `recon fit`.
        batch_norm: whether batch normalization used the batch ("train") or its running statistics ("eval").
        client: number of the client, from 0.
        clients: number of clients whose updates are captured, each by a call of its own into the same folder.
        round: number of the round, from 0; `privacy.rounds` is how many there are.
        channels: number of channels of the images.
        bit_depth: bits of a value of an image, 8 to 16.
        loss: the loss by which the client trained.
    """

    network: str
    num_classes: int
    image_size: int | list[int]
    batch_size: int
    local: LocalOptions = LocalOptions()  # noqa: RUF009 - frozen
    privacy: Privacy = Privacy(max_grad_norm=None)  # noqa: RUF009 - frozen
    normalization: Normalization = "auto"
    batch_norm: Literal["train", "eval"] = "train"
    client: int = 0
    clients: int = 1
    round: int = 0
    channels: int = 3
    bit_depth: int = 8
    loss: LossName = "cross_entropy"

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_ranges(
            "--",
            num_classes=(self.num_classes, SIZE),
            bit_depth=(self.bit_depth, BIT_DEPTH),
            batch_size=(self.batch_size, COUNT),
            clients=(self.clients, COUNT),
            client=(self.client, COUNT_OR_NONE),
            round=(self.round, COUNT_OR_NONE),
        )
        image_shape(self.channels, self.image_size, "--")
        for name, number, of, count in (
            ("client", self.client, "clients", self.clients),
            ("round", self.round, "privacy.rounds", self.privacy.rounds),
        ):
            if number >= count:
                raise UserError(
                    f"--{name} is {number}, and --{of} is {count}: give a number below it, from 0, or raise --{of}"
                )
        if self.privacy.noise_bands > 1 or self.privacy.adaptive_clip is not None:
            raise UserError("--privacy.noise_bands and --privacy.adaptive_clip are not captured: leave them out")

    @property
    def task(self) -> Task:
        """What the server announced."""
        local, privacy = self.local.announced(self.batch_size), self.privacy
        return Task(
            image_shape=image_shape(self.channels, self.image_size),
            num_classes=self.num_classes,
            batch_size=self.batch_size,
            clients=self.clients,
            network=self.network,
            granularity=privacy.granularity,
            per_layer=privacy.per_layer,
            max_grad_norm=privacy.max_grad_norm,
            noise_multiplier=privacy.noise_multiplier,
            rounds=privacy.rounds,
            parameter_tensors=1,  # filled in from the network
            batch_norm=self.batch_norm,
            local=local if self.local.update else replace(local, update="delta"),
            normalization=self.normalization,
            mechanism=privacy.mechanism,
            bit_depth=self.bit_depth,
            loss=self.loss,
        )


def capture_options() -> dict[str, Any]:
    """The options of `recon capture`, for error messages and completion."""
    return {"before": str, "after": str, "output": str, "help": bool, "quiet": bool} | options_of(CaptureOptions)


def capture_command(args: Sequence[str]) -> None:
    """Run `recon capture`.

    Args:
        args: command line after the command.

    Raises:
        UserError: a mistake in the options, or the files are not weights of this network.
    """
    with explaining(capture_options, ["capture", *args]):
        parser = ArgumentParser(prog="recon capture", exit_on_error=False, allow_abbrev=False)
        parser.add_argument("--before", required=True, help="weights that the server sent")
        parser.add_argument("--after", required=True, help="weights that the client sent back")
        parser.add_argument("--output", required=True, help="folder for the captured update")
        parser.add_class_arguments(CaptureOptions)
        try:
            chosen = parser.instantiate(parser.parse_args(list(args)))
            options = CaptureOptions(**{field.name: chosen[field.name] for field in fields(CaptureOptions)})
            task = options.task
        except UserError as error:  # these options are a client's in `recon fit`, too
            text = error.for_command_line.replace("--model.client.", "--").replace("--data.", "--")
            raise UserError(text) from error
    path = capture_pair(chosen.before, chosen.after, chosen.output, task, options.client, options.round)
    network = f" --model.network {options.network}" if is_class_path(options.network) else ""
    say(f"wrote {path}")
    say(
        f"attack it: recon fit --config captured.yaml --config attack/likelihood.yaml --model.update {chosen.output}"
        f"{network}"
    )
