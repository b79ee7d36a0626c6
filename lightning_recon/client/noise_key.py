# SPDX-License-Identifier: Apache-2.0
"""The key of a client's noise: a secret, or a public seed; independent random streams from it; and its file.

Whoever knows the key can subtract the noise. The attacker's packages must not import this module; see
tests/test_threat_model.py.
"""

import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np

from lightning_recon.errors import UserError

FOLDER_VARIABLE = "LIGHTNING_RECON_NOISE_KEYS"
FLAG = "--model.client.noise_key_folder"
BYTES = 32

Generators = Callable[[str], np.random.Generator]  # name of a tensor -> generator of its noise


@dataclass(frozen=True)
class NoiseKey:
    """A key from which all random numbers of a client follow that an attacker must not know.

    Args:
        secret: 32 bytes.
        seed: the public seed that the secret follows from; None: it follows from nothing that is written down.
    """

    secret: bytes = field(repr=False)
    seed: int | None = None

    @classmethod
    def fresh(cls) -> Self:
        """A key of 256 bits from the operating system's generator."""
        return cls(secrets.token_bytes(BYTES))

    @classmethod
    def from_seed(cls, seed: int) -> Self:
        """A reproducible key: anyone who knows the seed can regenerate the noise, and subtract it."""
        return cls(blake2b(str(seed).encode(), digest_size=BYTES, person=b"noise seed").digest(), seed)

    @property
    def identifier(self) -> str:
        """The public name of the key: a one-way function of it, 32 hexadecimal digits."""
        return blake2b(key=self.secret, digest_size=16, person=b"identifier").hexdigest()

    def stream_key(self, purpose: str, *place: int | str) -> int:
        """The 128-bit key of one random stream; others than this purpose and place have independent keys."""
        message = json.dumps([purpose, *place]).encode()
        return int.from_bytes(blake2b(message, key=self.secret, digest_size=16, person=b"stream").digest(), "little")

    def generator(self, purpose: str, *place: int | str) -> np.random.Generator:
        """A generator whose numbers do not depend on the device, the rank or anything drawn before.

        Philox applies a keyed permutation to a counter. It was made for simulations and is not certified for
        cryptography, but unlike the state of a Mersenne Twister its key does not follow from its output by linear
        algebra.

        Args:
            purpose: what the random numbers are used for.
            place: indices and names that distinguish streams of one purpose, such as client, draw, round and tensor.

        Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
        """
        return np.random.Generator(np.random.Philox(key=self.stream_key(purpose, *place)))


def key_folder(given: str | Path | None) -> Path:
    """Folder of key files: the argument, $LIGHTNING_RECON_NOISE_KEYS, or one in the user's state directory."""
    if given or (given := os.environ.get(FOLDER_VARIABLE)):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "lightning_recon" / "noise_keys"


def key_file(folder: Path, identifier: str) -> Path:
    """The file of a key."""
    return folder / f"{identifier}.key"


def save_key(folder: Path, key: NoiseKey) -> Path:
    """Write a key file, whole or not at all, which only its owner may read.

    Raises:
        UserError: the folder cannot be written.
    """
    path = key_file(folder, key.identifier)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(f"{key.secret.hex()}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"cannot write the key of the noise, {path} ({error}): give a folder that only you can read by {FLAG} or "
            f"{FOLDER_VARIABLE}"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def load_key(folder: Path, identifier: str) -> NoiseKey:
    """Read a key file.

    Raises:
        UserError: it is missing or damaged.
    """
    path = key_file(folder, identifier)
    advice = f"restore it, or name its folder by {FLAG}"
    try:
        key = NoiseKey(bytes.fromhex(path.read_text(encoding="ascii")))
    except FileNotFoundError:
        raise UserError(f"the run drew its noise with the key {path}, which does not exist: {advice}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"the run drew its noise with the key {path}, which cannot be read: {advice}") from error
    if len(key.secret) != BYTES or key.identifier != identifier:
        raise UserError(f"the run drew its noise with the key {path}, which holds another: {advice}")
    return key
