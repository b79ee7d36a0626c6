# SPDX-License-Identifier: Apache-2.0
"""Files are written atomically with the mode of the umask, and read only if they are unchanged."""

import json
import logging
import os
import stat
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from lightning_recon.errors import UserError
from lightning_recon.files import digests
from lightning_recon.files.checkpoints import DigestedCheckpoints
from lightning_recon.files.faults import readable
from lightning_recon.files.image_writer import write_image
from lightning_recon.files.serialization import (
    read_json,
    read_sealed,
    read_yaml,
    write_json,
    write_sealed,
    write_tensors,
)
from lightning_recon.printable import printable

ANY = TypeAdapter(dict[str, object])


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
        write_tensors(tmp_path, "b", {"x": torch.zeros(2)})
        write_sealed(tmp_path / "c.safetensors", {"x": torch.zeros(2)}, "entry", {})
        write_image(tmp_path / "d.png", torch.zeros(3, 4, 4))
        DigestedCheckpoints().save_checkpoint({"x": 1}, tmp_path / "e.ckpt")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [0o640] * 5


def test_a_digest_tells_what_was_altered_from_what_was_laid_out_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 0.1, "y": {"z": [1, None, "ä"]}})
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert read_json(path, ANY) == {"x": 0.1, "y": {"z": [1, None, "ä"]}}
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(UserError, match=r"a\.json .*altered"), readable(path):
        read_json(path, ANY)


def test_a_seal_is_over_tensors_and_record_and_gives_equal_files(tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    for path in (one, other):
        write_sealed(path, {"x": torch.arange(4.0)}, "entry", {"a": 1})
    assert one.read_bytes() == other.read_bytes()
    assert read_sealed(one, "entry")[1] == {"a": 1}
    content = bytearray(one.read_bytes())
    content[-2] ^= 1
    one.write_bytes(content)
    other.write_bytes(other.read_bytes().replace(rb"{\"a\": 1", rb"{\"a\": 2"))
    for path in (one, other):
        with pytest.raises(ValueError, match="altered"):
            read_sealed(path, "entry")


def test_files_without_a_digest_are_read_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_warned", [])
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text('{"x": 1}')
    with caplog.at_level(logging.WARNING, "lightning_recon"):
        assert [read_json(tmp_path / f"{name}.json", ANY) for name in ("a", "b")] == [{"x": 1}] * 2
    (said,) = caplog.messages
    assert "a.json carries no digest" in said


def test_a_digest_under_another_name_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1, "payload": "0" * 64})
    path.write_text(path.read_text().replace("sha256", "sHa256"))
    with pytest.raises(ValueError, match="'sHa256'"):
        read_json(path, ANY)


@pytest.mark.parametrize("content", ["[" * 100_000, "NaN", '{"x": NaN}', "[]", '{"x": 1e400}', "\x00", '{"x": \x01}'])
def test_odd_json_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json"), readable(tmp_path / "a.json"):
        read_json(tmp_path / "a.json", ANY)


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "content",
    [BOMB, "a: &a [*a]", "[" * 5000, "!!python/object/apply:os.getcwd []", "a: [", "\xff", "a: " + "b" * 10**6],
)
def test_odd_yaml_is_refused_at_once(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.yaml"), readable(path):
        read_yaml(path)


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    for path in (tmp_path / "a.json", Path("/dev/zero")):
        with pytest.raises(OSError, match="no plain file"):
            read_json(path, ANY)
        with pytest.raises(OSError, match="no plain file"):
            read_sealed(path, "entry")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Äpfel 東京\u3000e\u0301 👩\u200d🔬.png", "Äpfel 東京\u3000e\u0301 👩\u200d🔬.png"),
        (os.fsdecode(b"bad\xff.png"), "bad\\xff.png"),
        ("a\nb\x1b[2J\u202ec\x7f\ud800", "a\\nb\\x1b[2J\\u202ec\\x7f\\ud800"),
        ("a" * 50, "aaaaaaa ... aaaaaaa"),
    ],
)
def test_names_become_printable(text: str, shown: str) -> None:
    assert printable(text, 20 if len(text) == 50 else 100) == shown
    assert printable(shown) == shown
    assert UserError(text).args == (text,)


def test_a_mistake_is_told_in_one_printable_line() -> None:
    assert str(UserError("bad\n\x1b[2Jname")) == "bad \\x1b[2Jname"
