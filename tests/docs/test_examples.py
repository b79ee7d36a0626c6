# SPDX-License-Identifier: Apache-2.0
"""The examples of the gallery run as their docstrings say, do what they say, and are short."""

import ast
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kurtosis
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from lightning_recon.cli import main
from lightning_recon.exchange import Task
from lightning_recon.structure import WaterFilling

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
# Small enough for a second: added to what the page says.
TINY = (
    "--data.image_size 24 --data.masks lightning_recon.data.NoMasks --model.client.network convnet "
    "--comparison.structure null --comparison.noise_factor null --trainer.accelerator cpu --results.show false "
    "--model.client.noise_seed 0"
)


def typed(example: str) -> list[str]:
    """What the docstring of an example says to type, without the program."""
    docstring = ast.get_docstring(ast.parse((DOCS / "examples" / f"{example}.py").read_text(encoding="utf-8"))) or ""
    (command,) = (line for line in docstring.splitlines() if line.startswith("    "))
    program, *arguments = shlex.split(command)
    assert program == "recon"
    return arguments


def read(path: Path) -> Tensor:
    """Picture from a file, shape (3, H, W), values in [0, 1]."""
    with Image.open(path) as picture:
        pixels: Tensor = pil_to_tensor(picture)
    return pixels.float() / 255


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - a function
    monkeypatch.syspath_prepend(str(DOCS / "examples"))

    def of(arguments: list[str], flags: str, name: str = "run") -> tuple[dict[str, Any], Path]:
        root = tmp_path / name
        main([*arguments, *shlex.split(TINY), *shlex.split(flags), "--trainer.default_root_dir", str(root)])
        return json.loads((root / "results.json").read_text()), root

    return of


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short_and_tested(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 50
    assert typed(path.stem)
    assert f'typed("{path.stem}")' in Path(__file__).read_text()


def test_an_encoder_gives_luminance_more_of_the_same_power(run: Any) -> None:  # noqa: ANN401
    record, root = run(typed("luminance_first"), "--model.client.privacy.noise_multiplier 0.003 --trainer.max_steps 0")
    assert record["attack"] == "luminance_first"
    assert record["summary"]["detected"] == 8
    assert record["summary"]["psnr_mean"] > record["baselines"]["mean_image_psnr"] + 10

    from luminance_first import LuminanceFirst  # the fixture made it importable

    shares, task = [], Task.load(root / "exchange")
    for structure in (WaterFilling(subjects=True), LuminanceFirst(subjects=True)):
        shipped = structure.payload(task).tensors
        power = shipped["gain"] ** 2 * structure.statistics(task).variance.flatten()[shipped["index"]]
        assert float(power.sum()) == pytest.approx(1 - structure.pilot_power, rel=1e-4)
        shares.append(float(power[shipped["index"] < 24 * 24].sum() / power.sum()))
        measured = shipped["directions"] * shipped["gain"]
    assert shares[0] + 0.05 < shares[1] < 1
    # What units measure is what they measured before: else intervals would be filled unevenly.
    usual = WaterFilling(subjects=True).payload(task).tensors
    torch.testing.assert_close(measured, usual["directions"] * usual["gain"])


def test_an_attack_without_a_prior_scores_the_noise_law(run: Any) -> None:  # noqa: ANN401
    flags = "--model.client.privacy.noise_multiplier 0.003 --data.clients 4 --model.draws 2"
    record, _ = run(typed("plain_pixels"), flags)
    assert (record["attack"], record["summary"]["detected"]) == ("plain_pixels", 4)
    # The pilot takes a share of the budget, and clamping gives some back.
    assert abs(record["summary"]["psnr_of_mean_mse"] - record["bounds"]["noise_law_psnr"]) < 0.5


def test_a_prior_refines(run: Any) -> None:  # noqa: ANN401
    record, _ = run(typed("bilateral"), "--model.client.privacy.noise_multiplier 0.003")
    initial = sum(victim["psnr_initial"] for victim in record["victims"]) / len(record["victims"])
    assert record["summary"]["steps"] == 6
    assert record["summary"]["psnr_mean"] > initial + 0.2


def test_a_data_source_is_attacked(run: Any) -> None:  # noqa: ANN401
    record, root = run(typed("digits"), "--data.batch_size 2")
    names = [victim["name"] for victim in json.loads((root / "truth" / "index.json").read_text())["victims"]]
    assert len(set(names)) == 2
    assert all(0 <= int(name) < 1797 for name in names)
    truth = read(root / "truth" / "000-used.png")
    assert bool((truth == truth[:1]).all())
    assert float(truth.std()) > 0.1
    assert record["summary"]["psnr_mean"] > record["baselines"]["mean_image_psnr"] + 10


def test_a_mechanism_is_drawn_from_accounted_and_attacked(run: Any) -> None:  # noqa: ANN401
    record, root = run(typed("logistic"), "--model.client.privacy.noise_multiplier 1e-5 --data.clients 2")
    privacy, bounds = record["privacy"], record["bounds"]
    assert (privacy["mechanism"], privacy["accountant"]) == ("logistic.Logistic", "pure composition")
    assert privacy["epsilon_by_adjacency"] == {"add_remove": pytest.approx(1e5), "replace_one": pytest.approx(2e5)}
    assert [bounds[name] for name in ("channel_nats", "noise_law_psnr", "unbiased_psnr")] == [None, None, None]
    assert record["summary"]["psnr_mean"] > record["baselines"]["mean_image_psnr"] + 10
    main(["replay", str(root), "--output", str(root.parent / "replayed"), "--trust_config", "true"])
    with pytest.raises(SystemExit):  # a recorded run must not import code unasked
        main(["replay", str(root), "--output", str(root.parent / "again")])

    from logistic import Logistic  # the fixture made it importable

    noise = Logistic().sample(200_000, np.random.default_rng(0))
    assert float(noise.std()) == pytest.approx(Logistic.noise_std, rel=0.01)
    assert kurtosis(noise.numpy()) == pytest.approx(Logistic.excess_kurtosis, abs=0.1)
    reference = torch.distributions.TransformedDistribution(
        torch.distributions.Uniform(torch.tensor(0.0, dtype=torch.float64), 1.0),
        [torch.distributions.SigmoidTransform().inv],
    )
    difference = Logistic().log_likelihood(noise[:100]) - reference.log_prob(noise[:100])
    assert float(difference.std()) < 1e-9
