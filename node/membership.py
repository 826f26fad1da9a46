"""The folder of one membership: which coordinator, with which key, and what came of it.

    membership = Membership.open(Path("membership"))
    membership.make_secrets()
    membership.supernode_public_key()           # ecdsa-sha2-nistp384 AAAA...

The folder is 0700 and holds::

    joined.json          the coordinator's address and fingerprint, and whether it admitted us
    federation.json      what the coordinator says of the federation
    ca.pem               its certificate authority
    policy.toml          what this node answers
    supernode.key, .pub  what the SuperNode proves itself with; it signs no release
    executor.secret      what the executor proves itself with to the SuperNode
    running.json         how the SuperNode fares, as long as `lock` is held
    supernode.log, executor.log, each with one older file beside it
    shared/              students the coordinator shared and this node verified

The SuperNode's key is no key of the node's: whoever has it can answer in this node's place, and
every release in such an answer must still bear the node's signatures.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from genkd.canonical import canonical_json, parse_json
from genkd.durable import atomic_write, unwritable
from genkd.errors import ConfigurationError, KeyOrSignatureError
from genkd.provenance.passphrase import require_private

FILE_MODE, FOLDER_MODE = 0o600, 0o700
SECRET_BYTES = 32
MAX_STATE_BYTES = 64 * 1024

State = Literal["pending", "admitted", "refused"]


@dataclass(frozen=True)
class Joined:
    """Which coordinator this folder belongs to.

    Attributes:
        coordinator: Where it answers, `host:port`.
        fingerprint: sha256 of its certificate authority, 64 hexadecimal digits.
        node: This node's address.
        runs: The runs this node takes part in, by name or id.
        state: What the coordinator said last.
    """

    coordinator: str
    fingerprint: str
    node: str
    runs: tuple[str, ...]
    state: State = "pending"

    def with_state(self, state: State) -> Joined:
        """The same with what the coordinator says now."""
        return replace(self, state=state)


@dataclass(frozen=True)
class Running:
    """How the SuperNode of a running membership fares.

    Attributes:
        pid: The process that keeps it.
        supernode: `starting`, `connected`, `away` while the coordinator does not answer, or
            `stopped` between two attempts.
        since: When that began, seconds since 1970.
        reason: Why, in one line; empty while all is well.
    """

    pid: int
    supernode: Literal["starting", "connected", "away", "stopped"]
    since: int
    reason: str = ""


@dataclass(frozen=True)
class Membership:
    """The paths of a membership, and its small files.

    Attributes:
        folder: The folder, absolute: processes with another working directory read it too.
    """

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Membership:
        """Take a folder, and make it if it is not there.

        Raises:
            ResourceExhausted: If it cannot be made.
        """
        folder = folder.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        except OSError as error:
            raise unwritable(folder, error) from error
        return cls(folder)

    @property
    def ca(self) -> Path:
        """The certificate of the coordinator's authority."""
        return self.folder / "ca.pem"

    @property
    def policy(self) -> Path:
        """What this node answers."""
        return self.folder / "policy.toml"

    @property
    def key(self) -> Path:
        """The SuperNode's private key."""
        return self.folder / "supernode.key"

    @property
    def secret(self) -> Path:
        """What the executor and the SuperNode share."""
        return self.folder / "executor.secret"

    @property
    def flower_home(self) -> Path:
        """Where Flower keeps what it keeps."""
        return self.folder / "flwr-home"

    # -------------------------------------------------------------- which coordinator

    def joined(self) -> Joined | None:
        """Which coordinator this folder belongs to; None if it belongs to none yet.

        Raises:
            ConfigurationError: If the file is damaged.
        """
        values = self._read("joined.json")
        if values is None:
            return None
        try:
            return _joined(values)
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged("joined.json") from error

    def remember(self, joined: Joined) -> None:
        """Write it down.

        Raises:
            ResourceExhausted: If it cannot be written.
        """
        self._write("joined.json", asdict(joined))

    # -------------------------------------------------------------- secrets

    def make_secrets(self) -> None:
        """Make the SuperNode's key and the executor's secret, unless they are there.

        Raises:
            KeyOrSignatureError: If one is there that others may read.
            ResourceExhausted: If one cannot be written.
        """
        if not self.key.exists():
            # Each request carries the key and a signature, every few seconds: P-384, which Flower
            # recommends, makes every one of them about 90 bytes larger.
            private = ec.generate_private_key(ec.SECP256R1())
            data = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
            atomic_write(self.key, data, mode=FILE_MODE)
        require_private(self.key)
        public = self.key.with_suffix(".pub")
        if not public.exists():
            atomic_write(public, self.supernode_public_key().encode() + b"\n")
        if not self.secret.exists():
            atomic_write(self.secret, secrets.token_hex(SECRET_BYTES).encode(), mode=FILE_MODE)
        require_private(self.secret)

    def supernode_public_key(self) -> str:
        """The public half of the SuperNode's key, as OpenSSH writes it.

        Raises:
            KeyOrSignatureError: If the key cannot be read.
        """
        try:
            private = load_ssh_private_key(self.key.read_bytes(), None)
            if not isinstance(private, ec.EllipticCurvePrivateKey):
                raise ValueError("it is no key on an elliptic curve")
        except (OSError, ValueError) as error:
            raise KeyOrSignatureError(
                f"{self.key} is not a key that a SuperNode can use",
                hint="move it away: the next join makes another, which the coordinator must admit",
            ) from error
        data = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return data.decode()

    def executor_secret(self) -> bytes:
        """What the executor and the SuperNode share.

        Raises:
            KeyOrSignatureError: If it is missing, empty, or readable by others.
        """
        require_private(self.secret)
        secret = self.secret.read_bytes()
        if not secret:
            raise KeyOrSignatureError(f"{self.secret} is empty", hint="remove it, and join again")
        return secret

    # -------------------------------------------------------------- whether it runs

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process from running the same membership.

        Raises:
            ConfigurationError: If one does.
            ResourceExhausted: If the folder cannot be written.
        """
        with self._lock_file() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigurationError(
                    f"the membership in {self.folder} is running already",
                    hint="'genkd-node status' shows it; end it before starting it again",
                ) from error
            yield

    def is_running(self) -> bool:
        """Whether a process runs this membership."""
        try:
            with (self.folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def running(self) -> Running | None:
        """How the SuperNode fares; None if nothing runs."""
        if not self.is_running():
            return None
        with contextlib.suppress(ConfigurationError, TypeError):
            if (values := self._read("running.json")) is not None:
                return Running(**values)  # type: ignore[arg-type]  # our own file
        return None

    def note(self, running: Running) -> None:
        """Write down how the SuperNode fares.

        Raises:
            ResourceExhausted: If it cannot be written.
        """
        self._write("running.json", asdict(running))

    def supernode_number(self) -> int | None:
        """The number by which the SuperLink knows this node; None before it was connected."""
        with contextlib.suppress(ConfigurationError, KeyError, ValueError):
            if (values := self._read("supernode.json")) is not None:
                return int(str(values["number"]))
        return None

    def note_supernode_number(self, number: int) -> None:
        """Write that number down.

        Raises:
            ResourceExhausted: If it cannot be written.
        """
        if self.supernode_number() != number:
            # Such numbers go beyond what JSON reads exactly.
            self._write("supernode.json", {"number": str(number)})

    def _lock_file(self) -> IO[bytes]:
        path = self.folder / "lock"
        try:
            return path.open("ab")
        except OSError as error:
            raise unwritable(path, error) from error

    # -------------------------------------------------------------- small files

    def _read(self, name: str) -> dict[str, object] | None:
        try:
            with (self.folder / name).open("rb") as file:
                value = parse_json(file.read(MAX_STATE_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._damaged(name) from error
        if not isinstance(value, dict):
            raise self._damaged(name)
        return value

    def _damaged(self, name: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.folder / name} is damaged",
            hint="move the membership's folder away, and join again",
        )

    def _write(self, name: str, values: dict[str, object]) -> None:
        atomic_write(self.folder / name, canonical_json(values))


def _joined(values: dict[str, object]) -> Joined:
    runs, state = values["runs"], values["state"]
    if not isinstance(runs, list) or state not in ("pending", "admitted", "refused"):
        raise ValueError("not what join writes")
    texts = [values[name] for name in ("coordinator", "fingerprint", "node")]
    coordinator, fingerprint, node = (text for text in texts if isinstance(text, str))
    return Joined(coordinator, fingerprint, node, tuple(map(str, runs)), state)
