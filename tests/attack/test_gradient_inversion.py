# SPDX-License-Identifier: Apache-2.0
"""Gradient inversion as a whole: candidates are independent, the best is kept, and no truth reaches the attack."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_recon.attack import GradientInversion, Reconstruction
from lightning_recon.client import Privacy, VictimClient
from lightning_recon.errors import UserError
from lightning_recon.evaluation.metrics import psnr_per_image
from lightning_recon.exchange import RecordedClient
from lightning_recon.priors.regularizers import Regularization

Honest = Callable[..., VictimClient]
Inverted = Callable[..., tuple[GradientInversion, list[Reconstruction]]]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`IterableDataset` has `__len__`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning 2.6 with torch 2.14
    pytest.mark.filterwarnings("ignore:.*logging interval"),
]
NOISY = Privacy(max_grad_norm=0.1, noise_multiplier=1e-3)
PUBLISHED: dict[str, Any] = {"signed": "hard", "regularization": Regularization(total_variation=0.1)}
OURS: dict[str, Any] = {
    "distance": "likelihood",
    "basis": "spectrum",
    "init": "mean",
    "regularization": Regularization(spectrum=1.0),
    "boxed": False,
}


def lbfgs(params: Any) -> torch.optim.Optimizer:  # noqa: ANN401 - whatever torch takes
    return torch.optim.LBFGS(params, max_iter=3)


# --- who influences whom ---


@pytest.mark.parametrize("settings", [PUBLISHED, OURS | {"labels": "joint"}], ids=["published", "ours"])
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_together_is_alone(
    settings: dict[str, Any], chunk_size: int, honest: Honest, inverted: Inverted, tmp_path: Path
) -> None:
    both, together = inverted(honest(clients=2, privacy=NOISY), draws=2, chunk_size=chunk_size, **settings)
    # The second client beside other pictures: whatever changes is the neighbour's influence.
    other = honest(clients=2, privacy=NOISY)
    other._batches[0].images.zero_()
    _, beside = inverted(other, draws=2, chunk_size=chunk_size, root=tmp_path / "other", **settings)
    assert not torch.equal(beside[0].images, together[0].images)
    for one, mine in zip(together[2:], beside[2:], strict=True):
        assert torch.equal(one.images, mine.images)
    assert len(both.solver.chunks) == (4 if chunk_size == 1 else 1)
    _, alone = inverted(honest(clients=1, privacy=NOISY), draws=1, chunk_size=1, root=tmp_path / "alone", **settings)
    if chunk_size == 1:
        assert torch.equal(alone[0].images, together[0].images)
    assert torch.allclose(alone[0].images, together[0].images, atol=1e-4)


def test_l_bfgs_searches_a_line_for_each_candidate(honest: Honest, inverted: Inverted, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"distance": "euclidean", "optimizer": lbfgs, "labels": "joint", "boxed": False}
    # Chunks are of one candidate, whatever chunk_size says.
    many, together = inverted(honest(clients=2), draws=1, chunk_size=8, **settings)
    assert many.trainer.global_step == 3
    _, alone = inverted(honest(clients=1), root=tmp_path / "alone", **settings)
    assert torch.equal(alone[0].images, together[0].images)
    assert (many.search.lowest.isfinite()).all()
    with pytest.raises(UserError, match="along a line for each candidate"):
        inverted(honest(), root=tmp_path / "signed", signed="hard", **settings)


# --- which candidate is the reconstruction ---


def test_the_best_iterate_is_chosen_by_the_objective(honest: Honest, inverted: Inverted) -> None:
    """Uphill: the last iterate is the worst, and what is kept is the first."""

    def uphill(params: Any) -> torch.optim.Optimizer:  # noqa: ANN401 - whatever torch takes
        return torch.optim.SGD(params, lr=1.0, maximize=True)

    attack, (found,) = inverted(honest(), steps=6, distance="euclidean", optimizer=uphill, boxed=False)
    best = attack.search.best
    values = attack.search.evaluated(attack.problem.evaluate, attack.solver.chunks, best, None, None).value
    assert torch.allclose(values, attack.search.lowest)
    now, _ = attack.search.snapshot()
    last = attack.search.evaluated(attack.problem.evaluate, attack.solver.chunks, now, None, None).value
    assert float(last) > float(values)
    assert torch.equal(found.images, attack.problem.parametrization.images(best[0]).clamp(0, 1))


def test_restarts_hand_over_the_best(honest: Honest, inverted: Inverted) -> None:
    attack, (found,) = inverted(honest(), restarts=4, steps=5)
    lowest = attack.search.lowest
    images = attack.problem.parametrization.images(attack.search.best[lowest.argmin()])
    assert len(set(lowest.tolist())) == 4
    assert torch.equal(found.images, images.clamp(0, 1))


def test_nan_harms_only_its_own_candidate(honest: Honest, inverted: Inverted, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = GradientInversion.on_train_start

    def spoil(attack: GradientInversion) -> None:
        begin(attack)
        attack.search.dummies[0].data.fill_(math.nan)

    _, expected = inverted(honest(clients=2))
    monkeypatch.setattr(GradientInversion, "on_train_start", spoil)
    attack, found = inverted(honest(clients=2))
    assert attack.search.lowest.isfinite().tolist() == [False, True]
    assert torch.equal(found[1].images, expected[1].images)


# --- what the attack knows ---


def test_no_step_looks_for_gpus(honest: Honest, inverted: Inverted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Lightning's setting Adam would load the driver's library in every step."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    looks, look = list[int](), torch.cuda._device_count_nvml
    counts = []
    for steps in (2, 4):
        monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: looks.append(0) or look())
        inverted(honest(), steps=steps)
        counts.append(len(looks))
        looks.clear()
    assert counts[0] == counts[1]


def test_known_labels_are_an_oracle_and_others_are_not(honest: Honest, inverted: Inverted, tmp_path: Path) -> None:
    client = honest(clients=4, count=2, aggregated=2)
    told, found = inverted(client, labels="oracle", draws=1)
    assert told.oracles == ("labels",)
    for one in found:
        assert one.labels is not None
        assert torch.equal(one.labels, client.labels(one.client))
        assert len(one.labels) == len(one.images) == 4
    counted, _ = inverted(client, root=tmp_path / "counted")
    assert counted.oracles == ()


def test_a_replay_needs_the_exchange_alone(honest: Honest, inverted: Inverted, tmp_path: Path) -> None:
    settings: dict[str, Any] = OURS | {"labels": "oracle", "restarts": 2}
    _, live = inverted(honest("smooth", count=2, privacy=NOISY), root=tmp_path / "live", **settings)
    recorded = RecordedClient(tmp_path / "live" / "exchange")
    with pytest.raises(UserError) as raised:
        inverted(recorded, root=tmp_path / "refused", **settings)
    assert "--model.network" in raised.value.for_command_line
    _, again = inverted(recorded, root=tmp_path / "again", network=recorded.task.network, **settings)
    assert torch.equal(live[0].images, again[0].images)
    (tmp_path / "live" / "exchange" / "labels-c000.json").write_text('{"format": "labels 1", "labels": [0, 5]}')
    with pytest.raises(UserError, match="of classes 0 to 4"):
        inverted(recorded, root=tmp_path / "labels", network=recorded.task.network, **settings)


def test_half_precision_stays_finite_and_near(honest: Honest, inverted: Inverted, tmp_path: Path) -> None:
    _, full = inverted(honest("smooth", count=2, privacy=NOISY), **OURS)
    half, found = inverted(
        honest("smooth", count=2, privacy=NOISY), root=tmp_path / "half", trainer={"precision": "bf16-mixed"}, **OURS
    )
    assert half.search.best.isfinite().all()
    assert half.search.best.dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in half.observations[0, 0].update.values())
    assert not torch.equal(found[0].images, full[0].images)
    assert torch.allclose(found[0].images, full[0].images, atol=0.1)


# --- what it reconstructs ---


def photographs(count: int, size: int) -> Tensor:
    from lightning_recon.data import ClientDataModule, NoMasks

    data = ClientDataModule(image_size=size, batch_size=count, masks=NoMasks())
    data.prepare_data()
    data.setup()
    return data.client_batches[0].images


def preset(name: str) -> dict[str, Any]:
    """Settings of a shipped config, as objects."""
    from importlib import import_module

    import yaml

    content = yaml.safe_load((Path(__file__).parents[2] / "configs" / "attack" / f"{name}.yaml").read_text())
    own = content["model"]["init_args"]
    own["regularization"] = Regularization(**own.get("regularization", {}))
    path, given = own["optimizer"]["class_path"], own["optimizer"].get("init_args", {})
    module, _, attribute = path.rpartition(".")
    kind = getattr(import_module(module), attribute)
    own["optimizer"] = lambda params: kind(params, **given)
    return own


@pytest.mark.parametrize(("noise", "steps"), [(0.0, 150), (1.0, 60)])
def test_the_likelihood_sees_what_there_is_to_see(noise: float, steps: int, honest: Honest, inverted: Inverted) -> None:
    client = honest("convnet", size=24, privacy=Privacy(max_grad_norm=10.0, noise_multiplier=noise))
    client._batches[0].images.copy_(photographs(1, 24))
    attack, (found,) = inverted(client, steps=steps, **preset("likelihood"))
    truth = client._batches[0].images
    reached, mean = (float(psnr_per_image(one, truth)) for one in (found.images, found.initial))
    if noise == 0:
        assert reached > 25
        assert reached > mean + 10
    else:
        assert abs(reached - mean) < 0.5
        assert float((found.images - attack.mean_image).abs().max()) < 0.1


# --- the discrepancy principle ---


def test_a_candidate_that_reached_the_noise_level_is_frozen(
    honest: Honest, inverted: Inverted, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = "lightning_recon.attack.inversion.solver.explained"
    settings = OURS | {"discrepancy": True}
    monkeypatch.setattr(first, lambda residuals, task, numbers: torch.tensor([True, False]))
    client = honest(clients=2, privacy=NOISY)
    resting, _ = inverted(client, **settings)
    start, _ = inverted(client, steps=0, **settings)
    stayed, moved = (
        torch.equal(now, before) for now, before in zip(resting.search.dummies, start.search.dummies, strict=True)
    )
    assert stayed
    assert not moved
