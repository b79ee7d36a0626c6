# SPDX-License-Identifier: Apache-2.0
"""Mistakes in config files are reported with file and line."""

from pathlib import Path

import pytest

from lightning_recon.command_line.config_files import line_of, read_config
from lightning_recon.errors import UserError

from .typed import refusal


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"# \xe9t\xe9\nmodel: {}\n", "line 1: not UTF-8: save the file with that encoding"),
        ("seed_everything: 1\n".encode("utf-16"), "line 1: not UTF-8"),
        (b"seed_everything: 1\nmodel:\n\tclass_path: x\n", "line 3: indent with spaces, not tabs"),
        (b"model: [1,\n  b: {", "line 2: expected the node content"),
        (b"a: *x\n", "line 1: found undefined alias 'x'"),
        (b"seed_everything: 1\x00\n", "line 1: special characters are not allowed"),
        (b"a: !!python/object/apply:os.system [exit]\n", "line 1: could not determine a constructor"),
        (b"", "sets nothing: write settings into it, or leave it out"),
        (b"# nothing\n", "sets nothing"),
        (b"- a\n", "is a list, not settings"),
        (b"a text\n", "is a text, not settings"),
        (b"data:\n  seed: 1\n  seed: 2\n", "line 3: seed is already set in line 2: keep one"),
        (b"[" * 3000, "nested too deeply"),
        (
            b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40)),
            "expands to more",
        ),
        (b"modle:\n  draws: 2\n", "line 1: there is no setting modle: did you mean model?"),
        (b"audit:\n  jobs: 2\n", "line 1: there is no setting audit"),
        (b"data:\n  init_args:\n    batch_size: many\n", "--data.batch_size is 'many' ("),
        (b"trainer:\n\n  max_step: 3\n", "there is no option --trainer.max_step of recon fit ("),
    ],
)
def test_a_bad_config_is_named_with_its_line(
    content: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    line = refusal(capsys, "fit", "--config", "quickstart.yaml", "--config", str(path))
    assert says in line
    assert str(path) in line
    if says.endswith("("):
        assert f"({path}, line 3)" in line


def test_folders_are_no_configs_and_a_byte_order_mark_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is a directory"):
        read_config(str(tmp_path))
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfmodel:\n  init_args:\n    draws: 3\n")
    assert read_config(str(tmp_path / "bom.yaml")) == {"model": {"init_args": {"draws": 3}}}
    assert line_of(str(tmp_path / "bom.yaml"), ["model", "draws"]) == 3
    assert line_of(str(tmp_path / "bom.yaml"), ["model", "draw"]) is None
