"""The passphrase over the private keys: from a prompt or a file, never from a flag.

passphrase = find_passphrase(settings.key_password_file, ask=True)
"""

from __future__ import annotations

import getpass
import stat
import sys
from pathlib import Path
from typing import NoReturn

from genkd.errors import KeyOrSignatureError

MIN_LENGTH = 8  # characters, NIST SP 800-63B section 5.1.1
MAX_BYTES = 1024
READABLE_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Passphrase:
    """A secret text that prints as nothing and cannot be pickled.

    Args:
        text: 1 to 1,024 bytes of UTF-8.

    Raises:
        KeyOrSignatureError: If it is empty or too long.
    """

    __slots__ = ("_bytes",)

    def __init__(self, text: str) -> None:
        encoded = text.encode("utf-8", errors="surrogateescape")
        if not 0 < len(encoded) <= MAX_BYTES:
            raise KeyOrSignatureError(
                "the passphrase is empty or longer than 1,024 bytes",
                hint="choose a passphrase of 8 to 1,024 characters",
            )
        self._bytes = encoded

    def reveal(self) -> bytes:
        """The bytes, for a key derivation and nothing else."""
        return self._bytes

    def require_strength(self) -> None:
        """Refuse a passphrase too short to protect a new key.

        Raises:
            KeyOrSignatureError: If it has fewer than 8 characters.
        """
        if len(self._bytes.decode("utf-8", errors="replace")) < MIN_LENGTH:
            raise KeyOrSignatureError(
                f"the passphrase has fewer than {MIN_LENGTH} characters",
                hint="choose a longer one; four random words are good",
            )

    def __repr__(self) -> str:
        return "Passphrase(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a passphrase cannot be pickled")


def require_private(path: Path) -> None:
    """Refuse a secret file that others on this machine can read.

    Raises:
        KeyOrSignatureError: If it is missing, no regular file, or open to group or others.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise KeyOrSignatureError(
            f"{path} cannot be read: {error.strerror}",
            hint="check the path, or make keys: genkd-node init, or genkd-coordinator init",
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise KeyOrSignatureError(f"{path} is not a regular file", hint="check the path")
    if status.st_mode & READABLE_BY_OTHERS:
        raise KeyOrSignatureError(
            f"{path} can be read by other users of this machine",
            hint=f"chmod 600 '{path}', and consider the secret known to them",
        )


def read_passphrase_file(path: Path) -> Passphrase:
    """The first line of a private file.

    Raises:
        KeyOrSignatureError: If the file is missing, open to others, empty, or longer than one line.
    """
    require_private(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 3)
    except OSError as error:
        raise KeyOrSignatureError(
            f"{path} cannot be read: {error.strerror}", hint="check its owner and permissions"
        ) from error
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    if b"\n" in line or len(line) > MAX_BYTES:
        raise KeyOrSignatureError(
            f"{path} holds more than one line",
            hint="the passphrase file holds the passphrase and nothing else",
        )
    return Passphrase(line.decode("utf-8", errors="surrogateescape"))


def find_passphrase(file: Path | None, *, ask: bool, confirm: bool = False) -> Passphrase:
    """The passphrase in `file` if one is named, else from a prompt.

    Args:
        file: What `GENKD_KEY_PASSWORD_FILE` or the settings name, or None.
        ask: Whether a person may be asked.
        confirm: Ask twice, for a new passphrase.

    Raises:
        KeyOrSignatureError: If there is no file and nobody to ask, or the two answers differ.
    """
    if file is not None:
        return read_passphrase_file(file)
    if not ask or not sys.stdin.isatty():
        raise KeyOrSignatureError(
            "a passphrase is needed, and there is no terminal to ask for it",
            hint="name a private file that holds the passphrase in GENKD_KEY_PASSWORD_FILE, "
            "a coordinator in GENKD_COORDINATOR_KEY_PASSWORD_FILE",
        )
    first = getpass.getpass("Passphrase for the keys: ")
    if confirm and getpass.getpass("The same again: ") != first:
        raise KeyOrSignatureError("the two passphrases differ", hint="type the same one twice")
    return Passphrase(first)
