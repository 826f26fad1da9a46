"""A node's key folder: never overwritten, never readable by others, never half-written."""

from __future__ import annotations

import base64
import json
import os
import pickle
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from genkd.errors import InputFileRefused, KeyOrSignatureError, ResourceExhausted
from genkd.provenance import keys as keys_module
from genkd.provenance.keys import KeyFolder
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.passphrase import Passphrase, find_passphrase, read_passphrase_file
from genkd.provenance.profile import NodeProfile, make_profile, pem_of, read_profile
from genkd.provenance.record import TeacherMessage, key_hash
from genkd.provenance.secp256k1 import address_of, recover_address
from genkd.provenance.typed_data import Domain

PASSPHRASE = Passphrase("correct horse battery")
DOMAIN = Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3")

pytestmark = pytest.mark.usefixtures("cheap_scrypt")


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return KeyFolder(tmp_path / "keys")


def files_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_init_makes_a_profile_that_both_keys_signed(folder: KeyFolder) -> None:
    profile = folder.create(PASSPHRASE)
    profile.check()
    keys = folder.unlock(PASSPHRASE)
    assert keys.address == profile.node
    assert folder.profile() == profile
    message = TeacherMessage(bytes(32), keys.address, 1)
    signature = keys.sign(message, DOMAIN)
    assert recover_address(message.digest(DOMAIN), signature) == profile.node
    assert folder.public_key_path().read_text() == profile.signing_key


def test_init_twice_never_overwrites(folder: KeyFolder) -> None:
    folder.create(PASSPHRASE)
    before = files_of(folder.path)
    with pytest.raises(KeyOrSignatureError, match="never overwritten"):
        folder.create(Passphrase("another passphrase"))
    assert files_of(folder.path) == before


def test_one_salt_a_teacher_however_many_ask_at_once(
    folder: KeyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = folder.create(PASSPHRASE).node
    write = keys_module.atomic_write

    def slowly(path: Path, data: bytes, *, mode: int) -> None:
        time.sleep(0.2)  # so that each would look before another has written
        write(path, data, mode=mode)

    monkeypatch.setattr(keys_module, "atomic_write", slowly)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(folder.teacher_salt, address, bytes(32)) for _ in range(3)]
        salts = {one.result() for one in asked}
    assert salts == {folder.teacher_salt(address, bytes(32))}


def test_only_the_owner_can_read_the_files(folder: KeyFolder) -> None:
    umask = os.umask(0)
    try:
        folder.create(PASSPHRASE)
    finally:
        os.umask(umask)
    for path in [folder.path, *folder.path.rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


@pytest.mark.parametrize("name", ["ethereum.json", "signing.pem"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_can_read_is_refused(name: str, mode: int, folder: KeyFolder) -> None:
    profile = folder.create(PASSPHRASE)
    (folder.path / profile.node / name).chmod(mode)
    with pytest.raises(KeyOrSignatureError, match="other users"):
        folder.unlock(PASSPHRASE)


def test_a_folder_that_others_can_enter_is_refused(folder: KeyFolder) -> None:
    folder.create(PASSPHRASE)
    folder.path.chmod(0o755)
    with pytest.raises(KeyOrSignatureError, match="other users"):
        folder.unlock(PASSPHRASE)


def test_keys_are_not_made_in_a_folder_that_others_can_enter(folder: KeyFolder) -> None:
    folder.path.mkdir(mode=0o755)
    folder.path.chmod(0o755)
    with pytest.raises(KeyOrSignatureError, match="other users"):
        folder.create(PASSPHRASE)
    assert files_of(folder.path) == {}


def test_without_keys_the_hint_is_init(folder: KeyFolder) -> None:
    with pytest.raises(KeyOrSignatureError) as caught:
        folder.unlock(PASSPHRASE)
    assert "genkd-node init" in caught.value.hint


def test_a_short_passphrase_is_refused_for_new_keys(folder: KeyFolder) -> None:
    with pytest.raises(KeyOrSignatureError, match="fewer than 8"):
        folder.create(Passphrase("short"))
    assert not folder.path.exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceExhausted):
        KeyFolder(tmp_path / "file" / "keys").create(PASSPHRASE)


@pytest.mark.parametrize("step", range(8))
def test_init_killed_anywhere_can_be_repeated(
    step: int, folder: KeyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill is an exception at the n-th durable write."""
    calls = 0
    write = keys_module.atomic_write

    def dying_write(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        if calls > step:
            raise KeyboardInterrupt
        write(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(keys_module, "atomic_write", dying_write)
    try:
        folder.create(PASSPHRASE)
        killed = False
    except KeyboardInterrupt:
        killed = True
    monkeypatch.setattr(keys_module, "atomic_write", write)
    assert killed == (step < 6)
    if killed:
        folder.create(PASSPHRASE)
    assert folder.unlock(PASSPHRASE).address == folder.profile().node


# --- rotation ---


def test_rotation_takes_the_next_key_and_makes_one_after_it(folder: KeyFolder) -> None:
    old = folder.create(PASSPHRASE)
    new = folder.prepare_rotation(PASSPHRASE)
    assert key_hash(new.address) == old.message.next_key_hash
    assert new.profile.message.next_key_hash != old.message.next_key_hash
    assert new.profile.message.signing_key != old.message.signing_key
    assert folder.unlock(PASSPHRASE).address == old.node, "nothing changes before the switch"
    folder.switch_to(new.address)
    assert folder.unlock(PASSPHRASE).address == new.address
    assert folder.unlock(PASSPHRASE, old.node).address == old.node, "the old keys are kept"


def test_rotation_repeated_before_the_switch_gives_the_same_keys(folder: KeyFolder) -> None:
    folder.create(PASSPHRASE)
    first = folder.prepare_rotation(PASSPHRASE)
    assert folder.prepare_rotation(PASSPHRASE).profile == first.profile


def test_rotation_needs_the_next_key_wherever_it_is_kept(tmp_path: Path) -> None:
    folder, stick = KeyFolder(tmp_path / "keys"), tmp_path / "stick"
    folder.create(PASSPHRASE, next_folder=stick)
    assert not (folder.path / "next").exists()
    with pytest.raises(KeyOrSignatureError, match="next key"):
        folder.prepare_rotation(PASSPHRASE)
    new = folder.prepare_rotation(PASSPHRASE, next_folder=stick)
    folder.switch_to(new.address)
    assert folder.prepare_rotation(PASSPHRASE, next_folder=stick).address != new.address


def test_a_thief_who_puts_in_his_own_next_key_is_refused(folder: KeyFolder) -> None:
    folder.create(PASSPHRASE)
    (path,) = (folder.path / "next").iterdir()
    thief = KeyFolder(folder.path.parent / "thief")
    thief.create(PASSPHRASE)
    path.write_bytes((thief.path / thief.profile().node / "ethereum.json").read_bytes())
    with pytest.raises(KeyOrSignatureError, match="not the next key"):
        folder.prepare_rotation(PASSPHRASE)


def test_keys_of_another_profile_are_refused(folder: KeyFolder, tmp_path: Path) -> None:
    profile = folder.create(PASSPHRASE)
    second = KeyFolder(tmp_path / "second")
    other = second.create(PASSPHRASE)
    name = Path(other.node) / "signing.pem"
    (folder.path / profile.node / "signing.pem").write_bytes((second.path / name).read_bytes())
    with pytest.raises(KeyOrSignatureError, match="not the ones of its profile"):
        folder.unlock(PASSPHRASE)


@pytest.mark.parametrize("text", ["", "../../etc", "0x12", "x" * 500, "\x00"])
def test_a_damaged_current_file_is_refused(text: str, folder: KeyFolder) -> None:
    folder.create(PASSPHRASE)
    (folder.path / "current").write_text(text)
    with pytest.raises(KeyOrSignatureError):
        folder.unlock(PASSPHRASE)


# --- secrets stay secret ---


def test_no_secret_is_printed_or_pickled(folder: KeyFolder) -> None:
    folder.create(PASSPHRASE)
    keys = folder.unlock(PASSPHRASE)
    for thing in (keys, PASSPHRASE):
        assert "horse" not in repr(thing)
        assert str(keys._secret) not in repr(thing)
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(thing)


def test_no_error_shows_the_passphrase(folder: KeyFolder) -> None:
    folder.create(PASSPHRASE)
    with pytest.raises(KeyOrSignatureError) as caught:
        folder.unlock(Passphrase("a wrong guess"))
    shown = f"{caught.value} {caught.value.hint} {caught.value!r} {caught.value.__cause__!r}"
    assert "wrong guess" not in shown
    assert "horse" not in shown


# --- the profile ---


@pytest.fixture
def profile(all_keys: tuple[NodeKeys, ...]) -> NodeProfile:
    return all_keys[0].profile


def test_a_profile_survives_its_file(profile: NodeProfile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile.to_json()))
    assert read_profile(path) == profile


def of_unknown_curve(pem: str) -> str:
    key = serialization.load_pem_public_key(pem.encode())
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    changed = der.replace(bytes.fromhex("06082a8648ce3d030107"), UNKNOWN_CURVE)
    assert changed != der
    text = base64.encodebytes(changed).decode()
    return f"-----BEGIN PUBLIC KEY-----\n{text}-----END PUBLIC KEY-----\n"


P384 = pem_of(ec.derive_private_key(7, ec.SECP384R1()).public_key())
# The object identifier of P-256 with another end: a curve that nobody knows.
UNKNOWN_CURVE = bytes.fromhex("06082a8648ce3d030163")
BAD_PROFILES = {
    "a member missing": lambda p: p.pop("node"),
    "a member more": lambda p: p.update(admin=True),
    "another version": lambda p: p.update(v=2),
    "version true": lambda p: p.update(v=True),
    "an address without checksum": lambda p: p.update(node=p["node"].lower()),
    "no key": lambda p: p.update(signingKey="hello"),
    "a key of another curve": lambda p: p.update(signingKey=P384),
    "a key of an unknown curve": lambda p: p.update(signingKey=of_unknown_curve(p["signingKey"])),
    "a key with spaces": lambda p: p.update(signingKey=p["signingKey"] + "\n"),
    "a key that is a number": lambda p: p.update(signingKey=5),
    "a key of a megabyte": lambda p: p.update(signingKey="x" * 10_000),
    "a short fingerprint": lambda p: p.update(tlsFingerprint="0x12"),
    "one signature": lambda p: p["signatures"].pop("p256"),
    "a signature that is no hex": lambda p: p["signatures"].update(ethereum="0xzz"),
    "another fingerprint": lambda p: p.update(tlsFingerprint="0x" + "1" * 64),
    "another next key": lambda p: p.update(nextKeyHash="0x" + "1" * 64),
    "a damaged signature": lambda p: p["signatures"].update(p256="0x3006020101020101"),
}


@pytest.mark.parametrize("change", BAD_PROFILES.values(), ids=BAD_PROFILES)
def test_a_profile_that_is_altered_is_refused(
    change: object, profile: NodeProfile, tmp_path: Path
) -> None:
    value = profile.to_json()
    change(value)  # type: ignore[operator]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(value))
    with pytest.raises((InputFileRefused, KeyOrSignatureError)):
        read_profile(path)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 9000, b" " * 2**20])
def test_what_is_no_profile_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(data)
    with pytest.raises(InputFileRefused):
        read_profile(path)


def test_a_missing_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileRefused):
        read_profile(tmp_path / "profile.json")


def test_profiles_of_two_nodes_cannot_be_spliced(all_keys: tuple[NodeKeys, ...]) -> None:
    """The P-256 half of one node and the Ethereum half of another."""
    a, b = all_keys[0].profile, all_keys[1].profile
    spliced = NodeProfile(b.signing_key, a.message, a.ethereum_signature, b.p256_signature)
    with pytest.raises(KeyOrSignatureError, match="names another"):
        spliced.check()


def test_a_profile_is_made_alike_every_time(all_keys: tuple[NodeKeys, ...]) -> None:
    keys = all_keys[0]
    next_key = key_hash(address_of(keys._secret + 1))
    assert make_profile(keys._secret, keys._signing_key, bytes(32), next_key) == keys.profile


# --- the passphrase ---


def test_a_passphrase_file_holds_one_line(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    for data in (b"correct horse", b"correct horse\n", b"correct horse\r\n"):
        path.write_bytes(data)
        path.chmod(0o600)
        assert read_passphrase_file(path).reveal() == b"correct horse"


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"two\nlines", b"x" * 2000], ids=["empty", "newline", "lines", "long"]
)
def test_what_is_no_passphrase_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(KeyOrSignatureError):
        read_passphrase_file(path)


def test_a_passphrase_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(b"correct horse")
    path.chmod(0o644)
    with pytest.raises(KeyOrSignatureError, match="other users"):
        read_passphrase_file(path)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_passphrase_file_that_is_none_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(KeyOrSignatureError):
        read_passphrase_file(tmp_path / "missing" if kind == "missing" else tmp_path)


def test_without_file_and_terminal_the_hint_is_the_variable() -> None:
    with pytest.raises(KeyOrSignatureError) as caught:
        find_passphrase(None, ask=True)
    assert "GENKD_KEY_PASSWORD_FILE" in caught.value.hint


def test_a_person_is_asked_twice_for_a_new_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["correct horse", "correct horse", "correct horse", "correct house"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: answers.pop(0))
    assert find_passphrase(None, ask=True, confirm=True).reveal() == b"correct horse"
    with pytest.raises(KeyOrSignatureError, match="differ"):
        find_passphrase(None, ask=True, confirm=True)
