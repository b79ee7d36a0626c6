# SPDX-License-Identifier: Apache-2.0
"""Data sets that are fetched: where to, and what is said where there is no network."""

import socket
import time
from pathlib import Path
from urllib.error import URLError

import pytest
from torchvision.datasets import utils

from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.data.download import DOWNLOADABLE, TIMEOUT, opened, timeout
from lightning_recon.errors import UserError


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network; the addresses that were asked for."""
    asked: list[str] = []

    def refuse(request: object, **others: object) -> None:
        asked.append(str(getattr(request, "full_url", request)))
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return asked


@pytest.mark.parametrize("source", DOWNLOADABLE)
def test_offline_the_address_and_the_folder_are_named(source: str, offline: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        opened(source, tmp_path, download=True)
    said, one = str(caught.value), DOWNLOADABLE[source]
    assert "\n" not in said
    assert "name resolution" in said
    assert f"into {tmp_path / one.folder}" in said
    # torchvision asks for the first of the addresses that are named, and nothing else.
    assert {address.replace("http:", "https:") for address in offline} == {one.addresses[0]}
    assert all(address in said for address in one.addresses)


@pytest.mark.parametrize("source", DOWNLOADABLE)
def test_torchvision_looks_where_we_say(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []

    def look(url: str, root: str, filename: str | None = None, md5: str | None = None, **others: object) -> None:
        looked.append(Path(root) / (filename or url.rpartition("/")[2]))
        raise URLError("no network")

    monkeypatch.setattr(utils, "download_url", look)
    with pytest.raises(UserError):
        opened(source, tmp_path, download=True)
    one = DOWNLOADABLE[source]
    assert looked == [tmp_path / one.folder / one.addresses[0].rpartition("/")[2]]


def test_without_download_both_ways_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cifar100 is not complete in .*: add download true, or download https://"):
        opened("cifar100", tmp_path / "missing", download=False)


@pytest.mark.parametrize("variable", [None, "data"])
def test_download_works_alone(
    variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".cache" / "lightning_recon" / "data"
    if variable:
        monkeypatch.setenv("LIGHTNING_RECON_DATA", str(tmp_path / variable))
        expected = tmp_path / variable
    data = ClientDataModule(source="cifar100", download=True, masks=NoMasks())
    assert data.root == expected
    with pytest.raises(UserError, match="put it into"):
        data.prepare_data()
    assert offline
    assert ClientDataModule(download=True).root is None  # the bundled photographs are here


def test_a_silent_server_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with timeout():
            assert socket.getdefaulttimeout() == TIMEOUT
            socket.setdefaulttimeout(0.2)
            started = time.monotonic()
            with pytest.raises(OSError, match="timed out"):
                utils._urlretrieve(f"http://127.0.0.1:{server.getsockname()[1]}/file", "unused")
            assert time.monotonic() - started < 5
        assert socket.getdefaulttimeout() is None
