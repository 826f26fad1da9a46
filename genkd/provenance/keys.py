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
    next/0xDeF....json          the key that may take over, keystore version 3

The next key exists before it is needed because its hash is on the chain from the start: whoever
steals the current key cannot rotate to one of his own. It protects more the further it is kept from
the current one, so `next` may be moved to another medium.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric import ec

from genkd.canonical import canonical_json
from genkd.durable import TEMPORARY_PREFIX, atomic_write, unwritable
from genkd.errors import KeyOrSignatureError
from genkd.provenance.keystore import (
    MAX_KEY_FILE_BYTES,
    decrypt_ethereum_key,
    encrypt_ethereum_key,
)
from genkd.provenance.passphrase import READABLE_BY_OTHERS, Passphrase, require_private
from genkd.provenance.profile import (
    P256_ALGORITHM,
    NodeProfile,
    make_profile,
    pem_of,
    read_profile,
    signing_key_hash,
)
from genkd.provenance.record import ZERO_HASH, TypedMessage, key_hash
from genkd.provenance.secp256k1 import N, address_of, sign_digest
from genkd.provenance.signing_key import decrypt_signing_key, encrypt_signing_key
from genkd.provenance.typed_data import ADDRESS, Domain

CURRENT = "current"
NEXT = "next"
ETHEREUM_KEY = "ethereum.json"
SIGNING_KEY = "signing.pem"
SIGNING_PUBLIC_KEY = "signing.pub.pem"
PROFILE = "profile.json"
FILE_MODE, FOLDER_MODE = 0o600, 0o700


class NodeKeys:
    """A node's two private keys, unlocked. Prints as its address and cannot be pickled.

    Args:
        secret: The Ethereum private key.
        signing_key: The P-256 private key.
        profile: What both signed about each other.

    Raises:
        KeyOrSignatureError: If the keys are not the ones of the profile.
    """

    def __init__(
        self, secret: int, signing_key: ec.EllipticCurvePrivateKey, profile: NodeProfile
    ) -> None:
        same = signing_key_hash(pem_of(signing_key.public_key())) == profile.message.signing_key
        if address_of(secret) != profile.node or not same:
            raise KeyOrSignatureError(
                f"the keys of {profile.node} are not the ones of its profile",
                hint="restore the key folder from a backup",
            )
        self._secret = secret
        self._signing_key = signing_key
        self.profile = profile

    @property
    def address(self) -> str:
        """The node's address."""
        return self.profile.node

    def sign(self, message: TypedMessage, domain: Domain) -> bytes:
        """The Ethereum key's signature over a typed message, 65 bytes."""
        return sign_digest(self._secret, message.digest(domain))

    def sign_digest(self, digest: bytes) -> bytes:
        """The Ethereum key's signature over 32 bytes, such as a transaction's hash; 65 bytes."""
        return sign_digest(self._secret, digest)

    def sign_artifact(self, data: bytes) -> bytes:
        """The P-256 key's signature over bytes: ECDSA with SHA-256, ASN.1 DER."""
        return self._signing_key.sign(data, P256_ALGORITHM)

    def __repr__(self) -> str:
        return f"NodeKeys({self.address})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys cannot be pickled")


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
        if (self.path / CURRENT).exists():
            raise KeyOrSignatureError(
                f"there are keys in {self.path} already, and they are never overwritten",
                hint="use them, or name another folder; 'genkd-node keys rotate' replaces a key",
            )
        _make_folder(self.path)
        _require_closed(self.path)
        next_hash = self._make_next_key(passphrase, next_folder)
        secret = _new_secret()
        profile = self._make_set(
            secret, encrypt_ethereum_key(secret, passphrase), passphrase, tls_fingerprint, next_hash
        )
        self.switch_to(profile.node)
        return profile

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
        folder = next_folder or self.path / NEXT
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
        folder = next_folder or self.path / NEXT
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


def _new_secret() -> int:
    return secrets.randbelow(N - 1) + 1


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


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
            hint="check the path, or make keys with 'genkd-node init'",
        ) from error
    if len(data) > limit:
        raise KeyOrSignatureError(f"{path} is too large", hint="restore it from a backup")
    return data
