"""The published vectors are what the code makes today, and they hold against other libraries."""

from __future__ import annotations

import base64
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data

from genkd.errors import KeyOrSignatureError
from genkd.provenance import verify
from genkd.provenance.profile import NodeProfile
from genkd.provenance.secp256k1 import recover_address

HERE = Path(__file__).parent
VECTORS: dict[str, Any] = json.loads((HERE / "vectors.json").read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    names = [folder / "vectors.json", *folder.glob("student-0x*/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


def test_the_generator_writes_what_is_published(tmp_path: Path) -> None:
    runpy.run_path(str(HERE / "generate.py"))["generate"](tmp_path)
    assert files_of(tmp_path) == files_of(HERE)


@pytest.mark.parametrize("vector", VECTORS["typedData"], ids=lambda v: v["type"].partition("(")[0])
def test_another_library_recovers_the_signer(vector: dict[str, Any]) -> None:
    name, _, members = vector["type"][:-1].partition("(")
    types = {
        name: [
            {"type": kind, "name": member}
            for kind, member in (one.split(" ") for one in members.split(","))
        ]
    }
    domain = {
        "name": "GenKD",
        "version": "1",
        "chainId": VECTORS["domain"]["chainId"],
        "verifyingContract": VECTORS["domain"]["registry"],
    }
    message = encode_typed_data(domain, types, vector["message"])
    found = Account.recover_message(message, signature=vector["signature"])
    assert found == VECTORS["keys"]["address"]


@pytest.mark.parametrize("vector", VECTORS["typedData"], ids=lambda v: v["type"].partition("(")[0])
def test_what_must_be_refused_is_refused(vector: dict[str, Any]) -> None:
    digest = bytes.fromhex(vector["digest"][2:])
    twin, other = (bytes.fromhex(one[2:]) for one in vector["refuse"].values())
    with pytest.raises(KeyOrSignatureError):
        recover_address(digest, twin)
    assert recover_address(digest, other) != VECTORS["keys"]["address"]


def test_the_release_is_signed_and_not_recorded() -> None:
    verification = verify(HERE / VECTORS["release"]["directory"])
    assert verification.summary.startswith("signed, not recorded")


def test_the_profile_is_genuine() -> None:
    NodeProfile.from_json(VECTORS["profile"]["file"]).check()


def test_the_student_is_the_one_of_the_release_but_for_its_origin() -> None:
    plain = base64.b64decode(VECTORS["tensorRoot"]["file"])
    stamped = (HERE / VECTORS["release"]["directory"] / "student.safetensors").read_bytes()
    assert plain[-48:] == stamped[-48:]
    assert VECTORS["release"]["record"]["tensorRoot"] == "0x" + VECTORS["tensorRoot"]["tensorRoot"]
