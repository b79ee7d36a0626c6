# SPDX-License-Identifier: Apache-2.0
"""From everything in a run folder nobody can regenerate the noise; resumed runs have their noise all the same."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_recon.cli import main
from lightning_recon.client.noise import add_noise
from lightning_recon.client.noise_key import NoiseKey, key_file
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.exchange import ClientUpdate, update_name
from lightning_recon.rng import generator_for

Fit = Callable[..., dict[str, Any]]
SECRET = ["--config", '{"model": {"init_args": {"client": {"init_args": {"noise_seed": null}}}}}']
# All rows are recorded if there are several rounds.
ROUNDS = ["--model.client.privacy.rounds", "2", "--trainer.max_steps", "2"]
HARDER = ["--comparison.noise_factor", "5"]


def keys() -> Path:
    return Path(os.environ["LIGHTNING_RECON_NOISE_KEYS"])


@pytest.fixture(scope="module")
def drawn() -> Iterator[list[NoiseKey]]:
    """Every secret key that is drawn."""
    found: list[NoiseKey] = []
    fresh = NoiseKey.fresh

    def remembered() -> NoiseKey:
        found.append(fresh())
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NoiseKey, "fresh", remembered)
        yield found


@pytest.fixture(scope="module")
def secret(fit: Fit, tmp_path_factory: pytest.TempPathFactory, drawn: list[NoiseKey]) -> Path:
    root = tmp_path_factory.mktemp("secret") / "run"
    fit(root, *SECRET, *ROUNDS, *HARDER)
    return root


@pytest.fixture(scope="module")
def reproducible(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reproducible") / "run"
    fit(root, "--model.client.noise_seed", "17", *ROUNDS)
    return root


def always_zero(root: Path) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A recorded tensor, and where its gradient is exactly zero: units that no image of the batch activates.

    A server knows such places. This test finds them as those at which both rounds hold nothing but noise.
    """
    first, second = (ClientUpdate.load(root / "exchange", update_name(0, 0, n)).gradient for n in range(2))
    weight, again = first["structure.weight"], second["structure.weight"]
    scale = 10.0 * 0.01
    inert = ((weight.abs().amax(1) < 6 * scale) & (again.abs().amax(1) < 6 * scale)).nonzero().flatten()
    assert len(inert) > 3
    return weight, inert, scale


def found_seeds(root: Path, seeds: range) -> list[int]:
    """Seeds whose noise is that of the recording, by today's stream and by that of earlier versions."""
    weight, inert, scale = always_zero(root)
    found = []
    for seed in seeds:
        streams = [
            add_noise({"structure.weight": torch.zeros_like(weight)}, scale, NoiseSource(seed).generators(0, 0, 0))
        ]
        old = torch.randn(weight.numel(), generator=generator_for("noise", seed, 0, 0, 0)).view_as(weight) * scale
        for noise in (streams[0]["structure.weight"], old):
            left = weight[inert] - noise[inert]
            if float(left.std()) < 0.5 * scale:
                found.append(seed)
    return found


def test_small_seeds_do_not_give_secret_noise(secret: Path, reproducible: Path) -> None:
    assert found_seeds(secret, range(100)) == []
    assert found_seeds(reproducible, range(30)) == [17]  # the same search finds noise that a seed gives


def test_numbers_of_the_run_folder_do_not_give_secret_noise(secret: Path, drawn: list[NoiseKey]) -> None:
    state = torch.load(secret / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["NoiseSource"]
    (used,) = [key for key in drawn if key.identifier == state["key"]]
    weight, inert, scale = always_zero(secret)

    def unexplained(key: NoiseKey) -> float:
        noise = torch.zeros_like(weight)
        add_noise({"": noise}, scale, lambda name: key.generator("noise", 0, 0, 0, "structure.weight"))
        return float((weight[inert] - noise[inert]).std()) / scale

    assert unexplained(used) < 0.1
    assert unexplained(NoiseKey(bytes.fromhex(state["key"]))) > 1
    assert unexplained(NoiseKey(state["key"].encode())) > 1


def test_the_key_is_nowhere_in_the_run_folder(secret: Path, drawn: list[NoiseKey]) -> None:
    files = [path for path in secret.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        for key in drawn:
            spelled = (
                key.secret,
                key.secret.hex().encode(),
                key.secret.hex().upper().encode(),
                repr(key.secret).encode(),
            )
            assert not any(one in content for one in spelled), path


def test_the_record_says_where_the_noise_came_from(
    secret: Path, reproducible: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for root, public in ((secret, False), (reproducible, True)):
        assert json.loads((root / "results.json").read_text())["privacy"]["reproducible_noise"] is public
        update = ClientUpdate.load(root / "exchange", update_name(0, 0, 1))
        assert update.reproducible_noise is public
    for flags, lines in (([], 1), (SECRET, 0), (["--model.client.privacy.noise_multiplier", "0"], 0)):
        capsys.readouterr()
        fit(tmp_path, *flags, "--trainer.max_steps", "0", "--overwrite")
        assert capsys.readouterr().out.count("the noise is reproducible (--model.client.noise_seed 0)") == lines


def test_a_finished_attack_leaves_no_key(secret: Path, drawn: list[NoiseKey]) -> None:
    assert not [key for key in drawn if key_file(keys(), key.identifier).exists()]


def test_two_runs_of_one_config_have_other_noise(secret: Path, fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path, *SECRET, *ROUNDS)
    one, other = (ClientUpdate.load(root / "exchange", update_name(0, 0, 0)).gradient for root in (secret, tmp_path))
    assert not torch.equal(one["structure.weight"], other["structure.weight"])


def test_replaying_and_scoring_again_need_no_key(secret: Path, tiny: str, tmp_path: Path) -> None:
    main(["replay", str(secret), "--output", str(tmp_path / "again")])
    name = "reconstructions.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (secret / name).read_bytes()
    copy = tmp_path / "copy"
    shutil.copytree(secret, copy)
    main(["test", "--config", tiny, "--trainer.default_root_dir", str(copy), *ROUNDS])  # with a seed now
    assert json.loads((copy / "results.json").read_text())["privacy"]["reproducible_noise"] is False


@pytest.mark.slow
def test_a_killed_attack_is_resumed_with_its_key(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key, flags = NoiseKey.from_seed(5).secret, [*SECRET, *HARDER]
    with monkeypatch.context() as patch:
        patch.setattr(NoiseKey, "fresh", lambda: NoiseKey(key))
        fit(tmp_path / "whole", *flags, "--trainer.max_steps", "4")
        patch.setattr(NoiseSource, "teardown", lambda *arguments, stage: None)
        fit(tmp_path / "killed", *flags, "--trainer.max_steps", "2")
    (tmp_path / "killed" / "comparison.png").unlink()
    shutil.copytree(tmp_path / "killed", tmp_path / "without")

    fit(tmp_path / "killed", *flags, "--trainer.max_steps", "4", "--ckpt_path", "last")
    for name in ("reconstructions.safetensors", "comparison.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    capsys.readouterr()  # that run has deleted the key
    fit(tmp_path / "without", *flags, "--trainer.max_steps", "4", "--ckpt_path", "last")
    assert "no attack under more noise: the run drew its noise with the key" in capsys.readouterr().out
    name = "reconstructions.safetensors"
    assert (tmp_path / "without" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_checkpoint_of_an_earlier_version_is_resumed(finished: Path, fit: Fit, tmp_path: Path) -> None:
    from lightning_recon.files.checkpoints import DIGEST, content_digest

    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["callbacks"]["NoiseSource"]
    torch.save(checkpoint | {DIGEST: content_digest(checkpoint)}, path)
    record = fit(tmp_path / "run", *SECRET, "--ckpt_path", "last", "--trainer.max_steps", "6")
    assert record["summary"]["steps"] == 6
