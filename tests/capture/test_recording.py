# SPDX-License-Identifier: Apache-2.0
"""Updates recorded in PyTorch loops that know nothing of this package, and attacked."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_recon.capture import load_captured, record
from lightning_recon.cli import main
from lightning_recon.client import Privacy
from lightning_recon.data import ClientBatch, save_truth
from lightning_recon.errors import UserError
from lightning_recon.exchange import LocalTraining, ServerPayload, Task
from lightning_recon.losses import dice
from lightning_recon.networks.construction import build_network
from lightning_recon.structure import InferenceStructure, TamperedNetwork

CONFIGS = Path(__file__).parents[2] / "configs"
UPDATE = "update-c000-d000-r0000.safetensors"


class Own(nn.Module):
    """A network as users have them."""

    def __init__(self, num_classes: int = 16) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        features = F.gelu(self.norm(self.conv(images)))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(features, 4).flatten(1))
        return logits


@pytest.fixture
def model() -> Iterator[nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield Own()


def loop(
    model: nn.Module, pictures: ClientBatch, optimizer: torch.optim.Optimizer, epochs: int = 1, size: int = 4
) -> None:
    """A training loop without a line of this package."""
    for _ in range(epochs):
        for images, labels in zip(pictures.images.split(size), pictures.labels.split(size), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()


def attack(folder: Path, *flags: str) -> dict[str, Any]:
    files = ["--config", str(CONFIGS / "captured.yaml"), "--config", str(CONFIGS / "attack" / "likelihood.yaml")]
    run = ["--model.update", str(folder), "--trainer.default_root_dir", str(folder / "run"), "--results.show", "false"]
    here = ["--model.network", f"{__name__}.Own", "--trainer.max_steps", "30", "--trainer.accelerator", "cpu"]
    main(["fit", *files, *run, *here, "--data", "CapturedPictures", "--data.root", str(folder), *flags])
    found: dict[str, Any] = json.loads((folder / "run" / "results.json").read_text())
    return found


def test_a_loop_is_announced_as_it_was(model: nn.Module, pictures: ClientBatch, tmp_path: Path) -> None:
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    with record(model, tmp_path, epochs=2):
        loop(model, pictures, torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.01), epochs=2, size=2)
    captured = load_captured(tmp_path / UPDATE)
    assert captured.convention == "delta"
    assert captured.source.startswith("PyTorch 2.")
    local = captured.task.local
    assert (local.optimizer, local.learning_rates) == ("torch.optim.adam.Adam", (1e-3,))
    assert local.options["weight_decay"] == 0.01
    assert (local.epochs, local.batch_size, captured.task.batch_size) == (2, 2, 4)
    assert (captured.task.image_shape, captured.task.num_classes) == ((3, 24, 24), 16)
    assert captured.task.network == f"{__name__}.Own"
    for name, one in model.named_parameters():
        assert torch.equal(captured.tensors[f"network.{name}"], one.detach() - before[name])
        assert torch.equal(load_file(tmp_path / "network.safetensors")[name], before[name])


def test_a_step_of_sgd_is_reconstructed(model: nn.Module, pictures: ClientBatch, tmp_path: Path) -> None:
    with record(model, tmp_path):
        loop(model, pictures, torch.optim.SGD(model.parameters(), lr=0.05))
    save_truth(tmp_path / "truth.safetensors", pictures.images, pictures.labels)
    found = attack(tmp_path)
    assert found["summary"]["label_accuracy"] >= 0.75
    assert found["summary"]["psnr_mean"] > found["baselines"]["mean_image_psnr"] + 2


def test_labels_are_recovered_of_several_steps(model: nn.Module, pictures: ClientBatch, tmp_path: Path) -> None:
    with record(model, tmp_path, epochs=2):
        loop(model, pictures, torch.optim.SGD(model.parameters(), lr=0.05), epochs=2, size=2)
    save_truth(tmp_path / "truth.safetensors", pictures.images, pictures.labels)
    found = attack(tmp_path)
    assert found["summary"]["label_accuracy"] >= 0.75
    assert found["summary"]["victims"] == 4


def test_gradients_that_are_sent_instead_of_weights(model: nn.Module, pictures: ClientBatch, tmp_path: Path) -> None:
    """Clipped and noised by the loop itself; the announced noise is what is released."""
    clip, noise = 1.0, 1e-3
    with record(model, tmp_path, Privacy(clip, noise)):
        F.cross_entropy(model(pictures.images), pictures.labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad += clip * noise * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    captured = load_captured(tmp_path / UPDATE)
    assert captured.convention == "gradient_mean"
    assert (captured.task.max_grad_norm, captured.task.noise_multiplier) == (clip, noise)
    assert torch.equal(captured.tensors["network.head.weight"], model.head.weight.grad)


@pytest.mark.parametrize("wrapper", ["data_parallel", "compiled"])
def test_wrappers_leave_no_trace(model: nn.Module, pictures: ClientBatch, tmp_path: Path, wrapper: str) -> None:
    wrapped: Any = nn.DataParallel(model) if wrapper == "data_parallel" else torch.compile(model, backend="eager")
    with record(wrapped, tmp_path):
        loop(wrapped, pictures, torch.optim.SGD(wrapped.parameters(), lr=0.05))
    captured = load_captured(tmp_path / UPDATE)
    assert captured.tensors.keys() == {f"network.{name}" for name, _ in model.named_parameters()}
    assert captured.task.network == f"{__name__}.Own"


def test_a_malicious_server_gets_the_gradient_of_its_structure(
    pictures: ClientBatch, task: Task, payload: ServerPayload, tmp_path: Path
) -> None:
    model = TamperedNetwork(build_network("convnet", 16), InferenceStructure(payload))
    images, labels = pictures.images, pictures.labels
    torch.autograd.backward(F.cross_entropy(model(images), labels))
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    announced = replace(task, granularity="update", max_grad_norm=None, noise_multiplier=0.0)
    announced = replace(announced, local=LocalTraining(learning_rates=(0.5,)))
    with record(model, tmp_path, task=announced, payload=payload):
        loop(model, pictures, torch.optim.SGD(model.parameters(), lr=0.5))
    captured = load_captured(tmp_path / UPDATE)
    assert captured.convention == "gradient_mean"
    assert captured.payload == payload.digest()
    assert not (tmp_path / "network.safetensors").exists()
    for name, gradient in gradients.items():
        torch.testing.assert_close(captured.tensors[name], gradient, rtol=1e-3, atol=1e-5)
    with record(model, tmp_path / "frozen", task=announced, payload=payload):
        model.network.requires_grad_(False)
        loop(model, pictures, torch.optim.SGD(model.parameters(), lr=0.5))
    structure = load_captured(tmp_path / "frozen" / UPDATE).tensors["structure.weight"]
    assert structure.abs().max() > 0
    model.zero_grad()
    with (
        pytest.raises(UserError, match=r"leaves out structure\.weight .* of the structure"),
        record(model, tmp_path / "other", task=announced, payload=payload),
    ):
        loop(model, pictures, torch.optim.SGD(model.network.requires_grad_(True).parameters(), lr=0.5))
    with (
        pytest.raises(UserError, match="in the task, but the loop had"),
        record(model, tmp_path / "other", task=announced, payload=payload),
    ):
        loop(model, pictures, torch.optim.SGD(model.parameters(), lr=0.1))


def test_two_rounds_on_one_model(model: nn.Module, pictures: ClientBatch, tmp_path: Path) -> None:
    sent = {name: one.clone() for name, one in model.state_dict().items()}
    for round in range(2):
        model.load_state_dict(sent)
        with record(model, tmp_path, Privacy(None, rounds=2), round=round):
            loop(model, pictures, torch.optim.SGD(model.parameters(), lr=0.05))
    assert len(list(tmp_path.glob("update-*"))) == 2
    with pytest.raises(UserError, match="holds other weights than the model had"), record(model, tmp_path):
        loop(model, pictures, torch.optim.SGD(model.parameters(), lr=0.05))


def nothing(model: nn.Module, pictures: ClientBatch) -> None:
    pass


def evaluated(model: nn.Module, pictures: ClientBatch) -> None:
    with torch.no_grad():
        model(pictures.images)


def two_optimizers(model: nn.Module, pictures: ClientBatch) -> None:
    loop(model, pictures, torch.optim.SGD(model.conv.parameters(), lr=0.1))
    loop(model, pictures, torch.optim.Adam(model.head.parameters(), lr=0.1))


def groups(model: nn.Module, pictures: ClientBatch) -> None:
    loop(
        model,
        pictures,
        torch.optim.SGD([{"params": model.conv.parameters(), "lr": 1.0}, {"params": model.head.parameters()}], lr=0.1),
    )


def uneven(model: nn.Module, pictures: ClientBatch) -> None:
    loop(model, pictures, torch.optim.SGD(model.parameters(), lr=0.1))
    loop(model, pictures, torch.optim.SGD(model.parameters(), lr=0.1), size=2)


def unfinished(model: nn.Module, pictures: ClientBatch) -> None:
    model.head = nn.Unflatten(1, (32, 4, 4))
    model(pictures.images)


def frozen(model: nn.Module, pictures: ClientBatch) -> None:
    model.conv.requires_grad_(False)
    loop(model, pictures, torch.optim.SGD(model.parameters(), lr=0.1))


def frozen_gradients(model: nn.Module, pictures: ClientBatch) -> None:
    model.conv.requires_grad_(False)
    F.cross_entropy(model(pictures.images), pictures.labels).backward()


def head_alone(model: nn.Module, pictures: ClientBatch) -> None:
    loop(model, pictures, torch.optim.SGD(model.head.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (nothing, "no optimizer stepped and no gradient was computed"),
        (evaluated, "no optimizer stepped and no gradient was computed"),
        (two_optimizers, "SGD and Adam changed the model, but one optimizer can be announced"),
        (groups, "SGD has parameters with lr 0.1 and with 1.0"),
        (uneven, "one optimizer can be announced"),
        (unfinished, "must map images"),
        (frozen, r"leaves out conv\.weight, conv\.bias \(frozen.*honest server models.*train all of them"),
        (frozen_gradients, r"leaves out conv\.weight, conv\.bias \(frozen"),
        (head_alone, r"leaves out conv\.weight, conv\.bias, norm\.weight and 1 more"),
    ],
)
def test_a_loop_that_cannot_be_announced(
    run: Callable[[nn.Module, ClientBatch], None], said: str, model: nn.Module, pictures: ClientBatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said), record(model, tmp_path):
        run(model, pictures)
    assert not list(tmp_path.iterdir())


def test_gradients_of_before_the_block_are_not_recorded(
    model: nn.Module, pictures: ClientBatch, tmp_path: Path
) -> None:
    F.cross_entropy(model(pictures.images), pictures.labels).backward()
    with pytest.raises(UserError, match="held gradients of an earlier pass"), record(model, tmp_path):
        F.cross_entropy(model(pictures.images), pictures.labels).backward()


def added_and_stepped(model: nn.Module, pictures: ClientBatch, optimizer: torch.optim.Optimizer) -> None:
    F.cross_entropy(model(pictures.images), pictures.labels).backward()
    optimizer.step()


def test_gradients_of_before_the_block_are_not_stepped_with(
    model: nn.Module, pictures: ClientBatch, tmp_path: Path
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    F.cross_entropy(model(pictures.images), pictures.labels).backward()
    with pytest.raises(UserError, match="held gradients of an earlier pass"), record(model, tmp_path):
        added_and_stepped(model, pictures, optimizer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["before the pass", "after the pass"])
def test_gradients_that_the_block_sets_to_zero_are_not_stale(
    model: nn.Module, pictures: ClientBatch, tmp_path: Path, moment: str
) -> None:
    loss = F.cross_entropy(model(pictures.images), pictures.labels)
    (wanted,) = torch.autograd.grad(loss, [model.head.weight], retain_graph=True)
    loss.backward()
    with record(model, tmp_path):
        if moment == "before the pass":
            model.zero_grad(set_to_none=False)
        loss = F.cross_entropy(model(pictures.images), pictures.labels)
        if moment == "after the pass":
            model.zero_grad()
        loss.backward()
    torch.testing.assert_close(load_captured(tmp_path / UPDATE).tensors["network.head.weight"], wanted)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_mode_of_batch_normalization_is_that_of_the_passes(
    model: nn.Module, pictures: ClientBatch, tmp_path: Path, mode: str
) -> None:
    model.norm = nn.BatchNorm2d(32)
    model.train(mode == "eval")
    with record(model, tmp_path):
        model.train()
        model.norm.train(mode == "train")
        loop(model, pictures, torch.optim.SGD(model.parameters(), lr=0.05))
        model.train(mode == "eval")
    assert load_captured(tmp_path / UPDATE).task.batch_norm == mode


def accumulated(model: nn.Module, pictures: ClientBatch, step: bool, divisor: float = 2.0, size: int = 2) -> None:
    for images, labels in zip(pictures.images.split(size), pictures.labels.split(size), strict=True):
        (F.cross_entropy(model(images), labels) / divisor).backward()
    if step:
        torch.optim.SGD(model.parameters(), lr=0.05).step()


@pytest.mark.parametrize("step", [True, False])
@pytest.mark.parametrize(
    ("accumulation", "said"), [(None, 'divide the loss of each pass by 2.*accumulation="mean"'), ("sum", 'is "sum"')]
)
def test_how_gradients_are_accumulated_has_to_be_said(
    model: nn.Module,
    pictures: ClientBatch,
    tmp_path: Path,
    accumulation: Literal["mean", "sum"] | None,
    said: str,
    step: bool,
) -> None:
    with pytest.raises(UserError, match=said), record(model, tmp_path, accumulation=accumulation):
        accumulated(model, pictures, step, divisor=1.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [True, False])
def test_accumulated_gradients_are_those_of_the_mean_loss(
    model: nn.Module, pictures: ClientBatch, tmp_path: Path, step: bool
) -> None:
    loss = F.cross_entropy(model(pictures.images), pictures.labels)
    (wanted,) = torch.autograd.grad(loss, [model.head.weight])
    with record(model, tmp_path, accumulation="mean"):
        accumulated(model, pictures, step)
    captured = load_captured(tmp_path / UPDATE)
    assert captured.task.local.accumulate_grad_batches == (2 if step else 1)
    found = captured.tensors["network.head.weight"] / (-0.05 if step else 1.0)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_accumulated_mini_batches_have_one_size(model: nn.Module, pictures: ClientBatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mini-batches of 3, 1 images"), record(model, tmp_path, accumulation="mean"):
        accumulated(model, pictures, step=False, size=3)


def test_loss_and_bit_depth_are_announced(model: nn.Module, pictures: ClientBatch, tmp_path: Path) -> None:
    with record(model, tmp_path, loss="binary_cross_entropy", bit_depth=12):
        F.binary_cross_entropy_with_logits(model(pictures.images), F.one_hot(pictures.labels, 16).float()).backward()
    task = load_captured(tmp_path / UPDATE).task
    assert (task.loss, task.bit_depth) == ("binary_cross_entropy", 12)


def test_masks_are_outputs_of_losses_of_masks(pictures: ClientBatch, tmp_path: Path) -> None:
    model = nn.Conv2d(3, 1, 3, padding=1)
    with record(model, tmp_path, loss="dice"):
        dice(model(pictures.images), torch.ones(4, 1, 24, 24)).backward()
    task = load_captured(tmp_path / UPDATE).task
    assert (task.loss, task.num_classes) == ("dice", 1)


def test_opacus_divides_by_the_expected_number_of_images(
    model: nn.Module, pictures: ClientBatch, tmp_path: Path
) -> None:
    wrapped = GradSampleModule(model)
    options = {"noise_multiplier": 0.0, "max_grad_norm": 1.0, "expected_batch_size": 4}
    optimizer = DPOptimizer(torch.optim.SGD(wrapped.parameters(), lr=0.1), **options)
    privacy = Privacy(1.0, 0.0, granularity="sample")
    with (
        pytest.raises(UserError, match=r"expected_batch_size=optimizer\.expected_batch_size.*capture_steps"),
        record(wrapped, tmp_path, privacy),
    ):
        pass
    with record(wrapped, tmp_path, privacy, expected_batch_size=4):  # the loader happened to draw three
        F.cross_entropy(wrapped(pictures.images[:3]), pictures.labels[:3]).backward()
        optimizer.step()
    assert load_captured(tmp_path / UPDATE).task.batch_size == 4


def test_an_expected_number_of_images_is_that_of_one_step(
    model: nn.Module, pictures: ClientBatch, tmp_path: Path
) -> None:
    with (
        pytest.raises(UserError, match="expected_batch_size is 5, but the loop went through 4 images"),
        record(model, tmp_path, expected_batch_size=5),
    ):
        loop(model, pictures, torch.optim.SGD(model.parameters(), lr=0.1), size=2)


def test_epochs_have_to_be_announced(model: nn.Module, pictures: ClientBatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which are not 2 equal epochs"), record(model, tmp_path, epochs=2):
        loop(model, pictures, torch.optim.SGD(model.parameters(), lr=0.1))


def test_nothing_is_written_of_a_loop_that_fails(model: nn.Module, pictures: ClientBatch, tmp_path: Path) -> None:
    short = replace(pictures, labels=pictures.labels[:2])
    with pytest.raises(ValueError, match="Expected input batch_size"), record(model, tmp_path):
        loop(model, short, torch.optim.SGD(model.parameters(), lr=0.1))
    assert not list(tmp_path.iterdir())
    assert not model._forward_hooks
