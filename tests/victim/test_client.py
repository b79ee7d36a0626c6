# SPDX-License-Identifier: Apache-2.0
"""The client's answers against plain gradients, its promise of secrecy, and DP training of the target."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recon.data.images import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import Client, ClientUpdate, RecordedClient, ServerPayload, payload_name, update_name
from lightning_recon.structure.inference import InferenceStructure, TamperedNetwork
from lightning_recon.victim import Privacy, VictimClient

CLASSES, PIXELS, BATCH = 5, 16, 3
Granularity = Literal["sample", "update"]
Mode = Literal["train", "eval"]
PLAIN = Privacy()


class Linear(nn.Module):
    """Logistic regression, for which everything has a closed form."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * PIXELS**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.linear(images.flatten(1))
        return logits


class WithDropout(Linear):
    """A network that draws random numbers in its forward pass."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits of pictures with half the pixels missing."""
        return super().forward(F.dropout(images, 0.5, self.training))


class WithBatchNorm(nn.Module):
    """A network whose samples depend on each other."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(F.gelu(self.norm(self.conv(images))).mean(dim=(2, 3)))
        return logits


LINEAR = f"{__name__}.Linear"
BATCH_NORM = f"{__name__}.WithBatchNorm"


def a_batch(seed: int) -> ClientBatch:
    # Not the seed of the network: its weights would be the same random numbers as the pixels, as if trained on them.
    generator = torch.Generator().manual_seed(1000 + seed)
    images = torch.rand(BATCH, 3, PIXELS, PIXELS, generator=generator)
    masks = torch.ones(BATCH, 1, PIXELS, PIXELS, dtype=torch.bool)
    return ClientBatch(images, images, masks, torch.arange(BATCH), [str(index) for index in range(BATCH)])


def a_client(
    network: str = "convnet", clients: int = 1, privacy: Privacy = PLAIN, batch_norm: Mode = "train", seed: int = 0
) -> VictimClient:
    client = VictimClient(network, CLASSES, privacy=privacy, batch_norm=batch_norm, seed=seed)
    client.bind([a_batch(seed) for seed in range(clients)])
    return client


def a_payload(strength: float = 100.0) -> ServerPayload:
    """Sends the pixels themselves: four units along the mean brightness, and one constant."""
    pixels = 3 * PIXELS**2
    edges = torch.tensor([-torch.inf, 0.49, 0.5, 0.51, torch.inf])
    tensors = {
        "mean": torch.zeros(3, PIXELS, PIXELS),
        "colour": torch.eye(3),
        "index": torch.arange(pixels),
        "gain": torch.ones(pixels),
        "constants": torch.tensor([0.3]),
        "directions": torch.full((1, pixels), 1 / pixels),
        "unit_direction": torch.zeros(4, dtype=torch.int64),
        "lower": edges[:-1],
        "upper": edges[1:],
        "code": torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]),
    }
    return ServerPayload({"pixels": True, "cancel": True, "strength": strength, "target_scale": 1.0}, tensors)


def norm(update: ClientUpdate) -> float:
    return math.hypot(*(float(tensor.double().norm()) for tensor in update.gradient.values()))


def plain_gradient(client: VictimClient, payload: ServerPayload, reduction: str = "mean") -> dict[str, Tensor]:
    """By backward(), the textbook way."""
    model = TamperedNetwork(client.network, InferenceStructure(payload))
    batch = client._batches[0]
    F.cross_entropy(model(batch.images), batch.labels, reduction=reduction).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    client.zero_grad()
    return gradients


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_without_clip_and_noise_the_update_is_the_plain_gradient(granularity: Granularity) -> None:
    client, payload = a_client(privacy=Privacy(None, 0.0, granularity)), a_payload()
    update = client.share(payload, 0, 0, 0)
    expected = plain_gradient(client, payload, "sum" if granularity == "sample" else "mean")
    assert update.gradient.keys() == expected.keys()
    assert update.gradient["structure.weight"].norm() > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(update.gradient[name], gradient, rtol=1e-4, atol=1e-5)


def test_an_empty_payload_leaves_the_network_alone() -> None:
    client = a_client(privacy=Privacy(None))
    update = client.share(ServerPayload(), 0, 0, 0)
    assert update.gradient.keys() == {f"network.{name}" for name, _ in client.network.named_parameters()}
    # The structure's output is exactly 0, so the network's own gradient does not know of it.
    tampered = client.share(a_payload(), 0, 0, 0)
    assert all(torch.equal(tampered.gradient[name], gradient) for name, gradient in update.gradient.items())


def test_clipped_update_in_closed_form() -> None:
    client = a_client(LINEAR, privacy=Privacy(0.01))
    update = client.share(ServerPayload(), 0, 0, 0)
    plain = plain_gradient(client, a_payload())
    plain = {name: gradient for name, gradient in plain.items() if name.startswith("network.")}
    total = math.hypot(*(float(gradient.norm()) for gradient in plain.values()))
    assert total > 0.01
    for name, gradient in plain.items():
        torch.testing.assert_close(update.gradient[name], gradient * 0.01 / total)
    assert norm(update) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize(("granularity", "voices"), [("update", 1), ("sample", BATCH)])
def test_update_keeps_within_its_bound_before_noise(granularity: Granularity, voices: int, per_layer: bool) -> None:
    client = a_client(privacy=Privacy(0.5, 0.0, granularity, per_layer))
    update = client.share(a_payload(strength=1e4), 0, 0, 0)
    assert 0 < norm(update) <= 0.5 * voices * (1 + 1e-6)
    if per_layer:
        bound = 0.5 * voices / math.sqrt(len(update.gradient))
        assert all(tensor.norm() <= bound * (1 + 1e-6) for tensor in update.gradient.values())


def test_noise_has_standard_deviation_cz_on_every_number() -> None:
    quiet = a_client(privacy=Privacy(2.0)).share(a_payload(), 0, 0, 0)
    loud = a_client(privacy=Privacy(2.0, 0.1)).share(a_payload(), 0, 0, 0)
    for name, tensor in loud.gradient.items():
        noise, n = tensor - quiet.gradient[name], tensor.numel()
        assert abs(noise.square().mean() / 0.2**2 - 1) < 5 * math.sqrt(2 / n)
        assert abs(noise.mean()) < 5 * 0.2 / math.sqrt(n)


def test_share_depends_on_seed_client_draw_and_round_and_on_nothing_else() -> None:
    privacy, payload = Privacy(1.0, 0.1), a_payload()
    client = a_client(clients=2, privacy=privacy)
    first = client.share(payload, 0, 0, 0)
    others = [client.share(payload, *key) for key in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    others.append(a_client(privacy=privacy, seed=1).share(payload, 0, 0, 0))
    torch.rand(3)
    for same in (client.share(payload, 0, 0, 0), a_client(clients=2, privacy=privacy).share(payload, 0, 0, 0)):
        assert same.payload == payload.digest()
        assert all(torch.equal(same.gradient[name], tensor) for name, tensor in first.gradient.items())
    for other in others:
        assert all(not torch.equal(other.gradient[name], tensor) for name, tensor in first.gradient.items())


def test_draws_and_rounds_share_one_gradient_and_training_renews_it() -> None:
    client, payload = a_client(LINEAR, privacy=Privacy(None)), a_payload()
    first = client.share(payload, 0, 0, 0)
    first.gradient["network.model.linear.bias"].zero_()  # what was sent is a copy
    second = client.share(payload, 0, 1, 3)
    assert second.gradient["network.model.linear.bias"].norm() > 0
    with torch.no_grad():
        client.network.model.linear.weight.add_(1.0, alpha=0.1)
        client.network.model.linear.bias.add_(torch.arange(5.0))
    third = client.share(payload, 0, 0, 0)
    assert not torch.equal(third.gradient["network.model.linear.bias"], second.gradient["network.model.linear.bias"])


def test_dropout_is_reproducible() -> None:
    shares = []
    for _ in range(2):
        torch.rand(1)
        client = a_client(f"{__name__}.WithDropout", privacy=Privacy(None))
        state = torch.random.get_rng_state()
        shares.append(client.share(ServerPayload(), 0, 0, 0).gradient["network.model.linear.weight"])
        assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(*shares)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("training", [True, False])
def test_share_leaves_network_modes_and_buffers_alone(mode: Mode, training: bool) -> None:
    client = a_client(BATCH_NORM, batch_norm=mode).train(training)
    before = {name: tensor.clone() for name, tensor in client.state_dict().items()}
    update = client.share(a_payload(), 0, 0, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in client.state_dict().items())
    assert all(module.training == training for module in client.network.modules())
    assert all(parameter.grad is None for parameter in client.parameters())
    # Only in eval mode do the running statistics matter.
    twin = a_client(BATCH_NORM, batch_norm=mode)
    with torch.no_grad():
        twin.network.model.norm.running_var.mul_(9.0)
    same = torch.equal(
        twin.share(a_payload(), 0, 0, 0).gradient["network.model.head.weight"],
        update.gradient["network.model.head.weight"],
    )
    assert same == (mode == "train")


def test_sample_granularity_converts_batch_normalisation() -> None:
    client = a_client(BATCH_NORM, privacy=Privacy(0.1, 0.0, "sample"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in client.modules())
    assert 0 < norm(client.share(a_payload(), 0, 0, 0)) <= 0.1 * BATCH * (1 + 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_share_is_float32_whatever_the_precision(dtype: torch.dtype) -> None:
    client, payload = a_client(privacy=Privacy(1.0)), a_payload()
    expected = client.share(payload, 0, 0, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        client.bind([a_batch(0)])
        update = client.share(payload, 0, 0, 0)
    assert all(torch.equal(update.gradient[name], tensor) for name, tensor in expected.gradient.items())
    cast = a_client(privacy=Privacy(1.0)).to(dtype).share(payload, 0, 0, 0)
    assert all(tensor.dtype == torch.float32 for tensor in cast.gradient.values())


def test_nothing_public_shows_the_clean_gradient() -> None:
    client = a_client(privacy=Privacy(1.0, 1.0))
    client.share(a_payload(), 0, 0, 0)
    gradient_like = {4 * (3 * PIXELS**2 + 1)}  # size of the structure's weight
    exposed = [name for name, value in vars(client).items() if not name.startswith("_") and isinstance(value, dict)]
    assert exposed == []
    assert not any(tensor.numel() in gradient_like for tensor in client.state_dict().values())


def test_nan_is_refused() -> None:
    client, broken = a_client(), a_batch(0)
    broken.images[0, 0, 0, 0] = torch.nan
    client.bind([broken])
    with pytest.raises(UserError, match="NaN or infinity"):
        client.share(a_payload(), 0, 0, 0)


def test_labels_must_have_classes() -> None:
    batch = a_batch(0)
    batch.labels[1] = CLASSES
    with pytest.raises(UserError, match=r"--model\.client\.num_classes"):
        a_client().bind([batch])


def test_task_announces_the_training() -> None:
    client = a_client(clients=2, privacy=Privacy(2.0, 0.1, "sample", True, 3))
    assert isinstance(client, Client)
    task = client.task
    assert (task.image_shape, task.num_classes, task.batch_size, task.clients) == ((3, PIXELS, PIXELS), 5, BATCH, 2)
    assert (task.network, task.granularity, task.per_layer) == ("convnet", "sample", True)
    assert (task.max_grad_norm, task.noise_multiplier, task.rounds) == (2.0, 0.1, 3)


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_preview_describes_the_release(granularity: Granularity) -> None:
    client = a_client(privacy=Privacy(0.5, 0.01, granularity))
    release = client.preview(a_payload(strength=1e4), 0)
    assert len(release.norms) == (BATCH if granularity == "sample" else 1)
    for before, factor in zip(release.norms, release.clip_factors, strict=True):
        assert before * factor == pytest.approx(0.5)
    assert 0.99 < release.structure_share <= 1
    assert client.preview(ServerPayload(), 0).structure_share == 0
    update = client.share(a_payload(strength=1e4), 0, 0, 0)
    assert release.parameters == sum(tensor.numel() for tensor in update.gradient.values())
    assert release.noise_norm == pytest.approx(0.005 * math.sqrt(release.parameters))


def test_a_recorded_client_gives_the_identical_update(tmp_path: Path) -> None:
    client, payload = a_client(privacy=Privacy(1.0, 0.1)), a_payload()
    update = client.share(payload, 0, 0, 0)
    client.task.save(tmp_path)
    payload.save(tmp_path, payload_name(0))
    update.save(tmp_path, update_name(0, 0, 0), dict.fromkeys(update.gradient))
    recorded = RecordedClient(tmp_path)
    again = recorded.share(ServerPayload.load(tmp_path, payload_name(0)), 0, 0, 0)
    assert recorded.task == client.task
    assert again.gradient.keys() == update.gradient.keys()
    assert all(torch.equal(again.gradient[name], tensor) for name, tensor in update.gradient.items())


def parse(*flags: str) -> VictimClient:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(VictimClient, "client")
    client: VictimClient = parser.instantiate(parser.parse_args(["--client.network=convnet", *flags])).client
    return client


def test_flags_reach_the_client() -> None:
    client = parse("--client.privacy.noise_multiplier", "2e-4", "--client.privacy.max_grad_norm", "10")
    assert client.privacy == Privacy(10.0, 2e-4)
    assert parse("--client.privacy.max_grad_norm", ".inf").privacy.max_grad_norm is None
    assert isinstance(client.configure_optimizers(), torch.optim.SGD)
    adam = parse("--client.optimizer=torch.optim.Adam", "--client.optimizer.lr=0.5").configure_optimizers()
    assert isinstance(adam, torch.optim.Adam)
    assert adam.defaults["lr"] == 0.5
    with pytest.raises(UserError, match="noise without a clip"):
        parse("--client.privacy.max_grad_norm", ".inf", "--client.privacy.noise_multiplier", "1")
    with pytest.raises(UserError, match="chunk_size"):
        parse("--client.chunk_size", "0")


# --- training of the target -----------------------------------------------------------------------------------------


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Pictures whose brightness is their class."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(40) % CLASSES
    images = torch.rand(40, 3, PIXELS, PIXELS, generator=generator) * 0.2 + 0.2 * labels.view(-1, 1, 1, 1)
    data = TensorDataset(images, labels)
    return DataLoader(data, batch_size=8), DataLoader(data, batch_size=20)


def sgd(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.002)


def fit(client: VictimClient, folder: Path, steps: int, resume: str | None = None) -> Trainer:
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
    trainer.fit(client, *loaders(), ckpt_path=resume)
    return trainer


# Lightning 2.6 with torch 2.14: about its own use of torch, and advice for real data.
quiet_loaders = pytest.mark.filterwarnings(
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
    "ignore:The '.*_dataloader' does not have many workers:lightning.fabric.utilities.warnings.PossibleUserWarning",
)


@quiet_loaders
@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_training_without_clip_and_noise_is_plain_sgd(tmp_path: Path, granularity: Granularity) -> None:
    client = VictimClient(LINEAR, CLASSES, privacy=Privacy(None, 0.0, granularity), chunk_size=3, optimizer=sgd)
    reference = VictimClient(LINEAR, CLASSES).network
    fit(client, tmp_path, 5)
    optimizer = sgd(reference.parameters())
    for images, labels in loaders()[0]:
        optimizer.zero_grad()
        F.cross_entropy(reference(images), labels).backward()
        optimizer.step()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(client.network.get_parameter(name), parameter, rtol=1e-4, atol=1e-6)


@quiet_loaders
@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_private_training_learns(tmp_path: Path, granularity: Granularity) -> None:
    client = VictimClient(LINEAR, CLASSES, privacy=Privacy(2.0, 0.05, granularity), chunk_size=8)
    client.optimizer = lambda p: torch.optim.SGD(p, lr=0.02)
    first = float(fit(client, tmp_path, 1).callback_metrics["train_loss"])
    metrics = fit(client, tmp_path, 60).callback_metrics
    assert float(metrics["train_loss"]) < 0.6 * first
    assert float(metrics["val_accuracy"]) > 0.5


@quiet_loaders
def test_training_updates_running_statistics(tmp_path: Path) -> None:
    client = VictimClient(BATCH_NORM, CLASSES, privacy=Privacy(1.0))
    fit(client, tmp_path, 2)
    assert client.network.model.norm.num_batches_tracked == 2
    assert client.network.model.norm.running_mean.abs().max() > 0


@quiet_loaders
def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    def a_network() -> VictimClient:
        return VictimClient(f"{__name__}.WithDropout", CLASSES, privacy=Privacy(1.0, 0.1), optimizer=sgd)

    whole, part, rest = a_network(), a_network(), a_network()
    fit(whole, tmp_path, 10)
    checkpoint = str(tmp_path / "part.ckpt")
    fit(part, tmp_path, 5).save_checkpoint(checkpoint)
    torch.rand(7)
    fit(rest, tmp_path, 10, checkpoint)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(rest.network.state_dict()[name], tensor)
        assert not torch.equal(part.network.state_dict()[name], tensor)
    # A fitted client's checkpoint serves as weights.
    loaded = VictimClient(LINEAR, CLASSES, weights=checkpoint).network.state_dict()
    assert all(torch.equal(part.network.state_dict()[name], tensor) for name, tensor in loaded.items())
