# SPDX-License-Identifier: Apache-2.0
"""Training of the target: plain SGD without protection, DP-SGD with it, and what that costs."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_recon.callbacks.console_tables import training_line
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.client.dp_sgd import private_gradient
from lightning_recon.client.noise_key import NoiseKey
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.client.poisson_sampler import TRAINING, PoissonSampler
from lightning_recon.errors import UserError
from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, mu_of
from lightning_recon.privacy.subsampled_accounting import training_epsilon

CLASSES, PIXELS, COUNT = 5, 16, 40
Granularity = Literal["sample", "update"]
# Lightning 2.6 with torch 2.14: about its own use of torch, and advice for real data.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
    "ignore:The '.*_dataloader' does not have many workers:lightning.fabric.utilities.warnings.PossibleUserWarning",
)


class Brightness(Dataset[tuple[Tensor, Tensor]]):
    """Images whose brightness is their class, one by one or by lists of indices."""

    def __init__(self) -> None:
        self.labels = torch.arange(COUNT) % CLASSES
        noise = torch.rand(COUNT, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(3))
        self.images = noise * 0.2 + 0.2 * self.labels.view(-1, 1, 1, 1)

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int | list[int]) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def loaders(client: VictimClient) -> tuple[DataLoader[Any], DataLoader[Any]]:
    data = Brightness()
    sampler = PoissonSampler(COUNT, 8, client.noise_source, lambda: client.global_step, 0, 1)
    drawn = {"batch_size": None, "sampler": sampler} if client.privacy.granularity == "sample" else {"batch_size": 8}
    return DataLoader(data, **drawn), DataLoader(data, batch_size=20)


def sgd(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.002)


def fit(
    client: VictimClient,
    folder: Path,
    steps: int,
    resume: str | None = None,
    data: tuple[DataLoader[Any], ...] | None = None,
) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_checkpointing=False,
    )
    trainer.fit(client, *(data or loaders(client)), ckpt_path=resume)
    return trainer


# Lightning 2.6 with torch 2.14: about its own use of torch, and advice for real data.
quiet_loaders = pytest.mark.filterwarnings(
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
    "ignore:The '.*_dataloader' does not have many workers:lightning.fabric.utilities.warnings.PossibleUserWarning",
)


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_training_without_clip_and_noise_is_plain_sgd(
    tmp_path: Path, networks: dict[str, str], granularity: Granularity
) -> None:
    privacy = Privacy(None, 0.0, granularity)
    client = VictimClient(networks["linear"], CLASSES, privacy=privacy, chunk_size=3, optimizer=sgd, noise_seed=0)
    reference = VictimClient(networks["linear"], CLASSES).network
    trainer = fit(client, tmp_path, 5)
    assert "epsilon" not in trainer.callback_metrics
    optimizer, seen = sgd(reference.parameters()), 0
    for images, labels in loaders(VictimClient("convnet", CLASSES, privacy=privacy, noise_seed=0))[0]:
        optimizer.zero_grad()
        # A Poisson sample is divided by the size that was expected, not by its own.
        (F.cross_entropy(reference(images), labels, reduction="sum") / 8).backward()
        optimizer.step()
        seen += 1
    assert seen == trainer.global_step == 5
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(client.network.get_parameter(name), parameter, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_private_training_learns(tmp_path: Path, networks: dict[str, str], granularity: Granularity) -> None:
    privacy = Privacy(2.0, 0.05, granularity)
    client = VictimClient(
        networks["linear"], CLASSES, privacy=privacy, chunk_size=8, normalization="imagenet", noise_seed=0
    )
    client.optimizer = lambda p: torch.optim.SGD(p, lr=0.02)
    first = float(fit(client, tmp_path, 1).callback_metrics["train_loss"])
    metrics = fit(client, tmp_path, 60).callback_metrics
    assert float(metrics["train_loss"]) < 0.6 * first
    assert float(metrics["val_accuracy"]) > 0.5


def test_training_updates_running_statistics(tmp_path: Path, networks: dict[str, str]) -> None:
    client = VictimClient(networks["batch_norm"], CLASSES, privacy=Privacy(1.0), noise_seed=0)
    fit(client, tmp_path, 2)
    assert client.network.norm.num_batches_tracked == 2
    assert client.network.norm.running_mean.abs().max() > 0


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(("granularity", "stop"), [("update", 5), ("sample", 3)])
def test_resumed_training_equals_uninterrupted_training(
    tmp_path: Path, networks: dict[str, str], granularity: Granularity, stop: int
) -> None:
    # Five steps are an epoch: a Poisson sample belongs to its step, so that DP-SGD may stop in the middle of one.
    def a_network() -> VictimClient:
        return VictimClient(
            networks["dropout"], CLASSES, privacy=Privacy(1.0, 0.1, granularity), optimizer=sgd, noise_seed=0
        )

    whole, part, rest = a_network(), a_network(), a_network()
    cost = fit(whole, tmp_path, 10).callback_metrics["epsilon"]
    checkpoint = str(tmp_path / "part.ckpt")
    fit(part, tmp_path, stop).save_checkpoint(checkpoint)
    torch.rand(7)
    assert fit(rest, tmp_path, 10, checkpoint).callback_metrics["epsilon"] == cost
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(rest.network.state_dict()[name], tensor)
        assert not torch.equal(part.network.state_dict()[name], tensor)
    # A fitted client's checkpoint serves as weights.
    loaded = VictimClient(networks["linear"], CLASSES, weights=checkpoint).network.state_dict()
    assert all(torch.equal(part.network.state_dict()[name], tensor) for name, tensor in loaded.items())


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_training_under_a_secret_key_is_resumed_with_its_file_alone(
    tmp_path: Path, networks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_network() -> VictimClient:
        keys = str(tmp_path / "keys")
        privacy = Privacy(1.0, 0.5, "sample")
        return VictimClient(networks["linear"], CLASSES, privacy=privacy, optimizer=sgd, noise_key_folder=keys)

    run, checkpoint = tmp_path / "run", str(tmp_path / "part.ckpt")
    key = NoiseKey.fresh()
    with monkeypatch.context() as patch:
        patch.setattr(NoiseKey, "fresh", lambda: key)
        whole, part = a_network(), a_network()
    rest, lost, finished, other = a_network(), a_network(), a_network(), a_network()
    fit(whole, run, 4)
    fit(part, run, 2).save_checkpoint(checkpoint)
    fit(rest, run, 4, checkpoint)
    assert all(torch.equal(rest.network.state_dict()[name], one) for name, one in whole.network.state_dict().items())
    fit(other, run, 4)  # another key: other samples and other noise
    assert not torch.equal(next(other.network.parameters()), next(whole.network.parameters()))
    (tmp_path / "keys" / f"{key.identifier}.key").unlink()
    with pytest.raises(UserError, match=rf"{key.identifier}\.key, which does not exist: .*noise_key_folder"):
        fit(lost, run, 4, checkpoint)
    fit(finished, run, 2, checkpoint)  # needs no more noise


@pytest.mark.parametrize("noise_seed", [None, 0])
@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_another_training_of_the_same_client_has_noise_of_its_own(
    tmp_path: Path, networks: dict[str, str], granularity: Granularity, noise_seed: int | None
) -> None:
    privacy, keys = Privacy(1e-3, 1e6, granularity), str(tmp_path / "keys")
    client = VictimClient(
        networks["linear"], CLASSES, privacy=privacy, optimizer=sgd, noise_seed=noise_seed, noise_key_folder=keys
    )

    def change() -> Tensor:
        """The change of the weights by one step, which is nearly noise alone."""
        before = client.network.linear.weight.detach().clone()
        fit(client, tmp_path / "run", 1)
        return (client.network.linear.weight.detach() - before).flatten()

    changes = [change() for _ in range(3)]
    alike = torch.corrcoef(torch.stack(changes)).fill_diagonal_(0).abs().max()
    assert float(alike) < 5 / math.sqrt(len(changes[0]))
    if noise_seed == 0:
        client = VictimClient(networks["linear"], CLASSES, privacy=privacy, optimizer=sgd, noise_seed=0)
        assert torch.equal(change(), changes[0])  # the first training repeats that of another client


def test_a_trainer_that_goes_on_uses_the_noise_of_one_training(tmp_path: Path, networks: dict[str, str]) -> None:
    def a_network() -> VictimClient:
        return VictimClient(networks["linear"], CLASSES, privacy=Privacy(1.0, 0.5), optimizer=sgd, noise_seed=0)

    whole, parts, other = a_network(), a_network(), a_network()
    cost = float(fit(whole, tmp_path, 10).callback_metrics["epsilon"])
    trainer = fit(parts, tmp_path, 5)
    trainer.fit_loop.epoch_loop.max_steps = 10
    trainer.fit(parts, *loaders(parts))
    assert float(trainer.callback_metrics["epsilon"]) == cost
    assert torch.equal(parts.network.linear.weight, whole.network.linear.weight)
    trainer = fit(other, tmp_path, 5)
    trainer.fit_loop.epoch_loop.max_steps = 10
    trainer.fit(whole, *loaders(whole))  # whose steps 5 to 9 are taken
    assert (whole.noise_source.trainings, parts.noise_source.trainings) == (1, 0)
    assert whole.accountant.total(trainer.global_step) == 15


@pytest.mark.parametrize("noise_seed", [None, 0])
def test_another_training_draws_other_poisson_samples(
    tmp_path: Path, networks: dict[str, str], noise_seed: int | None
) -> None:
    privacy, keys = Privacy(1.0, 0.5, "sample"), str(tmp_path / "keys")
    client = VictimClient(
        networks["linear"], CLASSES, privacy=privacy, optimizer=sgd, noise_seed=noise_seed, noise_key_folder=keys
    )
    drawn = []
    for _ in range(2):
        data = loaders(client)
        fit(client, tmp_path / "run", 1, data=data)
        drawn.append([data[0].sampler.drawn(step) for step in range(5)])
    assert not any(first == second for first, second in zip(*drawn, strict=True))


def test_all_trainings_of_a_client_are_accounted_for(tmp_path: Path, networks: dict[str, str]) -> None:
    def a_network(rate: float = 1.0) -> VictimClient:
        return VictimClient(networks["linear"], CLASSES, privacy=Privacy(rate, 0.5), optimizer=sgd, noise_seed=0)

    whole, parts = a_network(), a_network()
    cost = float(fit(whole, tmp_path, 7).callback_metrics["epsilon"])
    fit(parts, tmp_path, 4)
    assert float(fit(parts, tmp_path, 3).callback_metrics["epsilon"]) == pytest.approx(cost)
    fit(parts, tmp_path, 0)
    assert training_line(parts, parts.accountant.total(0)) == training_line(whole, 7)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("noise_seed", [None, 0])
def test_another_training_is_resumed_as_it_began(
    tmp_path: Path, networks: dict[str, str], noise_seed: int | None
) -> None:
    def a_network() -> VictimClient:
        privacy, keys = Privacy(1.0, 0.5, "sample"), str(tmp_path / "keys")
        return VictimClient(
            networks["linear"], CLASSES, privacy=privacy, optimizer=sgd, noise_seed=noise_seed, noise_key_folder=keys
        )

    run, checkpoint = tmp_path / "run", str(tmp_path / "part.ckpt")
    client, rest, idle = a_network(), a_network(), a_network()
    fit(client, run, 2)
    fit(client, run, 3).save_checkpoint(checkpoint)
    stopped = [parameter.detach().clone() for parameter in client.network.parameters()]
    cost = float(fit(rest, run, 5, checkpoint).callback_metrics["epsilon"])
    fit(client, run, 5, checkpoint)  # the same client goes back, too
    for ours, theirs, early in zip(client.network.parameters(), rest.network.parameters(), stopped, strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, early)
    assert client.accountant.epsilon(7) == rest.accountant.epsilon(7) == pytest.approx(cost)
    # A finished training takes no step; one that follows does not repeat its noise, and counts its steps.
    fit(idle, run, 3, checkpoint)

    def first_number(one: VictimClient) -> float:
        return one.noise_source.generators(TRAINING, one.noise_source.trainings, 0)("linear.bias").random()

    before = first_number(idle)
    assert before == first_number(rest)
    assert float(fit(idle, run, 2).callback_metrics["epsilon"]) == pytest.approx(cost)
    assert first_number(idle) != before


def test_another_training_at_another_rate_is_refused(tmp_path: Path, networks: dict[str, str]) -> None:
    client = VictimClient(networks["linear"], CLASSES, privacy=Privacy(1.0, 0.5, "sample"), noise_seed=0)
    fit(client, tmp_path, 1)
    sampler = PoissonSampler(COUNT, 16, client.noise_source, lambda: client.global_step, 0, 1)
    other = DataLoader(Brightness(), batch_size=None, sampler=sampler), loaders(client)[1]
    for _ in range(2):  # to try again does not help
        with pytest.raises(UserError, match=r"sample_rate is 0\.4, but this client's network was trained with 0\.2"):
            fit(client, tmp_path, 1, data=other)
    assert client.accountant.state_dict()["sample_rate"] == 0.2
    fit(client, tmp_path, 1)
    assert client.accountant.total(1) == 2


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_checkpoint_of_another_rate_is_not_mixed_with_own_steps(tmp_path: Path, networks: dict[str, str]) -> None:
    def a_network() -> VictimClient:
        return VictimClient(networks["linear"], CLASSES, privacy=Privacy(1.0, 0.5, "sample"), noise_seed=0)

    def at_another_rate(client: VictimClient) -> tuple[DataLoader[Any], ...]:
        sampler = PoissonSampler(COUNT, 16, client.noise_source, lambda: client.global_step, 0, 1)
        return DataLoader(Brightness(), batch_size=None, sampler=sampler), loaders(client)[1]

    trained, client, checkpoint = a_network(), a_network(), str(tmp_path / "other.ckpt")
    fit(trained, tmp_path, 1, data=at_another_rate(trained)).save_checkpoint(checkpoint)
    fit(client, tmp_path, 1)
    with pytest.raises(UserError, match=r"sample_rate is 0\.4, but this client's network was trained with 0\.2"):
        fit(client, tmp_path, 2, checkpoint, at_another_rate(client))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("left", [0, 1])
def test_going_back_to_a_checkpoint_takes_back_no_step(tmp_path: Path, networks: dict[str, str], left: int) -> None:
    def a_network() -> VictimClient:
        return VictimClient(networks["linear"], CLASSES, privacy=Privacy(1.0, 0.5), optimizer=sgd, noise_seed=0)

    client, fresh, checkpoint = a_network(), a_network(), str(tmp_path / "part.ckpt")
    fit(client, tmp_path, 4).save_checkpoint(checkpoint)
    fit(client, tmp_path, 4)
    fit(client, tmp_path, 4 + left, checkpoint)
    assert client.accountant.total(4 + left) == 8 + left
    fit(client, tmp_path, 2)
    assert client.accountant.total(2) == 10 + left
    fit(fresh, tmp_path, 4 + left, checkpoint)  # another process knows what the checkpoint says
    assert fresh.accountant.total(4 + left) == 4 + left
    assert "earlier_steps" not in fresh.accountant.state_dict()


def test_a_finished_training_has_nothing_left_to_do(tmp_path: Path, networks: dict[str, str]) -> None:
    def a_network() -> VictimClient:
        return VictimClient(
            networks["linear"], CLASSES, privacy=Privacy(1.0, 0.5, "sample"), optimizer=sgd, noise_seed=0
        )

    trained, again, idle = a_network(), a_network(), a_network()
    checkpoint = str(tmp_path / "done.ckpt")
    fit(trained, tmp_path, 5).save_checkpoint(checkpoint)
    fit(again, tmp_path, 5, checkpoint)
    assert training_line(again, 5) == training_line(trained, 5)
    assert again.accountant.state_dict() == trained.accountant.state_dict()
    fit(idle, tmp_path, 0)
    assert "nothing" in training_line(idle, 0)


def test_an_empty_sample_gives_noise_alone() -> None:
    network, privacy = VictimClient("convnet", CLASSES).network, Privacy(2.0, 0.5, "sample")
    nothing = torch.zeros(0, 3, PIXELS, PIXELS), torch.zeros(0, dtype=torch.int64)
    noise = NoiseSource(0).generators(0, 0, 0)
    found, loss = private_gradient(network, *nothing, privacy, 4, 1, noise, lambda tensor, how: tensor)
    numbers = torch.cat([tensor.flatten() for tensor in found.values()])
    assert found.keys() == dict(network.named_parameters()).keys()
    assert float(numbers.std()) == pytest.approx(2.0 * 0.5 / 4, rel=5 / math.sqrt(2 * len(numbers)))
    assert loss.isnan()


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_the_cost_of_all_steps_is_logged(
    tmp_path: Path, networks: dict[str, str], granularity: Granularity, adjacency: Literal["add_remove", "replace_one"]
) -> None:
    privacy = Privacy(1.0, 0.8, granularity, adjacency=adjacency)
    client = VictimClient(networks["linear"], CLASSES, privacy=privacy, chunk_size=8, noise_seed=0)
    logged = float(fit(client, tmp_path, 7).callback_metrics["epsilon"])
    plain = gaussian_epsilon(mu_of(0.8, 7, adjacency), 1e-5)
    if granularity == "sample":
        assert logged == pytest.approx(training_epsilon(0.8, 8 / COUNT, 7, 1e-5, adjacency))
        assert logged < 0.7 * plain
    else:
        assert logged == pytest.approx(plain)


def test_steps_of_another_mechanism_cannot_be_added_up(tmp_path: Path, networks: dict[str, str]) -> None:
    checkpoint = str(tmp_path / "part.ckpt")
    fit(
        VictimClient(networks["linear"], CLASSES, privacy=Privacy(1.0, 0.1), noise_seed=0), tmp_path, 2
    ).save_checkpoint(checkpoint)
    other = VictimClient(networks["linear"], CLASSES, privacy=Privacy(1.0, 0.2), noise_seed=0)
    with pytest.raises(UserError, match=r"noise_multiplier is 0\.2.* was trained with 0\.1"):
        fit(other, tmp_path, 4, checkpoint)


def test_dp_sgd_refuses_batches_that_are_no_poisson_samples(tmp_path: Path) -> None:
    client = VictimClient("convnet", CLASSES, privacy=Privacy(1.0, 0.5, "sample"), noise_seed=0)
    with pytest.raises(UserError, match="Poisson samples"):
        fit(client, tmp_path, 1, data=loaders(VictimClient("convnet", CLASSES)))
