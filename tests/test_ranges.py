# SPDX-License-Identifier: Apache-2.0
"""No number of a config may be NaN, infinite or absurd: every class that a config reaches refuses it by name."""

import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lightning_recon import attack, callbacks, client, data, structure
from lightning_recon.attack.inversion import batched_lbfgs
from lightning_recon.audit import config
from lightning_recon.errors import UserError
from lightning_recon.priors import regularizers
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.verification.claims import Claims

Fit = Callable[..., dict[str, Any]]
MODULES = (attack, callbacks, data, structure, client, regularizers, batched_lbfgs, config)
# What some of them cannot be built without.
NEEDED: dict[str, dict[str, Any]] = {
    "ReconstructionAttack": {"client": object(), "structure": object()},
    "GradientInversion": {"client": object()},
    "Comparison": {"structure": object()},
    "BatchedLBFGS": {"params": [torch.nn.Parameter(torch.zeros(1))]},
    "DatasetClients": {"dataset": "MNIST"},
    "Training": {"images": 4, "epochs": 1},
    "Sweep": {"attacks": {"a": config.AuditedAttack()}, "noise_multiplier": [0.1]},
}
NO_RANGE = {"value_range"}  # any two numbers, the lower one first: see test_image_formats.py
NO_OPTIONS = {"Release", "Decoded", "LayerSpec", "Reconstruction"}  # reached by no config


def numbers() -> Iterator[tuple[type, str, bool]]:
    """Every numeric argument of every class: the class, the name, and whether it is a list of numbers."""
    for module in MODULES:
        for name, found in vars(module).items():
            own = inspect.isclass(found) and found.__module__.startswith("lightning_recon")
            if (
                not own
                or name.startswith("_")
                or name in NO_OPTIONS
                or inspect.isabstract(found)
                or issubclass(found, Exception)
            ):
                continue
            for parameter in inspect.signature(found).parameters.values():
                annotation = str(parameter.annotation).replace("<class '", "").replace("'>", "")
                plain = re.fullmatch(r"(list\[)?(int|float)\]?( \| None)?", annotation)
                if plain and parameter.name not in NO_RANGE:
                    yield found, parameter.name, plain[1] is not None


FOUND = sorted(set(numbers()), key=str)


def test_the_walk_finds_what_configs_name() -> None:
    assert {"Privacy", "VictimClient", "Digital", "Regularization", "ClientDataModule"} <= {
        one.__name__ for one, _, _ in FOUND
    }
    assert len(FOUND) > 60


@pytest.mark.parametrize(("built", "name", "listed"), FOUND, ids=lambda part: getattr(part, "__name__", str(part)))
def test_absurd_numbers_are_refused_by_name(built: type, name: str, listed: bool) -> None:
    for value in (math.nan, math.inf, -math.inf, -1, 1e308):
        given = NEEDED.get(built.__name__, {}) | {name: [value] if listed else value}
        if name == "epsilon":
            given["noise_multiplier"] = None
        if name == "max_grad_norm" and value == math.inf:
            assert built(**given).max_grad_norm is None  # which is what it means
            continue
        with pytest.raises(UserError, match=f"{name} is {re.escape(str(value))}: give "):
            built(**given)


@pytest.mark.parametrize(("name", "value"), [("granularity", "Sample"), ("adjacency", "remove"), ("adjacency", None)])
def test_words_that_are_no_choice_are_refused(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{name} is {value!r}: ") as raised:
        Privacy(**{name: value})  # type: ignore[arg-type]
    assert f"--model.client.privacy.{name} is {value!r}: " in raised.value.for_command_line


@pytest.mark.parametrize(
    ("name", "value"),
    [("released", "gradient"), ("loss_reduction", "x"), ("noise_share", "full")],
)
def test_claims_that_are_no_choice_are_refused(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{name} is {value!r}: ") as raised:
        Claims(Privacy(1.0, 1.0), **{name: value})  # type: ignore[arg-type]
    assert f"--verify.claims.{name} is {value!r}: " in raised.value.for_command_line


@pytest.mark.parametrize(
    ("name", "value"),
    [("rounds", 1.5), ("rounds", "2"), ("max_grad_norm", "a"), ("delta", [0.1])],
)
def test_fractions_and_other_types_are_refused(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{name} is {re.escape(repr(value))}: give "):
        Privacy(**{name: value})  # type: ignore[arg-type]


def test_integers_of_numpy_are_whole_numbers() -> None:
    assert Privacy(rounds=int(np.int64(2))) == Privacy(rounds=np.int64(2))  # type: ignore[arg-type]
