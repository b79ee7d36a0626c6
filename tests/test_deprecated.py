# SPDX-License-Identifier: Apache-2.0
"""Names of the previous release still work, each with one warning that gives the name that replaced it."""

import importlib
import inspect
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lightning_recon import client, deprecated, structure
from lightning_recon.cli import main
from lightning_recon.command_line.config_files import with_current_names
from lightning_recon.command_line.replay_config import is_allowed
from lightning_recon.deprecated import (
    CLASS_PATHS,
    EARLIER_BEHAVIOUR,
    KEYS,
    VALUES,
    modernized,
    modernized_arguments,
    modernized_option,
    with_earlier_behaviour,
)

Fit = Callable[..., dict[str, Any]]
RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture(autouse=True)
def nothing_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecated, "_reported", set())


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deprecated names that no release has."""
    monkeypatch.setattr(
        deprecated, "KEYS", {"VictimClient": {"old_seed": "seed"}, "comparison": {"old_times": "times"}}
    )
    monkeypatch.setattr(deprecated, "VALUES", {"VictimClient": {"batch_norm": {"frozen": "eval"}}})


@pytest.mark.usefixtures("names")
def test_keys_values_and_class_paths_of_a_config(caplog: pytest.LogCaptureFixture) -> None:
    arguments = {"old_seed": 3, "batch_norm": "frozen", "privacy": {"old_seed": 1}}
    old = {
        "model": {
            "client": {"class_path": "lightning_recon.victim.VictimClient", "init_args": arguments},
            "optimizer": "lightning_recon.attack.reconstruction.whole_way",
        },
        "comparison": {"old_times": [{"old_times": 1}]},
        "trainer": {"old_seed": 2},
    }
    with caplog.at_level(logging.WARNING, "lightning_recon"):
        new = modernized([old, old])[1]
    assert new == {
        "model": {
            "client": {
                "class_path": "lightning_recon.client.VictimClient",
                # `privacy` is no section of the client's own options: its keys are its own.
                "init_args": {"seed": 3, "batch_norm": "eval", "privacy": {"old_seed": 1}},
            },
            "optimizer": "lightning_recon.attack.malicious_server.whole_way",
        },
        "comparison": {"times": [{"old_times": 1}]},
        "trainer": {"old_seed": 2},
    }
    assert len(caplog.messages) == 5  # once for each name, however often it stands there
    assert all("is deprecated" in line and "write " in line for line in caplog.messages)


@pytest.mark.usefixtures("names")
def test_options_of_a_command_line() -> None:
    assert modernized_arguments(["--model.structure", "TrapWeights"])[1] == "CuriousAbandonHonesty"
    old = ["fit", "--model.client.old_seed", "3", "--model.client.batch_norm=frozen", "--optimizer", "QuasiNewton"]
    new = ["fit", "--model.client.seed", "3", "--model.client.batch_norm=eval", "--optimizer", "BatchedLBFGS"]
    assert modernized_arguments(old) == new
    assert modernized_arguments(new) == new
    others = ["--data.old_seed", "3", "--data.root", "QuasiNewton"]  # options of other classes, a folder's name
    assert modernized_arguments(others) == others


@pytest.mark.parametrize("path", sorted(set(CLASS_PATHS.values())))
def test_every_new_path_is_there(path: str) -> None:
    assert is_allowed(path)


def test_no_deprecated_key_is_an_option_again() -> None:
    current = {new for keys in KEYS.values() for new in keys.values()}
    assert not current & {old for keys in KEYS.values() for old in keys}
    for owner, values in VALUES.items():
        for key, words in values.items():
            assert not set(words) & set(words.values()), f"{owner}.{key}"


def test_the_module_of_old_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lightning_recon.victim", raising=False)
    with pytest.warns(FutureWarning, match=r"lightning_recon\.client"):
        module = importlib.import_module("lightning_recon.victim")
    assert module.VictimClient is client.VictimClient


def test_a_config_with_old_names_is_run(tiny: str, fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    client = {"class_path": "lightning_recon.victim.VictimClient", "init_args": {"batch_norm": "eval"}}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"client": client}}}))
    with caplog.at_level(logging.WARNING, "lightning_recon"):
        fit(tmp_path / "run", "--config", str(tmp_path / "old.yaml"), "--trainer.max_steps", "0")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    found = config["model"]["init_args"]["client"]
    assert (found["class_path"], found["init_args"]["batch_norm"]) == ("lightning_recon.client.VictimClient", "eval")
    assert [line for line in caplog.messages if "victim.VictimClient" in line]


@pytest.mark.parametrize("run", sorted(path.name for path in RECORDED.iterdir()))
def test_a_run_recorded_by_the_previous_release_is_replayed(
    run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(RECORDED / run, tmp_path / "run")
    with caplog.at_level(logging.WARNING, "lightning_recon"):
        main(["replay", str(tmp_path / "run"), "--output", str(tmp_path / "again")])
    found, recorded = (load_file(tmp_path / one / "reconstructions.safetensors") for one in ("again", "run"))
    assert found.keys() == recorded.keys()
    for name, images in found.items():  # the denoiser's convolutions round otherwise than in that release
        torch.testing.assert_close(images, recorded[name], rtol=0, atol=1e-5)
    assert any("is deprecated" in line for line in caplog.messages)


def test_a_recorded_peer_keeps_what_it_was_before_it_had_further_options() -> None:
    recorded = {"class_path": "lightning_recon.structure.RobbingTheFed", "init_args": {"units": 8}}
    found = with_earlier_behaviour(recorded)
    assert found["init_args"] == {"units": 8, "variant": "cumulative", "fallback": False}
    now = {**recorded, "init_args": {"variant": "sparse", "fallback": True}}
    assert with_earlier_behaviour(now) == now
    for other in ({"class_path": "mine.RobbingTheFed"}, {"class_path": "lightning_recon.structure.Digital"}, None):
        assert with_earlier_behaviour(other) == other
    for name, former in EARLIER_BEHAVIOUR.items():
        assert former.keys() <= inspect.signature(getattr(structure, name)).parameters.keys()


def test_keys_of_an_audit() -> None:
    old = {
        "attacks": {"changes": {"least_rounds": 2, "most_noise": 0.1}},
        "changes": {"records": {"noise_times": 2.0, "batch_times": 4}},
        "records": 5,
    }
    new = {
        "attacks": {"changes": {"min_rounds": 2, "max_noise_multiplier": 0.1}},
        "interventions": {"records": {"noise_factor": 2.0, "batch_factor": 4}},
        "population_size": 5,
    }
    assert modernized({"audit": old}) == {"audit": new}
    assert modernized({"comparison": {"noise_times": 5}}) == {"comparison": {"noise_factor": 5}}
    assert modernized_arguments(["audit", "--audit.records", "5"]) == ["audit", "--audit.population_size", "5"]
    assert modernized_option("--records=5", "records", "population_size") == "--population_size=5"


def test_every_part_of_an_audits_option() -> None:
    old = ["audit", "--audit.changes.x.noise_times", "2", "--audit.attacks.changes.least_rounds=3"]
    new = ["audit", "--audit.interventions.x.noise_factor", "2", "--audit.attacks.changes.min_rounds=3"]
    assert modernized_arguments(old) == new
    assert modernized_arguments(new) == new
    named = ["audit", "--audit.interventions.records.cost", "records"]  # names and values that the user chose
    assert modernized_arguments(named) == named


def test_mappings_on_the_command_line() -> None:
    structure = {"class_path": "lightning_recon.structure.WaterFilling", "init_args": {"voices": "fixed"}}
    config = json.dumps({"model": {"init_args": {"structure": structure}}, "comparison": {"noise_times": 5}})
    typed = modernized_arguments(["fit", "--config", config, f"--model.structure={json.dumps(structure)}"])
    structure["init_args"] = {"head_weights": "fixed"}
    assert json.loads(typed[2]) == {
        "model": {"init_args": {"structure": structure}},
        "comparison": {"noise_factor": 5},
    }
    assert json.loads(typed[3].removeprefix("--model.structure=")) == structure
    mapping = '{"x": {"noise_times": 2}}'
    assert json.loads(modernized_arguments(["--audit.interventions", mapping])[1]) == {"x": {"noise_factor": 2}}
    others = ["--output", mapping, "--audit.interventions", '{"noise_times": {"cost": "x"}}', "--config", "{broken"]
    assert modernized_arguments(others) == others


@pytest.mark.parametrize("given", ["option", "config", "inline"])
def test_options_of_other_classes_keep_their_names(given: str, tmp_path: Path) -> None:
    """An own attack and an own structure may have options named `start` and `force`; a library's class as well."""
    own = {"class_path": "mine.Attack", "init_args": {"start": 1, "structure": {"class_path": "mine.WaterFilling"}}}
    own["init_args"]["regularization"] = {"consensus": 1}
    if given == "option":
        classes = ["--model", "mine.Attack", "--model.structure=mine.WaterFilling"]
    else:
        text = json.dumps({"model": own})
        (tmp_path / "own.yaml").write_text(text)
        classes = ["--config", str(tmp_path / "own.yaml") if given == "config" else text]
    (tmp_path / "overlay.yaml").write_text(json.dumps({"model": {"init_args": {"start": 2}}}))
    flags = ["--model.start", "0", "--model.structure.force", "full", "--model.penalties.consensus", "1"]
    typed = ["fit", *classes, "--config", str(tmp_path / "overlay.yaml"), *flags]
    assert with_current_names(typed) == typed
    assert modernized({"model": own}) == {"model": own}


def test_options_of_this_package_have_their_new_names_beside_others(tmp_path: Path) -> None:
    classes = ["--model", "GradientInversion", "--model.optimizer", "torch.optim.Adam"]
    (tmp_path / "overlay.yaml").write_text(json.dumps({"model": {"init_args": {"start": "mean"}}}))
    flags = ["--model.start", "mean", "--model.penalties.consensus", "1", "--model.optimizer.force", "1"]
    found = with_current_names(["fit", *classes, "--config", str(tmp_path / "overlay.yaml"), *flags])
    assert json.loads(found[6]) == {"model": {"init_args": {"init": "mean"}}}
    assert found[7:] == [
        *("--model.init", "mean", "--model.regularization.group_consistency", "1", "--model.optimizer.force", "1")
    ]


def test_local_steps_of_earlier_versions_are_local_training_whose_gradients_are_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3}}
    path = "lightning_recon.client.VictimClient"
    old = {"class_path": path, "init_args": {"local_steps": 4, "local_rate": 0.3, "local_epochs": 2, "seed": 1}}
    local = {"steps": 4, "epochs": 2, "optimizer": sgd, "update": "gradient"}
    with caplog.at_level(logging.WARNING, "lightning_recon"):
        new = modernized({"model": {"client": old}})["model"]["client"]
    assert new == {"class_path": path, "init_args": {"seed": 1, "local": local}}
    assert len(caplog.messages) == 3
    assert "local_steps is deprecated and will be removed in the next release: write local.steps" in caplog.messages[0]

    words = ["--model.client.local_steps", "4", "--model.client.local_lr=0.3", "--model.client.seed", "1"]
    assert modernized_arguments(words) == [
        "--model.client.local.steps=4",
        "--model.client.local.update=gradient",
        f"--model.client.local.optimizer={json.dumps(sgd)}",
        "--model.client.local.update=gradient",
        "--model.client.seed",
        "1",
    ]
    own = ["--model.client", "mine.Client", "--model.client.local_steps", "4"]
    assert modernized_arguments(own) == own
