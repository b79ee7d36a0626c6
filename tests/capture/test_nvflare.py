# SPDX-License-Identifier: Apache-2.0
"""Updates behind NVFlare's own privacy filters, in its simulator too, are captured and attacked."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.filter import FilterChainType, FilterContextKey
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy
from torch import Tensor, nn

from lightning_recon.capture import load_captured
from lightning_recon.capture.nvflare import NVFlareAudit
from lightning_recon.capture.nvflare_filters import svt_release
from lightning_recon.cli import main
from lightning_recon.data import ClientBatch, save_truth
from lightning_recon.errors import UserError
from lightning_recon.exchange import LocalTraining
from lightning_recon.networks.construction import build_network
from lightning_recon.structure import Digital, RobbingTheFed, Structure, WaterFilling

SCRIPT = Path(__file__).parents[2] / "scripts" / "capture_nvflare.py"
UPDATE = "update-c000-d000-r0000.safetensors"
SGD = LocalTraining(learning_rates=(0.01,), update="delta")
Protection = SVTPrivacy | PercentilePrivacy | None


def audit_of(protection: Protection, structure: Structure | None) -> NVFlareAudit:
    return NVFlareAudit(build_network("convnet", 16), structure, protection, 24, 16, 4, name="convnet", local=SGD)


def message(audit: NVFlareAudit, tensors: dict[str, Tensor], kind: str = DataKind.WEIGHT_DIFF) -> Shareable:
    data = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
    return DXO(kind, data=data, meta={MetaKey.NUM_STEPS_CURRENT_ROUND: 1}).to_shareable()


def context() -> FLContext:
    found = FLContext()
    found.set_prop(ReservedKey.IDENTITY_NAME, "site-1", private=False, sticky=False)
    return found


def trained(model: nn.Module, pictures: ClientBatch) -> dict[str, Tensor]:
    """The change of a state dict by one step."""
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    F.cross_entropy(model(pictures.images), pictures.labels).backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    return {name: tensor.detach() - before[name] for name, tensor in model.state_dict().items()}


def client_round(audit: NVFlareAudit, pictures: ClientBatch, folder: Path) -> dict[str, Tensor]:
    """What NVFlare does between a server and a client, with its own filters; the change before they see it."""
    audit.announce(folder)
    model, capture = audit.model(), audit.capture(folder)
    capture.set_prop(FilterContextKey.CHAIN_TYPE, FilterChainType.TASK_DATA_CHAIN)
    capture.process(message(audit, dict(model.state_dict()), DataKind.WEIGHTS), context())
    delta = trained(model, pictures)
    sent = message(audit, delta)
    if audit.protection is not None:
        sent = audit.protection.process(sent, context())
    capture.set_prop(FilterContextKey.CHAIN_TYPE, FilterChainType.TASK_RESULT_CHAIN)
    forwarded = capture.process(sent, context())
    released = from_shareable(forwarded).data
    captured = load_captured(folder / UPDATE).tensors
    prefix = "network." if audit.structure is None else ""
    assert all(torch.equal(captured[prefix + name], torch.as_tensor(value)) for name, value in released.items())
    save_truth(folder / "truth.safetensors", pictures.images, pictures.labels)
    return delta


def attack(folder: Path, *flags: str) -> dict[str, Any]:
    files = ["--config", "captured.yaml", "--data", "CapturedPictures", "--data.root", str(folder)]
    run = ["--model.update", str(folder), "--trainer.default_root_dir", str(folder / "run"), "--results.show", "false"]
    main(["fit", *files, *run, "--trainer.accelerator", "cpu", *flags])
    found: dict[str, Any] = json.loads((folder / "run" / "results.json").read_text())
    return found


# --- what the filters let through ---


def test_percentile_privacy_releases_values_exactly(pictures: ClientBatch, tmp_path: Path) -> None:
    audit = audit_of(PercentilePrivacy(10, 0.01), None)
    delta = client_round(audit, pictures, tmp_path)
    found = load_captured(tmp_path / UPDATE).tensors
    every = torch.cat([tensor.flatten() for tensor in delta.values()])
    received = torch.cat([found[f"network.{name}"].flatten() for name in delta])
    assert float((received == every).float().mean()) == pytest.approx(0.9, abs=0.01)
    assert bool(((received == every) | (received == 0)).all())
    files = ["--config", "attack/likelihood.yaml", "--trainer.max_steps", "20"]
    summary = attack(tmp_path, *files)["summary"]
    assert (summary["detected"], summary["label_accuracy"]) == (4, 1.0)


def test_percentile_privacy_removes_nothing_of_a_structure_with_unused_rows(
    pictures: ClientBatch, tmp_path: Path
) -> None:
    audit = audit_of(PercentilePrivacy(), WaterFilling(strength=0.01))
    delta = client_round(audit, pictures, tmp_path)
    found = load_captured(tmp_path / UPDATE).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in delta.items())
    summary = attack(tmp_path, "--model.structure.strength", "0.01")["summary"]
    assert summary["bit_exact_share"] == 1.0


def test_a_structure_that_is_too_strong_is_limited(pictures: ClientBatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="limited by gamma"):
        client_round(audit_of(PercentilePrivacy(), WaterFilling()), pictures, tmp_path)


@pytest.mark.parametrize("noise_var", [0.1, 20.0])
def test_svt_privacy_chooses_at_random_and_adds_the_noise_that_is_announced(
    pictures: ClientBatch, tmp_path: Path, noise_var: float
) -> None:
    audit = audit_of(SVTPrivacy(noise_var=noise_var), WaterFilling())
    client_round(audit, pictures, tmp_path)
    captured, release = load_captured(tmp_path / UPDATE), audit.release
    assert release is not None
    every = torch.cat([tensor.flatten() for tensor in captured.tensors.values()])
    share = float((every != 0).float().mean())
    assert share == pytest.approx(release.share, abs=5 * math.sqrt(share / len(every)))
    null = captured.tensors["structure.weight"][:, -64:]
    noise = null[null != 0]
    assert float(noise.std()) == pytest.approx(release.noise_std, rel=5 * 1.6 / (2 * len(noise)) ** 0.5)
    assert captured.declared is not None
    assert captured.declared.epsilon == pytest.approx(release.epsilon)
    assert captured.task.compression is not None
    assert captured.task.compression.share == release.share
    assert captured.source.endswith("SVTPrivacy")


def test_svt_privacy_with_little_noise_is_decoded_bit_by_bit(pictures: ClientBatch, tmp_path: Path) -> None:
    client_round(audit_of(SVTPrivacy(noise_var=20.0), Digital()), pictures, tmp_path)
    summary = attack(tmp_path, "--config", "attack/digital.yaml")["summary"]
    assert summary["bit_exact_share"] == 1.0


def test_svt_privacy_with_its_defaults_leaves_the_mean_image(pictures: ClientBatch, tmp_path: Path) -> None:
    client_round(audit_of(SVTPrivacy(), WaterFilling()), pictures, tmp_path)
    found = attack(tmp_path)
    assert found["summary"]["psnr_mean"] < found["baselines"]["mean_image_psnr"] + 0.5


def test_the_accountant_adds_what_the_parameters_do_not_show() -> None:
    """A declared epsilon of 0.1 is that of the choice alone; the values' own is the count of values times noise_var."""
    release = svt_release(100_000)
    assert release.epsilon == pytest.approx(0.1 + 10_000 * 0.1)
    assert svt_release(100_000, noise_var=0.2).noise_scale == pytest.approx(release.noise_scale / 2)
    assert svt_release(100_000, epsilon_release=1.0).noise_scale == pytest.approx(2 * 1e-5 * 10_000)
    assert svt_release(100_000, steps=3).limit == pytest.approx(3e-5)
    assert svt_release(100_000, replace=False).share == 0.1


def test_a_tensor_code_is_served_without_buffers(pictures: ClientBatch) -> None:
    model = audit_of(None, Digital(source_code="tensor")).model()
    assert any("." in name.removeprefix("structure.") for name, _ in model.named_buffers())
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()
    assert model(pictures.images).shape == (4, 16)


# --- mistakes ---


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda audit, sent: replace_kind(sent), "params_transfer_type=TransferType.DIFF"),
        (lambda audit, sent: sent, "has not been through PercentilePrivacy yet"),
        (lambda audit, sent: with_steps(audit.protection.process(sent, context()), 7), "the client reports 7 steps"),
    ],
    ids=["weights", "order", "steps"],
)
def test_a_job_that_is_not_as_announced(
    spoil: Callable[[NVFlareAudit, Shareable], Shareable], said: str, pictures: ClientBatch, tmp_path: Path
) -> None:
    audit = audit_of(PercentilePrivacy(), WaterFilling(strength=0.01))
    audit.announce(tmp_path)
    sent = spoil(audit, message(audit, trained(audit.model(), pictures)))
    with pytest.raises(UserError, match=said):
        audit.capture(tmp_path).process(sent, context())
    assert not (tmp_path / UPDATE).exists()


def replace_kind(sent: Shareable) -> Shareable:
    return DXO(DataKind.WEIGHTS, data=from_shareable(sent).data).to_shareable()


def with_steps(sent: Shareable, steps: int) -> Shareable:
    dxo = from_shareable(sent)
    dxo.set_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, steps)
    return dxo.to_shareable()


def test_what_cannot_be_audited() -> None:
    with pytest.raises(UserError, match="RobbingTheFed has no code"):
        _ = audit_of(SVTPrivacy(), RobbingTheFed()).task
    with pytest.raises(UserError, match='the update is "delta"'):
        _ = replace(audit_of(None, None), local=LocalTraining()).task
    with pytest.raises(UserError, match="removes values of the structure"):
        _ = audit_of(PercentilePrivacy(95), WaterFilling()).payload
    with pytest.raises(UserError, match="depends on the values"):
        svt_release(1000, epsilon=1e6)


def test_the_network_s_own_values_are_not_zero_unless_it_is_silenced(pictures: ClientBatch) -> None:
    silenced, heard = WaterFilling(strength=0.01), WaterFilling(strength=0.01, detach_logits=False)
    model = audit_of(None, heard).model()
    changed = trained(model, pictures)
    zeros = sum(int((one == 0).sum()) for one in changed.values()) / sum(one.numel() for one in changed.values())
    own = sum(one.numel() for one in build_network("convnet", 16).parameters())
    share = own / sum(one.numel() for one in changed.values())
    percentile = 100 * (zeros + share / 2)  # above the zeros of this network, below those of a silenced one
    assert audit_of(PercentilePrivacy(percentile), silenced).payload.settings
    with pytest.raises(UserError, match=r"removes values of the structure.*let it silence the network"):
        _ = audit_of(PercentilePrivacy(percentile), heard).payload


def test_images_loss_and_normalization_are_announced() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(24 * 32, 16))
    audit = NVFlareAudit(network, None, None, (24, 32), 16, 4, local=SGD, channels=1, loss="binary_cross_entropy")
    assert (audit.task.image_shape, audit.task.loss) == ((1, 24, 32), "binary_cross_entropy")
    assert audit.task.normalization == "none"
    with pytest.raises(UserError, match="give one number, or height and width"):
        _ = replace(audit, image_size=[24]).task


# --- the simulator ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "config"),
    [
        (["--protection", "percentile"], ["--model.structure.strength", "0.01"]),
        (
            ["--protection", "svt", "--noise_var", "20", "--structure", "digital"],
            ["--config", "attack/digital.yaml"],
        ),
    ],
    ids=["percentile", "svt"],
)
def test_a_job_in_the_simulator_is_attacked(flags: list[str], config: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "captured"
    command = [sys.executable, str(SCRIPT), str(folder), "--image_size", "24", *flags]
    subprocess.run(command, check=True, timeout=280, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = attack(folder, *config)
    assert found["summary"]["bit_exact_share"] == 1.0
    assert found["capture"]["source"].startswith("nvflare 2.")
