# SPDX-License-Identifier: Apache-2.0
"""The protection under attack in one line."""

import pytest

from lightning_recon.callbacks.console_tables import privacy_line
from lightning_recon.evaluation.results import privacy_record
from lightning_recon.exchange import NoiseShare


@pytest.mark.parametrize(
    ("clip", "layers", "noise", "says"),
    [
        (None, False, 0.0, ["no clipping,", "no noise", "no privacy guarantee"]),
        (None, True, 0.0, ["no clipping,", "no noise", "no privacy guarantee"]),
        (10.0, False, 0.0, ["clip 10 per update,", "no noise", "no privacy guarantee"]),
        (10.0, True, 2e-4, ["clip 10 per update and layer,", "nominal epsilon 10,"]),
        (
            10.0,
            False,
            2e-4,
            ["clip 10 per update,", "nominal epsilon 10,", "accounted epsilon 1.25e+07 at delta 1e-05"],
        ),
    ],
)
def test_the_protection_in_one_line(clip: float | None, layers: bool, noise: float, says: list[str]) -> None:
    record = privacy_record(
        granularity="update",
        per_layer=layers,
        max_grad_norm=clip,
        noise_multiplier=noise,
        rounds=1,
        batch_size=4,
        delta=1e-5,
        adjacency="add_remove",
    )
    line = privacy_line(record)
    assert all(part in line for part in says)
    assert "\n" not in line


def test_the_line_says_which_clients_are_covered() -> None:
    def line(**changes: object) -> str:
        settings = {"granularity": "update", "per_layer": False, "max_grad_norm": 1.0, "noise_multiplier": 1.0}
        settings |= {"rounds": 2, "batch_size": 4, "delta": 1e-5, "adjacency": "add_remove"}
        settings |= {"aggregated": 8, "noise_share": "distributed", "client_dropout": 0.1}
        return privacy_line(privacy_record(**(settings | changes)))  # type: ignore[arg-type]

    assert "noise distributed over them (each drops out with probability 0.1), noise multiplier 1," in line()
    assert "(add_remove, incomplete-sums)" in line()
    assert line(noise_bands=2).endswith("epsilon not accounted where clients drop out: no privacy guarantee")
    local = {"noise_share": "local", "client_dropout": 0.0}
    assert "accounted epsilon 6.57 of one client's updates at delta" in line(**local, participation=0.5)
    assert "accounted epsilon 6.57 at delta" in line(**local)


@pytest.mark.parametrize(
    ("share", "rounds", "says"),
    [
        ("distributed", 1, "sums of 4 clients, noise distributed over them, noise multiplier 0.1, 1 round:"),
        ("local", 2, "sums of 4 clients, each with its full noise, noise multiplier 0.1, 2 rounds:"),
    ],
)
def test_sums_and_rounds_in_words(share: NoiseShare, rounds: int, says: str) -> None:
    record = privacy_record(
        granularity="update",
        per_layer=False,
        max_grad_norm=1.0,
        noise_multiplier=0.1,
        rounds=rounds,
        batch_size=4,
        delta=1e-5,
        adjacency="add_remove",
        aggregated=4,
        noise_share=share,
    )
    assert says in privacy_line(record)
