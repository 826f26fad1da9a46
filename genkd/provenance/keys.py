"""A node's private keys: made, stored, unlocked, rotated.

    folder = KeyFolder(Path("keys"))
    folder.create(passphrase)                   # refuses to overwrite
    keys = folder.unlock(passphrase)
    signature = keys.sign(record, domain)

The folder holds one sub-folder per set of keys, named by its address, and the file `current` that
names the one in force; both appear in one step, so a kill leaves the old state or the new. Folders
are 0700, files 0600::

    current                     the address in force
    0xAbC.../ethereum.json      keystore version 3
    0xAbC.../signing.pem        encrypted PKCS #8
    0xAbC.../signing.pub.pem    for `model_signing verify key --public_key`
    0xAbC.../profile.json       what a coordinator admits
    0xAbC.../teacher-....salt   of the commitment to a teacher, 32 bytes
    next/0xDeF....json          the key that may take over, keystore version 3

The next key exists before it is needed because its hash is on the chain from the start: whoever
steals the current key cannot rotate to one of his own. It protects more the further it is kept from
the current one, so `next` may be moved to another medium.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from genkd.canonical import canonical_json
from genkd.durable import TEMPORARY_PREFIX, atomic_write, unwritable
from genkd.errors import KeyOrSignatureError
from genkd.provenance.keystore import (
    MAX_KEY_FILE_BYTES,
    decrypt_ethereum_key,
    encrypt_ethereum_key,
)
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.passphrase import (
    READABLE_BY_OTHERS,
    Passphrase,
    find_passphrase,
    require_private,
)
from genkd.provenance.profile import NodeProfile, make_profile, read_profile
from genkd.provenance.record import ZERO_HASH, key_hash
from genkd.provenance.secp256k1 import N, address_of
from genkd.provenance.signing_key import decrypt_signing_key, encrypt_signing_key
from genkd.provenance.typed_data import ADDRESS

CURRENT = "current"
NEXT = "next"
ETHEREUM_KEY = "ethereum.json"
SIGNING_KEY = "signing.pem"
SIGNING_PUBLIC_KEY = "signing.pub.pem"
PROFILE = "profile.json"
FILE_MODE, FOLDER_MODE = 0o600, 0o700


@dataclass(frozen=True)
class KeyFolder:
    """Where a node's keys lie.

    Attributes:
        path: The folder; `create` makes it.
    """

    path: Path

    def create(
        self,
        passphrase: Passphrase,
        *,
        tls_fingerprint: bytes = ZERO_HASH,
        next_folder: Path | None = None,
    ) -> NodeProfile:
        """Make both keys, the next key, and the profile.

        Args:
            passphrase: Protects all three private keys; at least 8 characters.
            tls_fingerprint: sha256 of the node's TLS certificate, zero when it has none.
            next_folder: Where to keep the next key; `next` in this folder when None.

        Raises:
            KeyOrSignatureError: If there are keys already, or the passphrase is too short.
            ResourceExhausted: If the folder cannot be written.
        """
        passphrase.require_strength()
        self.require_absent()
        _make_folder(self.path)
        _require_closed(self.path)
        next_hash = self._make_next_key(passphrase, next_folder)
        secret = _new_secret()
        profile = self._make_set(
            secret, encrypt_ethereum_key(secret, passphrase), passphrase, tls_fingerprint, next_hash
        )
        self.switch_to(profile.node)
        return profile

    def require_absent(self) -> None:
        """Refuse to go on where there are keys.

        Raises:
            KeyOrSignatureError: If there are.
        """
        if (self.path / CURRENT).exists():
            raise KeyOrSignatureError(
                f"there are keys in {self.path} already, and they are never overwritten",
                hint="use them, or name another folder; 'keys rotate' replaces a key",
            )

    @property
    def next_folder(self) -> Path:
        """Where the next key is kept if nothing else is said."""
        return self.path / NEXT

    def profile(self, address: str | None = None) -> NodeProfile:
        """The profile in force, or of another set of keys; both its signatures are good.

        Raises:
            KeyOrSignatureError: If there are no keys, or the profile is not genuine.
            InputFileRefused: If the profile is malformed.
        """
        folder = self._folder_of(address)
        profile = read_profile(folder / PROFILE)
        if profile.node != folder.name:
            raise KeyOrSignatureError(
                f"{folder / PROFILE} is the profile of another node",
                hint="restore the key folder from a backup",
            )
        return profile

    def profile_path(self, address: str | None = None) -> Path:
        """The profile's file, to be given to a coordinator."""
        return self._folder_of(address) / PROFILE

    def public_key_path(self, address: str | None = None) -> Path:
        """The P-256 public key's PEM file, for the stock tools."""
        return self._folder_of(address) / SIGNING_PUBLIC_KEY

    def unlock(self, passphrase: Passphrase, address: str | None = None) -> NodeKeys:
        """The private keys in force, or of another set.

        Raises:
            KeyOrSignatureError: If there are no keys, others on this machine can read them, they
                are damaged or hostile, or the passphrase is wrong.
            InputFileRefused: If the profile is malformed.
        """
        profile = self.profile(address)
        folder = self._folder_of(address)
        secret = decrypt_ethereum_key(_read_secret(folder / ETHEREUM_KEY), passphrase)
        signing_key = decrypt_signing_key(_read_secret(folder / SIGNING_KEY), passphrase)
        return NodeKeys(secret, signing_key, profile)

    def prepare_rotation(
        self, passphrase: Passphrase, *, next_folder: Path | None = None
    ) -> NodeKeys:
        """Make the set of keys that takes over: the next key, a new P-256 key, a key after that.

        Nothing changes for the set in force until `switch_to`. A repeat after an interruption
        returns the set already made.

        Args:
            passphrase: What the next key was protected with; protects the new keys too.
            next_folder: Where the next key lies, and the one after it will.

        Raises:
            KeyOrSignatureError: If the next key is not there, or as `unlock`.
            ResourceExhausted: If the folder cannot be written.
        """
        profile = self.profile()
        path = self._next_key_of(profile, next_folder)
        data = _read_secret(path)
        if not (self.path / path.stem).exists():
            secret = decrypt_ethereum_key(data, passphrase)
            if key_hash(address_of(secret)) != profile.message.next_key_hash:
                raise KeyOrSignatureError(
                    f"{path} is not the next key of {profile.node}",
                    hint="restore the next key from a backup",
                )
            next_hash = self._make_next_key(passphrase, next_folder)
            fingerprint = profile.message.tls_fingerprint
            self._make_set(secret, data, passphrase, fingerprint, next_hash)
        return self.unlock(passphrase, path.stem)

    def teacher_salt(self, address: str, teacher_sha256: bytes) -> bytes:
        """The salt of a set of keys' commitment to a teacher, made at the first call and kept.

        Whoever has it and the teacher can tell that the commitment is to this teacher.

        Args:
            address: The set of keys.
            teacher_sha256: 32 bytes.

        Returns:
            32 random bytes.

        Raises:
            KeyOrSignatureError: If there is no such set, or the file is damaged.
            ResourceExhausted: If the folder cannot be written.
        """
        path = self._folder_of(address) / f"teacher-{teacher_sha256.hex()}.salt"
        with _alone(path.parent):
            if not path.exists():
                atomic_write(path, secrets.token_bytes(32), mode=FILE_MODE)
        salt = _read_secret(path)
        if len(salt) != 32:
            raise KeyOrSignatureError(f"{path} is damaged", hint="restore it from a backup")
        return salt

    def switch_to(self, address: str) -> None:
        """Put a set of keys in force; the others stay where they are.

        Raises:
            KeyOrSignatureError: If there is no such set.
            ResourceExhausted: If the folder cannot be written.
        """
        self._folder_of(address)
        atomic_write(self.path / CURRENT, address.encode("ascii") + b"\n", mode=FILE_MODE)

    def _folder_of(self, address: str | None) -> Path:
        """The sub-folder of a set of keys, after checking that only this user can enter it."""
        if address is None:
            address = _read(self.path / CURRENT, 64).decode("ascii", "replace").strip()
        folder = self.path / address
        if not ADDRESS.fullmatch(address) or not folder.is_dir():
            raise KeyOrSignatureError(
                f"{self.path} has no keys of {address!a}", hint="restore it from a backup"
            )
        _require_closed(self.path)
        _require_closed(folder)
        return folder

    def _next_key_of(self, profile: NodeProfile, next_folder: Path | None) -> Path:
        folder = next_folder or self.next_folder
        for path in sorted(folder.glob("0x*.json")):
            if (
                ADDRESS.fullmatch(path.stem)
                and key_hash(path.stem) == profile.message.next_key_hash
            ):
                return path
        raise KeyOrSignatureError(
            f"the next key of {profile.node} is not in {folder}",
            hint="bring the medium it was moved to, and name its folder",
        )

    def _make_next_key(self, passphrase: Passphrase, next_folder: Path | None) -> bytes:
        """Make a next key and return what may be said of it in public."""
        folder = next_folder or self.next_folder
        _make_folder(folder)
        secret = _new_secret()
        address = address_of(secret)
        data = encrypt_ethereum_key(secret, passphrase)
        atomic_write(folder / f"{address}.json", data, mode=FILE_MODE)
        return key_hash(address)

    def _make_set(
        self,
        secret: int,
        ethereum_key: bytes,
        passphrase: Passphrase,
        tls_fingerprint: bytes,
        next_hash: bytes,
    ) -> NodeProfile:
        """Write a complete sub-folder in one step and return its profile."""
        signing_key = ec.generate_private_key(ec.SECP256R1())
        profile = make_profile(secret, signing_key, tls_fingerprint, next_hash)
        files = {
            ETHEREUM_KEY: ethereum_key,
            SIGNING_KEY: encrypt_signing_key(signing_key, passphrase),
            SIGNING_PUBLIC_KEY: profile.signing_key.encode("ascii"),
            PROFILE: canonical_json(profile.to_json()),
        }
        temporary = Path(tempfile.mkdtemp(dir=self.path, prefix=TEMPORARY_PREFIX))
        try:
            for name, data in files.items():
                atomic_write(temporary / name, data, mode=FILE_MODE)
            os.rename(temporary, self.path / profile.node)
        except OSError as error:
            raise unwritable(self.path / profile.node, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return profile


def open_keys(path: Path, password_file: Path | None) -> tuple[KeyFolder, NodeKeys]:
    """The keys in a folder, unlocked with a passphrase from a file or from a prompt.

    Raises:
        KeyOrSignatureError: As `KeyFolder.unlock` and `find_passphrase`.
        InputFileRefused: If the profile is malformed.
    """
    folder = KeyFolder(path)
    folder.profile()  # that there are no keys is said before a passphrase is asked for
    return folder, folder.unlock(find_passphrase(password_file, ask=True))


def _new_secret() -> int:
    return secrets.randbelow(N - 1) + 1


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time look whether a file is there, and make it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _require_closed(folder: Path) -> None:
    if folder.stat().st_mode & READABLE_BY_OTHERS:
        raise KeyOrSignatureError(
            f"{folder} is open to other users of this machine",
            hint=f"chmod 700 '{folder}', and consider keys in it known to them",
        )


def _read_secret(path: Path) -> bytes:
    require_private(path)
    return _read(path, MAX_KEY_FILE_BYTES)


def _read(path: Path, limit: int) -> bytes:
    """At most `limit` bytes; a longer file is refused."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise KeyOrSignatureError(
            f"{path} cannot be read: {error.strerror}",
            hint="check the path, or make keys: genkd-node init, or genkd-coordinator init",
        ) from error
    if len(data) > limit:
        raise KeyOrSignatureError(f"{path} is too large", hint="restore it from a backup")
    return data
