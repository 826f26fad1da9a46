"""Forged, altered, replayed and mixed releases: every one is refused, at the check that should.

Each entry of the table takes a workshop, makes a release, spoils it, and returns its path. Some are
the attacker's, an enrolled node with keys of its own: its releases are valid as such, so what is
tested is that nothing of another node can be passed off.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genkd.canonical import canonical_json
from genkd.digest import sha256_bytes, tensor_root
from genkd.provenance import Policy, verify
from genkd.provenance.bundle import (
    directory_statement,
    pre_authentication_encoding,
    sign_directory,
)
from genkd.provenance.merkle import MerkleTree, leaf_hash, verify_proof
from genkd.provenance.origin import Origin, stamp
from genkd.provenance.profile import NodeProfile
from genkd.provenance.receipt import Receipt
from genkd.provenance.record import Revocation, parents_root
from genkd.provenance.release import directory_name
from genkd.provenance.secp256k1 import N, sign_digest
from genkd.provenance.statement import Statement
from genkd.provenance.typed_data import Domain, keccak256
from genkd.provenance.verification import Status

Workshop = Any  # conftest.Workshop
Forgery = Callable[[Workshop], Path]
TABLE: dict[str, tuple[Forgery, int]] = {}


def forgery(number: int) -> Callable[[Forgery], Forgery]:
    """Enter a function into the table with the number of the check that must refuse it."""

    def enter(make: Forgery) -> Forgery:
        TABLE[make.__name__] = (make, number)
        return make

    return enter


def edit(path: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    data = (path / name).read_bytes()
    changed = change(data)
    assert changed != data
    (path / name).write_bytes(changed)
    return path


def flip(position: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= 1
        return bytes(changed)

    return change


def edit_json(path: Path, name: str, change: Callable[[Any], object]) -> Path:
    """Change parsed JSON in place and write it canonically."""

    def rewrite(data: bytes) -> bytes:
        value = json.loads(data)
        change(value)
        return canonical_json(value)

    return edit(path, name, rewrite)


def resign(w: Workshop, path: Path, keys: Any = None, **changes: object) -> Path:
    """Change the record, sign it anew with `keys` or not at all, and rename the directory."""
    receipt = w.receipt(path)
    record = replace(receipt.record, **changes)
    signature = receipt.signature if keys is None else keys.sign(record, receipt.domain)
    w.rewrite(path, replace(receipt, record=record, signature=signature))
    return w.rename(path)


def rebundle(w: Workshop, path: Path, keys: Any) -> Path:
    """Sign the directory anew."""
    digests = {
        name: sha256_bytes((path / name).read_bytes())
        for name in ("student.safetensors", "provenance.json")
    }
    name = directory_name(w.receipt(path).record_id())
    (path / "model.sig").write_bytes(sign_directory(name, digests, keys))
    return path


def swap_student(w: Workshop, path: Path, student: bytes, keys: Any = None) -> Path:
    """Put in another student and re-sign all that `keys`, an attacker who stole them, can."""
    (path / "student.safetensors").write_bytes(student)
    if keys is None:
        return path
    file_hash, root = bytes.fromhex(sha256_bytes(student)), bytes.fromhex(tensor_root(student))
    return resign_statement(w, path, keys, file_hash=file_hash, tensor_root=root)


def resign_statement(
    w: Workshop, path: Path, keys: Any, *, statement: object = None, **changes: object
) -> Path:
    """Change record and statement, and sign everything anew and consistently."""
    data = (path / "provenance.json").read_bytes()
    if statement is None:
        new = replace(Statement.from_bytes(data), **changes).to_bytes()
    else:
        new = statement(data)  # type: ignore[operator]
    (path / "provenance.json").write_bytes(new)
    in_record = {k: v for k, v in changes.items() if k not in ("parents", "profile_hash")}
    if "parents" in changes:
        in_record["parents_root"] = parents_root(changes["parents"])  # type: ignore[arg-type]
    metadata_hash = bytes.fromhex(sha256_bytes(new))
    path = resign(w, path, keys, metadata_hash=metadata_hash, **in_record)
    return rebundle(w, path, keys)


# --- 1: the files ---


@forgery(1)
def a_file_added(w: Workshop) -> Path:
    path = w.publish()
    (path / "README.md").write_text("trust me")
    return path


@forgery(1)
def a_hidden_file_added(w: Workshop) -> Path:
    path = w.publish()
    (path / ".gitattributes").write_text("")
    return path


@forgery(1)
def a_folder_added(w: Workshop) -> Path:
    path = w.publish()
    (path / "weights").mkdir()
    return path


def _without(name: str) -> Forgery:
    def make(w: Workshop) -> Path:
        path = w.publish()
        (path / name).unlink()
        return path

    make.__name__ = f"{name.replace('.', '_')}_removed"
    return make


for _name in ("student.safetensors", "provenance.json", "model.sig", "receipt.json"):
    forgery(1)(_without(_name))


@forgery(1)
def student_is_a_link_to_the_genuine_one(w: Workshop) -> Path:
    path = w.publish()
    kept = w.folder / "kept.safetensors"
    shutil.move(path / "student.safetensors", kept)
    (path / "student.safetensors").symlink_to(kept)
    return path


@forgery(1)
def student_is_a_pipe_that_never_answers(w: Workshop) -> Path:
    path = w.publish()
    (path / "student.safetensors").unlink()
    os.mkfifo(path / "student.safetensors")
    return path


@forgery(1)
def student_truncated(w: Workshop) -> Path:
    return edit(w.publish(), "student.safetensors", lambda data: data[:-4])


@forgery(1)
def student_lengthened(w: Workshop) -> Path:
    return edit(w.publish(), "student.safetensors", lambda data: data + b"\0")


@forgery(1)
def student_emptied(w: Workshop) -> Path:
    return edit(w.publish(), "student.safetensors", lambda data: b"")


@forgery(1)
def student_replaced_by_a_pickle(w: Workshop) -> Path:
    return edit(w.publish(), "student.safetensors", lambda data: b"\x80\x04cos\nsystem\n.")


@forgery(1)
def student_header_length_flipped(w: Workshop) -> Path:
    return edit(w.publish(), "student.safetensors", flip(0))


@forgery(1)
def student_with_a_key_twice(w: Workshop) -> Path:
    def change(data: bytes) -> bytes:
        header = data[8 : 8 + int.from_bytes(data[:8], "little")].rstrip()
        entry = header[header.index(b'"fc.weight"') : -1]
        header = header[:-1] + b"," + entry + b"}"
        return struct.pack("<Q", len(header)) + header + data[-48:]

    return edit(w.publish(), "student.safetensors", change)


@forgery(1)
def student_with_values_that_are_not_finite(w: Workshop) -> Path:
    path = w.publish()
    values = np.full((4, 3), np.nan, dtype="<f4").tobytes()
    return edit(path, "student.safetensors", lambda data: data[: -len(values)] + values)


@forgery(1)
def student_that_does_not_say_where_it_is_from(w: Workshop) -> Path:
    path = w.publish()
    (path / "student.safetensors").write_bytes(w.draft().student)
    return path


@forgery(1)
def receipt_that_is_not_json(w: Workshop) -> Path:
    return edit(w.publish(), "receipt.json", lambda data: data[:-1])


@forgery(1)
def receipt_with_a_key_twice(w: Workshop) -> Path:
    return edit(w.publish(), "receipt.json", lambda data: data[:-1] + b',"v":1}')


@forgery(1)
def receipt_with_spaces(w: Workshop) -> Path:
    return edit(w.publish(), "receipt.json", lambda data: data + b"\n")


@forgery(1)
def receipt_with_an_unknown_member(w: Workshop) -> Path:
    return edit_json(w.publish(), "receipt.json", lambda r: r.update(trusted=True))


@forgery(1)
def receipt_of_an_unknown_version(w: Workshop) -> Path:
    return edit_json(w.publish(), "receipt.json", lambda r: r.update(v=2))


@forgery(1)
def receipt_of_a_megabyte(w: Workshop) -> Path:
    return edit(w.publish(), "receipt.json", lambda data: data + b" " * 2**20)


@forgery(1)
def receipt_nested_deeply(w: Workshop) -> Path:
    return edit(w.publish(), "receipt.json", lambda data: b"[" * 60_000)


@forgery(1)
def receipt_with_a_record_id_of_another_record(w: Workshop) -> Path:
    return edit_json(w.publish(), "receipt.json", lambda r: r.update(recordId="0x" + "1" * 64))


@forgery(1)
def receipt_with_an_address_of_another_spelling(w: Workshop) -> Path:
    lower = w.node.address.lower()
    return edit_json(w.publish(), "receipt.json", lambda r: r["record"].update(node=lower))


@forgery(1)
def receipt_with_a_negative_round(w: Workshop) -> Path:
    return edit_json(w.publish(), "receipt.json", lambda r: r["record"].update(round=-1))


@forgery(1)
def receipt_with_a_truth_value_for_a_number(w: Workshop) -> Path:
    return edit_json(w.publish(), "receipt.json", lambda r: r["record"].update(round=True))


# --- 2: the hashes ---


@forgery(2)
def tensor_bit_flipped(w: Workshop) -> Path:
    return edit(w.publish(), "student.safetensors", flip(-1))


@forgery(2)
def student_of_another_release_of_the_node(w: Workshop) -> Path:
    path, second = w.publish(), w.publish()
    shutil.copy(second / "student.safetensors", path)
    return path


@forgery(2)
def student_of_another_node(w: Workshop) -> Path:
    path, second = w.publish(), w.publish(w.other)
    shutil.copy(second / "student.safetensors", path)
    return path


@forgery(2)
def student_with_another_header(w: Workshop) -> Path:
    path = w.publish()
    data = (path / "student.safetensors").read_bytes()
    origin = Origin(w.chain.domain, w.node.address, keccak256(b"run"), 2)
    (path / "student.safetensors").write_bytes(stamp(data, origin))
    return path


@forgery(2)
def bare_file_that_only_resembles_the_release_beside_it(w: Workshop) -> Path:
    path = w.publish()
    data = (path / "student.safetensors").read_bytes()
    origin = Origin(w.chain.domain, w.other.address, keccak256(b"run"), 1)
    bare = w.folder / "bare.safetensors"
    bare.write_bytes(stamp(data, origin))
    return bare


@forgery(2)
def record_changed_to_the_hash_of_another_file(w: Workshop) -> Path:
    return resign(w, w.publish(), file_hash=keccak256(b"another"))


@forgery(2)
def record_changed_to_another_tensor_root(w: Workshop) -> Path:
    return resign(w, w.publish(), w.node, tensor_root=keccak256(b"another"))


# --- 3: the bundle and the profile ---


def edit_bundle(path: Path, change: Callable[[Any], object]) -> Path:
    return edit_json(path, "model.sig", change)


@forgery(3)
def bundle_signature_bit_flipped(w: Workshop) -> Path:
    def change(bundle: Any) -> None:
        signature = bundle["dsseEnvelope"]["signatures"][0]
        raw = bytearray(base64.b64decode(signature["sig"]))
        raw[-1] ^= 1
        signature["sig"] = base64.b64encode(raw).decode()

    return edit_bundle(w.publish(), change)


def _payload(bundle: Any, change: Callable[[bytes], bytes]) -> None:
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(change(payload)).decode()


@forgery(3)
def bundle_payload_bit_flipped(w: Workshop) -> Path:
    return edit_bundle(w.publish(), lambda bundle: _payload(bundle, flip(40)))


@forgery(3)
def bundle_of_another_release(w: Workshop) -> Path:
    path, second = w.publish(), w.publish()
    shutil.copy(second / "model.sig", path)
    return path


@forgery(3)
def bundle_signed_by_another_node(w: Workshop) -> Path:
    return rebundle(w, w.publish(), w.other)


@forgery(3)
def bundle_signed_by_another_node_under_the_nodes_name(w: Workshop) -> Path:
    path = rebundle(w, w.publish(), w.other)
    name = w.node.profile.message.signing_key.hex()
    return edit_bundle(path, lambda b: b["verificationMaterial"].update(publicKey={"hint": name}))


@forgery(3)
def bundle_with_a_second_signature(w: Workshop) -> Path:
    def change(bundle: Any) -> None:
        bundle["dsseEnvelope"]["signatures"] *= 2

    return edit_bundle(w.publish(), change)


@forgery(3)
def bundle_without_a_signature(w: Workshop) -> Path:
    return edit_bundle(w.publish(), lambda b: b["dsseEnvelope"].update(signatures=[]))


@forgery(3)
def bundle_of_another_media_type(w: Workshop) -> Path:
    return edit_bundle(w.publish(), lambda b: b.update(mediaType="application/json"))


@forgery(3)
def bundle_with_another_payload_type(w: Workshop) -> Path:
    return edit_bundle(w.publish(), lambda b: b["dsseEnvelope"].update(payloadType="text/plain"))


@forgery(3)
def bundle_without_a_payload(w: Workshop) -> Path:
    return edit_bundle(w.publish(), lambda b: b["dsseEnvelope"].pop("payload"))


@forgery(3)
def bundle_that_is_a_list(w: Workshop) -> Path:
    return edit(w.publish(), "model.sig", lambda data: b"[]")


@forgery(3)
def bundle_with_spaces(w: Workshop) -> Path:
    return edit(w.publish(), "model.sig", lambda data: data.replace(b":", b": "))


def _sign_payload(w: Workshop, path: Path, statement: dict[str, Any]) -> Path:
    """A bundle by the node's own key over a statement it should not have signed."""
    payload = canonical_json(statement)
    signature = w.node.sign_artifact(pre_authentication_encoding(payload))

    def change(bundle: Any) -> None:
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()

    return edit_bundle(path, change)


@forgery(3)
def bundle_that_leaves_the_statement_out(w: Workshop) -> Path:
    path = w.publish()
    digests = {"student.safetensors": sha256_bytes((path / "student.safetensors").read_bytes())}
    return _sign_payload(w, path, directory_statement(path.name, digests))


@forgery(3)
def bundle_that_ignores_the_student(w: Workshop) -> Path:
    path = w.publish()
    digests = {"provenance.json": sha256_bytes((path / "provenance.json").read_bytes())}
    statement: dict[str, Any] = directory_statement(path.name, digests)
    statement["predicate"]["serialization"]["ignore_paths"] += ["student.safetensors"]
    return _sign_payload(w, path, statement)


def edit_profile(w: Workshop, path: Path, change: Callable[[NodeProfile], NodeProfile]) -> Path:
    receipt: Receipt = w.receipt(path)
    w.rewrite(path, replace(receipt, profile=change(receipt.profile)))
    return path


@forgery(3)
def profile_of_another_node(w: Workshop) -> Path:
    return edit_profile(w, w.publish(), lambda profile: w.other.profile)


@forgery(3)
def profile_of_another_node_and_its_bundle(w: Workshop) -> Path:
    path = edit_profile(w, w.publish(), lambda profile: w.other.profile)
    return rebundle(w, path, w.other)


@forgery(3)
def profile_with_the_attackers_signing_key(w: Workshop) -> Path:
    other = w.other.profile

    def change(profile: NodeProfile) -> NodeProfile:
        message = replace(profile.message, signing_key=other.message.signing_key)
        p256 = w.other.sign_artifact(message.profile_hash())
        return NodeProfile(other.signing_key, message, profile.ethereum_signature, p256)

    return rebundle(w, edit_profile(w, w.publish(), change), w.other)


@forgery(3)
def profile_that_claims_anothers_signing_key(w: Workshop) -> Path:
    """The attacker signs, with its Ethereum key, that the node's P-256 key is its own."""
    path = w.publish(w.other)
    message = replace(w.other.profile.message, signing_key=w.node.profile.message.signing_key)
    ethereum = sign_digest(0xB0B, message.profile_hash())

    def change(profile: NodeProfile) -> NodeProfile:
        return NodeProfile(w.node.profile.signing_key, message, ethereum, profile.p256_signature)

    return rebundle(w, edit_profile(w, path, change), w.node)


@forgery(3)
def profile_signature_bit_flipped(w: Workshop) -> Path:
    def change(profile: NodeProfile) -> NodeProfile:
        return replace(profile, p256_signature=flip(-1)(profile.p256_signature))

    return edit_profile(w, w.publish(), change)


@forgery(3)
def profile_with_another_tls_certificate(w: Workshop) -> Path:
    def change(profile: NodeProfile) -> NodeProfile:
        return replace(
            profile, message=replace(profile.message, tls_fingerprint=keccak256(b"mine"))
        )

    return edit_profile(w, w.publish(), change)


# --- 4: the statement ---


@forgery(3)
def statement_with_a_better_figure(w: Workshop) -> Path:
    return edit(w.publish(), "provenance.json", lambda data: data.replace(b"0.81", b"0.99"))


@forgery(4)
def statement_with_a_better_figure_signed_by_the_p256_key(w: Workshop) -> Path:
    path = edit(w.publish(), "provenance.json", lambda data: data.replace(b"0.81", b"0.99"))
    return rebundle(w, path, w.node)


@forgery(4)
def statement_of_another_release(w: Workshop) -> Path:
    path, second = w.publish(), w.publish()
    shutil.copy(second / "provenance.json", path)
    return rebundle(w, path, w.node)


def _odd_statement(name: str, change: Callable[[bytes], bytes]) -> None:
    """A node that signs, consistently, a statement of a form nobody should accept."""

    def make(w: Workshop) -> Path:
        return resign_statement(w, w.sign(), w.node, statement=change)

    make.__name__ = f"statement_{name}"
    forgery(4)(make)


def _add(where: str, text: bytes) -> Callable[[bytes], bytes]:
    anchor = where.encode()
    return lambda data: data.replace(anchor, anchor + text, 1)


_odd_statement("with_an_unknown_field", _add('"predicate":{', b'"extra":1,'))
_odd_statement("with_spaces", lambda data: data + b" ")
_odd_statement("with_a_figure_as_a_number", lambda d: d.replace(b'"0.81"', b"0.81"))
_odd_statement("with_a_figure_that_is_no_number", lambda d: d.replace(b'"0.81"', b'"best"'))
_odd_statement("with_a_path_in_the_recipe", lambda d: d.replace(b'"quick"', b'"/home/me"'))
_odd_statement("of_another_predicate", lambda d: d.replace(b"provenance/v1", b"provenance/v2"))
_odd_statement("of_another_build_type", lambda d: d.replace(b"distillation:1", b"distillation:2"))
_odd_statement("that_is_not_json", lambda d: b"provenance")
_odd_statement("nested_deeply", lambda d: b"[" * 100_000)


def _contradiction(name: str, **changes: object) -> None:
    """A node that signs a statement which says something else than its record."""

    def make(w: Workshop) -> Path:
        path = w.sign()

        def change(data: bytes) -> bytes:
            return replace(Statement.from_bytes(data), **changes).to_bytes()

        return resign_statement(w, path, w.node, statement=change)

    make.__name__ = f"statement_says_another_{name}"
    forgery(4)(make)


_contradiction("file", file_hash=bytes(32))
_contradiction("tensor_root", tensor_root=bytes(32))
_contradiction("teacher", teacher_commitment=bytes(32))
_contradiction("lineage", parents=(bytes(32),))
_contradiction("run", run_id=bytes(32))
_contradiction("round", round=7)
_contradiction("node", node="0x" + "0" * 40)
_contradiction("profile", profile_hash=bytes(32))


# --- 5: the signature ---


@forgery(5)
def record_with_a_later_deadline(w: Workshop) -> Path:
    path = w.publish()
    deadline = w.receipt(path).record.deadline + 10**6
    return rebundle(w, resign(w, path, deadline=deadline), w.node)


def edit_signature(w: Workshop, path: Path, change: Callable[[bytes], bytes]) -> Path:
    receipt = w.receipt(path)
    w.rewrite(path, replace(receipt, signature=change(receipt.signature)))
    return path


@forgery(5)
def signature_bit_flipped(w: Workshop) -> Path:
    return edit_signature(w, w.publish(), flip(10))


@forgery(5)
def signature_high_s_twin(w: Workshop) -> Path:
    def twin(signature: bytes) -> bytes:
        s = N - int.from_bytes(signature[32:64], "big")
        return signature[:32] + s.to_bytes(32, "big") + bytes([27 + 28 - signature[64]])

    return edit_signature(w, w.publish(), twin)


@forgery(5)
def signature_parity_swapped(w: Workshop) -> Path:
    return edit_signature(w, w.publish(), lambda s: s[:64] + bytes([27 + 28 - s[64]]))


@forgery(5)
def signature_compact(w: Workshop) -> Path:
    return edit_signature(w, w.publish(), lambda s: s[:64])


@forgery(5)
def signature_lengthened(w: Workshop) -> Path:
    return edit_signature(w, w.publish(), lambda s: s + b"\0")


@forgery(5)
def signature_of_zeros(w: Workshop) -> Path:
    return edit_signature(w, w.publish(), lambda s: bytes(64) + b"\x1b")


@forgery(5)
def signature_of_another_release(w: Workshop) -> Path:
    path, second = w.publish(), w.publish()
    return edit_signature(w, path, lambda s: w.receipt(second).signature)


@forgery(5)
def signature_of_another_node(w: Workshop) -> Path:
    path = w.publish()
    record = w.receipt(path).record
    return edit_signature(w, path, lambda s: w.other.sign(record, w.chain.domain))


@forgery(5)
def replayed_from_another_chain(w: Workshop) -> Path:
    return w.sign(domain=replace(w.chain.domain, chain_id=1))


@forgery(5)
def replayed_from_another_registry(w: Workshop) -> Path:
    return w.sign(domain=Domain(31337, "0x" + "12" * 20))


@forgery(3)
def replayed_from_another_registry_with_the_domain_rewritten(w: Workshop) -> Path:
    path = w.sign(domain=Domain(31337, "0x" + "12" * 20))
    w.rewrite(path, replace(w.receipt(path), domain=w.chain.domain))
    return w.rename(path)


@forgery(5)
def replayed_from_another_registry_by_a_thief_of_the_p256_key(w: Workshop) -> Path:
    path = w.sign(domain=Domain(31337, "0x" + "12" * 20))
    w.rewrite(path, replace(w.receipt(path), domain=w.chain.domain))
    return rebundle(w, w.rename(path), w.node)


@forgery(5)
def replayed_in_another_round(w: Workshop) -> Path:
    """All but the record says round 1; the thief of the P-256 key cannot sign the record."""
    path = w.publish()
    statement = (path / "provenance.json").read_bytes()
    new = replace(Statement.from_bytes(statement), round=2).to_bytes()
    (path / "provenance.json").write_bytes(new)
    metadata_hash = bytes.fromhex(sha256_bytes(new))
    return rebundle(w, resign(w, path, round=2, metadata_hash=metadata_hash), w.node)


@forgery(5)
def file_that_names_another_round(w: Workshop) -> Path:
    path = w.sign()
    return resign_statement(w, path, w.node, round=2)


@forgery(5)
def copycat_signs_anothers_student_as_its_own(w: Workshop) -> Path:
    """Everything is the copycat's and consistent, but the file names the node it was taken from."""
    student = (w.publish() / "student.safetensors").read_bytes()
    return swap_student(w, w.publish(w.other), student, w.other)


@forgery(5)
def directory_named_after_another_record(w: Workshop) -> Path:
    path, second = w.publish(), w.publish()
    name = second.name
    shutil.rmtree(second)
    return path.rename(w.folder / name)


# --- 7: the record ---


@forgery(7)
def never_recorded(w: Workshop) -> Path:
    return w.sign()


@forgery(7)
def never_recorded_with_the_inclusion_of_another(w: Workshop) -> Path:
    path, second = w.sign(), w.publish()
    w.rewrite(path, replace(w.receipt(path), inclusion=w.receipt(second).inclusion))
    return path


@forgery(7)
def recorded_by_a_thief_after_the_key_was_removed(w: Workshop) -> Path:
    path = w.sign()
    w.chain.remove_node(w.node.address, w.chain.now)
    w.commit_round(path)
    return path


@forgery(7)
def recorded_before_the_theft_was_dated_back(w: Workshop) -> Path:
    stolen = w.chain.now
    w.chain.mine(100)
    path = w.publish()
    w.chain.remove_node(w.node.address, stolen)
    return path


@forgery(7)
def recorded_with_the_old_key_after_rotation(w: Workshop) -> Path:
    path = w.sign()
    w.rotate_node()
    w.commit_round(path)
    return path


@forgery(7)
def recorded_after_its_deadline(w: Workshop) -> Path:
    path = w.sign(deadline=w.chain.now + 10)
    w.chain.mine(100)
    w.commit_round(path)
    return path


@forgery(7)
def recorded_before_the_teacher_was_committed(w: Workshop) -> Path:
    path = w.sign(teacher_commitment=w.commitment(w.node, b"another"))
    w.commit_round(path)
    w.commit_teacher(w.node, b"another")
    return path


@forgery(7)
def recorded_with_the_teacher_of_another_node(w: Workshop) -> Path:
    path = w.sign(teacher_commitment=w.commitment(w.other))
    w.commit_round(path)
    return path


@forgery(7)
def recorded_by_a_node_that_was_never_enrolled(w: Workshop) -> Path:
    path = w.sign(w.coordinator)
    w.commit_round(path)
    return path


@forgery(7)
def recorded_with_a_profile_that_was_not_enrolled(w: Workshop) -> Path:
    path = w.sign(w.node_with_another_signing_key())
    w.commit_round(path)
    return path


@forgery(7)
def proof_of_another_record(w: Workshop) -> Path:
    paths = [w.sign() for _ in range(4)]
    tree = w.commit_round(*paths[:3])
    w.include(paths[3], tree.proof(w.receipt(paths[0]).record_id()))
    return paths[3]


@forgery(7)
def proof_with_a_bit_flipped(w: Workshop) -> Path:
    paths = [w.sign() for _ in range(4)]
    tree = w.commit_round(*paths)
    first, *rest = tree.proof(w.receipt(paths[0]).record_id())
    w.include(paths[0], (flip(0)(first), *rest))
    return paths[0]


@forgery(7)
def proof_cut_short(w: Workshop) -> Path:
    paths = [w.sign() for _ in range(4)]
    tree = w.commit_round(*paths)
    w.include(paths[0], tree.proof(w.receipt(paths[0]).record_id())[:-1])
    return paths[0]


@forgery(7)
def proof_lengthened(w: Workshop) -> Path:
    paths = [w.sign() for _ in range(4)]
    tree = w.commit_round(*paths)
    w.include(paths[0], (*tree.proof(w.receipt(paths[0]).record_id()), bytes(32)))
    return paths[0]


@forgery(7)
def proof_into_the_root_of_another_round(w: Workshop) -> Path:
    path = w.sign(round=2)
    tree = MerkleTree([w.receipt(path).record_id()])
    w.chain.commit_round(keccak256(b"run"), 1, tree.root, w.coordinator)
    w.include(path, ())
    return path


@forgery(7)
def proof_into_the_root_of_an_impostor(w: Workshop) -> Path:
    """A run that somebody else coordinates lends no weight to this one."""
    run = keccak256(b"another run")
    w.chain.open_run(run, w.other.address)
    path = w.sign()
    tree = MerkleTree([w.receipt(path).record_id()])
    w.chain.commit_round(run, 1, tree.root, w.other)
    w.include(path, ())
    return path


@forgery(7)
def inclusion_in_another_transaction(w: Workshop) -> Path:
    path = w.publish()
    inclusion = replace(w.receipt(path).inclusion, transaction=keccak256(b"another"))
    w.rewrite(path, replace(w.receipt(path), inclusion=inclusion))
    return path


@forgery(7)
def inclusion_in_another_block(w: Workshop) -> Path:
    path = w.publish()
    inclusion = replace(w.receipt(path).inclusion, block=2)
    w.rewrite(path, replace(w.receipt(path), inclusion=inclusion))
    return path


@forgery(7)
def inclusion_in_a_block_of_the_future(w: Workshop) -> Path:
    path = w.publish()
    inclusion = replace(w.receipt(path).inclusion, block=10**9)
    w.rewrite(path, replace(w.receipt(path), inclusion=inclusion))
    return path


@forgery(7)
def registered_by_itself_but_said_to_be_in_a_round(w: Workshop) -> Path:
    path = w.publish()
    inclusion = replace(w.receipt(path).inclusion, proof=(bytes(32),))
    w.rewrite(path, replace(w.receipt(path), inclusion=inclusion))
    return path


# --- 8: revocation ---


def revoke(w: Workshop, path: Path, keys: Any) -> Path:
    message = Revocation(w.receipt(path).record_id(), 2, keys.address)
    w.chain.revoke(message, keys.sign(message, w.chain.domain))
    return path


@forgery(8)
def revoked_by_its_node(w: Workshop) -> Path:
    return revoke(w, w.publish(), w.node)


@forgery(8)
def revoked_by_the_owner(w: Workshop) -> Path:
    path = w.publish()
    w.chain.revoke_as_owner(w.receipt(path).record_id(), 1)
    return path


@forgery(8)
def revoked_before_it_was_recorded(w: Workshop) -> Path:
    path = revoke(w, w.sign(), w.node)
    w.commit_round(path)
    return path


@forgery(8)
def revoked_by_the_key_after_rotation(w: Workshop) -> Path:
    path = w.publish()
    return revoke(w, path, w.rotate_node())


# --- 9: the parents ---


def child_of(w: Workshop, *parents: Path) -> Path:
    ids = tuple(w.receipt(path).record_id() for path in parents)
    return w.publish(parents=ids)


@forgery(9)
def parent_revoked(w: Workshop) -> Path:
    parent = w.publish(w.other)
    child = child_of(w, parent)
    revoke(w, parent, w.other)
    return child


@forgery(9)
def parent_revoked_and_its_release_gone(w: Workshop) -> Path:
    parent = w.publish(w.other)
    child = child_of(w, parent)
    revoke(w, parent, w.other)
    shutil.rmtree(parent)
    return child


@forgery(9)
def parent_tampered_with(w: Workshop) -> Path:
    parent = w.publish()
    child = child_of(w, parent)
    edit(parent, "student.safetensors", flip(-1))
    return child


@forgery(9)
def grandparent_tampered_with(w: Workshop) -> Path:
    grandparent = w.publish()
    child = child_of(w, child_of(w, grandparent))
    edit(grandparent, "provenance.json", flip(-10))
    return child


@forgery(9)
def parent_signed_but_never_recorded(w: Workshop) -> Path:
    return child_of(w, w.sign())


@forgery(9)
def parent_recorded_after_its_child(w: Workshop) -> Path:
    parent = w.sign()
    child = child_of(w, parent)
    receipt = w.receipt(parent)
    w.chain.register(receipt.record, receipt.signature)
    return child


@forgery(9)
def parent_replaced_by_another_release(w: Workshop) -> Path:
    parent, impostor = w.publish(), w.publish(w.other)
    child = child_of(w, parent)
    shutil.rmtree(parent)
    shutil.move(impostor, parent)
    return child


# --- the tests ---


@pytest.mark.parametrize("name", TABLE)
def test_a_forgery_is_refused(name: str, workshop: Workshop) -> None:
    make, number = TABLE[name]
    path = make(workshop)
    verification = verify(path, policy=workshop.policy, chain=workshop.chain)
    assert verification.status is Status.NOT_VALID, verification.summary
    assert verification.failed is not None
    assert verification.failed.number == number, verification.summary


@pytest.mark.parametrize("name", [name for name, (_, number) in TABLE.items() if number > 5])
def test_what_the_chain_shows_is_refused_on_a_real_one(name: str, anvil_workshop: Workshop) -> None:
    make, number = TABLE[name]
    path = make(anvil_workshop)
    verification = verify(path, policy=anvil_workshop.policy, chain=anvil_workshop.chain)
    assert verification.failed is not None, verification.summary
    assert verification.failed.number == number, verification.summary


@pytest.mark.parametrize("name", [name for name, (_, number) in TABLE.items() if number <= 5])
def test_what_the_files_alone_show_is_refused_without_a_chain(
    name: str, workshop: Workshop
) -> None:
    make, number = TABLE[name]
    verification = verify(make(workshop), policy=workshop.policy)
    assert verification.failed is not None
    assert verification.failed.number == number


@pytest.mark.parametrize("policy", ["nodes", "run_ids", "architectures"])
def test_an_accepted_set_without_it_refuses_a_valid_release(
    policy: str, workshop: Workshop
) -> None:
    demanding: Policy = replace(workshop.policy, **{policy: frozenset()})
    verification = verify(workshop.publish(), policy=demanding, chain=workshop.chain)
    assert verification.failed is not None
    assert verification.failed.number == 10


def test_the_table_holds_at_least_sixty() -> None:
    assert len(TABLE) >= 60


def test_inner_node_as_leaf_is_refused(workshop: Workshop) -> None:
    """The parent of two leaves, passed off as a record id, does not lead to the root."""
    ids = [workshop.receipt(workshop.sign()).record_id() for _ in range(4)]
    tree = MerkleTree(ids)
    leaves = sorted(leaf_hash(one) for one in ids)
    for pair in (leaves[:2], leaves[2:]):
        inner = keccak256(b"".join(sorted(pair)))
        for proof in ((), *[(keccak256(b"".join(sorted(p))),) for p in (leaves[:2], leaves[2:])]):
            assert not verify_proof(tree.root, inner, proof)


@pytest.mark.parametrize("seed", range(40))
def test_any_flipped_bit_anywhere_is_refused(seed: int, workshop: Workshop) -> None:
    """One bit of one file of a release in a round, chosen by the seed."""
    paths = [workshop.sign() for _ in range(2)]
    workshop.commit_round(*paths)
    random = np.random.default_rng(seed)
    names = sorted(os.listdir(paths[0]))
    name = names[seed % len(names)]
    data = bytearray((paths[0] / name).read_bytes())
    data[random.integers(len(data))] ^= 1 << int(random.integers(8))
    (paths[0] / name).write_bytes(data)
    verification = verify(paths[0], policy=workshop.policy, chain=workshop.chain)
    assert verification.status is Status.NOT_VALID
