# SPDX-License-Identifier: Apache-2.0
"""Compilation is chosen where it pays, and a compiler that fails does not end a search."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_recon.api.presets import inversion_preset
from lightning_recon.attack.inversion import compilation
from lightning_recon.attack.inversion.compilation import LONG, CompiledObjective, compilation_pays
from lightning_recon.attack.inversion.objective import Candidates, Evaluated
from lightning_recon.attack.inversion.problem import InverseProblem
from lightning_recon.client import VictimClient
from lightning_recon.priors.image_statistics import public_statistics
from lightning_recon.priors.regularizers import Regularization
from tests.attack.test_objective_evaluation import guesses, objective, parts
from tests.local_sgd import local_sgd

Honest = Callable[..., VictimClient]
CPU = torch.device("cpu")
SETTINGS, _ = inversion_preset("inverting_gradients")


@pytest.fixture
def checked_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's front end alone: its back end for CPUs takes a minute."""
    original = torch.compile
    monkeypatch.setattr(compilation.torch, "compile", lambda one: original(one, backend="aot_eager"))


def test_auto_compiles_long_searches_of_small_networks_only(honest: Honest) -> None:
    task = honest("perceptron").task
    assert compilation_pays(SETTINGS, task, LONG, CPU, small=True)
    assert not compilation_pays(SETTINGS, task, LONG - 1, CPU, small=True)
    assert not compilation_pays(SETTINGS, task, -1, CPU, small=True)
    assert not compilation_pays(SETTINGS, task, LONG, CPU, small=False)
    assert not compilation_pays(SETTINGS, task, LONG, torch.device("cuda"), small=True)
    inside = replace(SETTINGS, regularization=Regularization(batch_norm=0.1))
    assert not compilation_pays(inside, task, LONG, CPU, small=True)
    local = honest("perceptron", count=2, local=local_sgd(2)).task
    assert not compilation_pays(SETTINGS, local, LONG, CPU, small=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert not compilation_pays(SETTINGS, task, LONG, CPU, small=True)


@pytest.mark.parametrize(
    ("chosen", "steps", "compiled"),
    [("auto", LONG, True), ("auto", 300, False), ("auto", 0, False), (True, 300, True), (False, LONG, False)],
)
def test_the_option_decides(chosen: Any, steps: int, compiled: bool, honest: Honest) -> None:  # noqa: ANN401
    client = honest("perceptron")
    settings = replace(SETTINGS, compile=chosen, labels="oracle")
    problem = InverseProblem(client.network, client.task, public_statistics(8, 8, False, None), settings, CPU, steps)
    assert isinstance(problem._evaluate, CompiledObjective) == compiled


@pytest.mark.usefixtures("checked_compiler")
def test_the_compiled_objective_equals_the_plain_one(honest: Honest) -> None:
    client = honest("perceptron")
    evaluate, many = objective(client, Regularization(total_variation=0.2)), guesses(client, 3)
    for ours, plain in zip(parts(CompiledObjective(evaluate, required=True)(many)), parts(evaluate(many)), strict=True):
        assert torch.allclose(ours, plain, rtol=1e-4, atol=1e-6)


def failing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the compiler fail; the list grows by every attempt."""
    attempts: list[int] = []

    def compile(_: object) -> Callable[[Candidates], Evaluated]:
        def attempt(_: Candidates) -> Evaluated:
            attempts.append(1)
            raise RuntimeError("no C++\ncompiler")

        return attempt

    monkeypatch.setattr(compilation.torch, "compile", compile)
    return attempts


def test_without_a_compiler_the_search_goes_on(
    honest: Honest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts, client = failing(monkeypatch), honest("perceptron")
    evaluate, many = objective(client), guesses(client, 1)
    compiled = CompiledObjective(evaluate, required=False)
    with caplog.at_level(logging.WARNING):
        found = [compiled(many) for _ in range(3)]
    assert len(attempts) == 1
    assert [one.getMessage() for one in caplog.records] == [
        "torch.compile failed, and the search goes on uncompiled: RuntimeError: no C++ compiler"
    ]
    for one in found:
        assert all(map(torch.equal, parts(one), parts(evaluate(many))))


def test_compilation_that_was_asked_for_fails_loudly(honest: Honest, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch)
    client = honest("perceptron")
    with pytest.raises(RuntimeError, match="compiler"):
        CompiledObjective(objective(client), required=True)(guesses(client, 1))
