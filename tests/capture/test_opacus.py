# SPDX-License-Identifier: Apache-2.0
"""What Opacus releases equals what the simulated client releases, and is attacked as well."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.optimizers import DPOptimizer
from torch import nn

from lightning_recon.capture import load_captured
from lightning_recon.capture.noise_check import null_noise
from lightning_recon.capture.opacus import capture, capture_change, capture_steps
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.data import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, LocalTraining, ServerPayload, Task
from lightning_recon.networks.wrappers import unwrapped

CLIP, NOISE = 10.0, 0.01

Step = Callable[..., tuple[DPOptimizer, nn.Module]]


@pytest.fixture(scope="module")
def clean(pictures: ClientBatch, payload: ServerPayload) -> ClientUpdate:
    """What our own client would release without noise."""
    client = VictimClient("convnet", 16, privacy=Privacy(CLIP, 0.0, granularity="sample"), noise_seed=0)
    client.bind([pictures])
    return client.share(payload, 0, 0, 0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_opacus_clips_and_sums_as_our_client_does(
    step: Step, task: Task, payload: ServerPayload, clean: ClientUpdate, tmp_path: Path, reduction: str
) -> None:
    silent, path = replace(task, noise_multiplier=0.0), tmp_path / "update.safetensors"
    optimizer, module = step(noise=0.0, reduction=reduction)
    capture(optimizer, module, path, silent, payload)
    captured = load_captured(path)
    assert captured.convention == f"gradient_{reduction}"
    assert captured.source.startswith("opacus 1.")
    found = captured.update().gradient
    assert found.keys() == clean.gradient.keys()
    for name, tensor in clean.gradient.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_its_noise_is_z_times_c_in_every_row(captured: Path, clean: ClientUpdate, payload: ServerPayload) -> None:
    for path in sorted(captured.glob("update*")):
        update = load_captured(path).update()
        noise = update.gradient["structure.weight"] - clean.gradient["structure.weight"]
        assert float(noise.std()) == pytest.approx(NOISE * CLIP, rel=5 / (2 * noise.numel()) ** 0.5)
        rows = noise.std(dim=1) / (NOISE * CLIP)
        assert float((rows - 1).abs().max()) < 5 / (2 * noise.shape[1]) ** 0.5
        measured, count = null_noise(update, payload) or (0.0, 0)
        assert measured == pytest.approx(NOISE * CLIP, rel=5 / (2 * count) ** 0.5)


def test_the_attack_sees_as_much_as_of_our_own_client(
    captured: Path,
    truth: Path,
    fit: Callable[..., dict[str, Any]],
    attack: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    protection = ["--model.client.privacy.granularity", "sample", "--model.client.privacy.noise_multiplier", str(NOISE)]
    ours = fit(tmp_path / "ours", *protection, "--model.draws", "3")
    pictures = ["--data", "CapturedPictures", "--data.root", str(truth), "--model.draws", "3"]
    theirs = attack(tmp_path / "theirs", captured, *pictures)
    # Another program draws noise of its own, and may not take part in every round.
    assert ours["privacy"] == theirs["privacy"] | {"reproducible_noise": True, "participation": 1.0}
    assert ours["baselines"] == theirs["baselines"]
    assert ours["bounds"] == theirs["bounds"]
    assert theirs["summary"]["detected"] == 4
    assert theirs["summary"]["psnr_mean"] > theirs["baselines"]["mean_image_psnr"] + 8
    assert theirs["summary"]["psnr_mean"] == pytest.approx(ours["summary"]["psnr_mean"], abs=0.4)
    assert theirs["summary"]["ssim_mean"] == pytest.approx(ours["summary"]["ssim_mean"], abs=0.03)


def test_every_step_is_captured_and_opacus_own_hook_still_called(
    step: Step, task: Task, payload: ServerPayload, tmp_path: Path
) -> None:
    called = []

    def prepare(optimizer: DPOptimizer, module: nn.Module) -> None:
        accountant = optimizer.step_hook
        assert accountant is not None
        optimizer.attach_step_hook(lambda stepping: (called.append(stepping), accountant(stepping)))
        capture_steps(optimizer, module, tmp_path, replace(task, rounds=1), payload)

    optimizer, _ = step(prepare=prepare)
    optimizer.step_hook(optimizer)  # a second step, beyond the rounds that were announced
    assert len(called) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["update-c000-d000-r0000.safetensors"]


@pytest.mark.parametrize(
    ("announced", "message"),
    [
        ({"noise_multiplier": 0.02}, r"noise_multiplier is 0.02 in the task, but the optimizer has 0.01"),
        ({"max_grad_norm": 1.0}, r"max_grad_norm is 1.0 in the task, but the optimizer has 10.0"),
        ({"batch_size": 8}, r"batch_size is 8 in the task, but the optimizer has 4"),
        ({"granularity": "update"}, r"granularity is update in the task, but the optimizer has sample"),
    ],
)
def test_what_was_announced_must_be_what_is_done(
    step: Step, task: Task, payload: ServerPayload, tmp_path: Path, announced: dict[str, Any], message: str
) -> None:
    optimizer, module = step()
    with pytest.raises(UserError, match=message):
        capture(optimizer, module, tmp_path / "update.safetensors", replace(task, **announced), payload)


def test_a_step_without_gradients_is_no_update(step: Step, task: Task, payload: ServerPayload, tmp_path: Path) -> None:
    optimizer, module = step()
    optimizer.zero_grad()
    with pytest.raises(UserError, match="the step has no gradients"):
        capture(optimizer, module, tmp_path / "update.safetensors", task, payload)


def test_the_structure_may_not_be_frozen_but_the_network_may(
    step: Step, task: Task, payload: ServerPayload, tmp_path: Path
) -> None:
    optimizer, module = step()
    model = unwrapped(module)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    change = replace(task, local=LocalTraining(update="delta"))
    model.network.requires_grad_(False)
    capture(optimizer, module, tmp_path / "update.safetensors", task, payload)
    capture_change(before, module, tmp_path / "change.safetensors", change, payload)
    apart = replace(change, per_layer=True)
    with pytest.raises(UserError, match=r"leaves out network\..* the attack counts all of them as L"):
        capture_change(before, module, tmp_path / "apart.safetensors", apart, payload)
    with pytest.raises(UserError, match=r"leaves out network\..* honest server models gradients of all parameters"):
        capture(optimizer, module, tmp_path / "honest.safetensors", task, ServerPayload())
    model.structure.requires_grad_(False)
    with pytest.raises(UserError, match=r"leaves out structure\.weight .* of the structure"):
        capture(optimizer, module, tmp_path / "frozen.safetensors", task, payload)
    with pytest.raises(UserError, match=r"leaves out structure\.weight .* of the structure"):
        capture_change(before, module, tmp_path / "frozen.safetensors", change, payload)


def test_equal_norms_for_each_tensor_are_per_layer_clipping(
    step: Step, task: Task, payload: ServerPayload, tmp_path: Path
) -> None:
    optimizer, module = step()
    optimizer.max_grad_norm = [CLIP / 3] * 9
    with pytest.raises(UserError, match="per_layer is False in the task, but the optimizer has True"):
        capture(optimizer, module, tmp_path / "update.safetensors", task, payload)
    optimizer.max_grad_norm = [1.0, 2.0]
    with pytest.raises(UserError, match="each tensor to a norm of its own"):
        capture(optimizer, module, tmp_path / "update.safetensors", task, payload)
