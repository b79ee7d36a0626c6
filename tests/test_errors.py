# SPDX-License-Identifier: Apache-2.0
"""What the user can fix is named as an argument in Python, and as an option on the command line."""

import pytest

from lightning_recon.errors import UserError


@pytest.mark.parametrize(
    ("option", "argument"),
    [
        ("--model.client.privacy.max_grad_norm is -1: lower it", "max_grad_norm is -1: lower it"),
        (
            "a sum: set --data.clients to 4, or --model.client.aggregated 2.",
            "a sum: set clients to 4, or aggregated 2.",
        ),
        ("--verify.claims.privacy.max_grad_norm null", "max_grad_norm null"),
        ("no end: give --trainer.max_steps", "no end: give max_steps"),
        ("leave out --ckpt_path, or --model", "leave out --ckpt_path, or --model"),
        ("of my--model.client.net and a--b", "of my--model.client.net and a--b"),
        (
            "set --data.batch_size to a multiple, or --model.client.local.batch_size",
            "set data.batch_size to a multiple, or local.batch_size",
        ),
        (
            "set --model.structure.opening.cancel true; not --model.structure.cancel",
            "set opening.cancel true; not structure.cancel",
        ),
        ("--model.structure.opening.pilot_power is 0", "opening.pilot_power is 0"),
        ("'--model.weights.pt' and /tmp/x --data.a/b.png cannot be read", ""),
    ],
)
def test_options_are_arguments_in_python(option: str, argument: str) -> None:
    assert str(UserError(option)) == (argument or option)
    assert UserError(option).for_command_line == option


def test_a_message_is_one_printable_line() -> None:
    error = UserError("two\nlines of \x1b[31m --data.root")
    assert "\n" not in str(error) + error.for_command_line
    assert "\x1b" not in str(error) + error.for_command_line
    assert len(UserError("a" * 5000).for_command_line) < 3000
