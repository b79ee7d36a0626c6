# SPDX-License-Identifier: Apache-2.0
"""The exact privacy of Flower's LocalDpMod, against a table of exact epsilons, and its warnings."""

import math
import sys
from importlib import import_module

import pytest

from lightning_recon.capture.flower_ldp import declared_privacy
from lightning_recon.errors import UserError

FORMULA = math.sqrt(2 * math.log(1.25e5))  # of LocalDpMod, at delta = 1e-5
# Noise multiplier by exact epsilon, delta = 1e-5, add/remove.
EXACT = {1: 3.73, 2: 1.99, 4: 1.08, 8: 0.600, 16: 0.344, 32: 0.205}


@pytest.mark.parametrize(("epsilon", "z"), EXACT.items())
def test_exact_epsilon_of_a_declaration(epsilon: float, z: float) -> None:
    privacy = declared_privacy(clipping_norm=3.0, sensitivity=3.0, epsilon=FORMULA / z, delta=1e-5)
    assert privacy.noise_multiplier == pytest.approx(z)
    assert privacy.noise_std == pytest.approx(3 * z)
    assert privacy.epsilon_round["add_remove"] == pytest.approx(epsilon, rel=6e-3)
    # Twice the sensitivity is what local privacy needs: with it, replacing costs what adding cost.
    twice = declared_privacy(3.0, 6.0, FORMULA / z, 1e-5)
    assert twice.epsilon_round["replace_one"] == privacy.epsilon_round["add_remove"]


def test_a_hundred_rounds_are_one_with_a_tenth_of_the_noise() -> None:
    many = declared_privacy(1.0, 2.0, 5.0, 1e-5, rounds=100)
    one = declared_privacy(1.0, 2.0, 50.0, 1e-5)
    assert many.epsilon_rounds == pytest.approx(one.epsilon_round)
    assert many.epsilon_round == declared_privacy(1.0, 2.0, 5.0, 1e-5).epsilon_rounds


@pytest.mark.parametrize(
    ("sensitivity", "epsilon", "remarks"),
    [
        (2.0, 0.5, []),
        (1.0, 0.5, ["needs sensitivity 2, not 1"]),
        (0.1, 0.5, ["10 times too small", "needs sensitivity 2, not 0.1"]),
        (3.0, 0.5, ["more noise than the declared epsilon needs"]),
        (0.0, 0.5, ["no noise at all"]),
        (2.0, 50.0, ["proved for epsilon below 1: declared 50, its noise gives 96.43"]),
    ],
)
def test_remarks(sensitivity: float, epsilon: float, remarks: list[str]) -> None:
    privacy = declared_privacy(1.0, sensitivity, epsilon, 1e-5)
    assert len(privacy.remarks) == len(remarks)
    assert all(part in remark for part, remark in zip(remarks, privacy.remarks, strict=True))
    assert all(remark in str(privacy) for remark in privacy.remarks)


def test_no_noise_has_no_finite_epsilon() -> None:
    privacy = declared_privacy(1.0, 0.0, 0.5, 1e-5)
    assert set(privacy.epsilon_rounds.values()) == {None}
    assert "add_remove: no finite epsilon" in str(privacy)


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ((0.0, 1.0, 1.0, 1e-5), "clipping_norm is 0.0"),
        ((1.0, -1.0, 1.0, 1e-5), "sensitivity is -1.0"),
        ((1.0, 1.0, 0.0, 1e-5), "epsilon is 0.0"),
        ((1.0, 1.0, math.nan, 1e-5), "epsilon is nan"),
        ((1.0, 1.0, 1.0, 1.0), "delta is 1.0"),
    ],
)
def test_what_is_no_setting_is_refused(numbers: tuple[float, float, float, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        declared_privacy(*numbers)
    with pytest.raises(UserError, match="rounds is 0"):
        declared_privacy(1.0, 1.0, 1.0, 1e-5, rounds=0)


def test_without_flower_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)
    monkeypatch.delitem(sys.modules, "lightning_recon.capture.flower", raising=False)
    with pytest.raises(UserError, match="pip install"):
        import_module("lightning_recon.capture.flower")
