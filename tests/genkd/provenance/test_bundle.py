"""model.sig: the stock tool of OpenSSF Model Signing accepts it, and refuses what was altered."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.v1.statement import Statement as InTotoStatement

from genkd.provenance import verify
from genkd.provenance.verification import Outcome

Workshop = Any  # conftest.Workshop


@pytest.fixture
def release(workshop: Workshop) -> Path:
    """A release whose receipt was completed after signing, as publishing does."""
    path: Path = workshop.publish()
    return path


@pytest.fixture
def public_key(workshop: Workshop, tmp_path: Path) -> Path:
    path = tmp_path / "signing.pub.pem"
    path.write_text(workshop.node.profile.signing_key)
    return path


def stock_tool(release: Path, public_key: Path) -> subprocess.CompletedProcess[str]:
    """`model_signing verify key`, as a stranger runs it."""
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(release)]
    options = ["--signature", str(release / "model.sig"), "--public_key", str(public_key)]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


def test_the_stock_tool_accepts_a_release(release: Path, public_key: Path) -> None:
    done = stock_tool(release, public_key)
    assert done.returncode == 0, done.stderr
    assert "Verification succeeded" in done.stdout


def flip_a_bit(release: Path) -> None:
    data = bytearray((release / "student.safetensors").read_bytes())
    data[-1] ^= 1
    (release / "student.safetensors").write_bytes(data)


def alter_the_statement(release: Path) -> None:
    data = (release / "provenance.json").read_bytes()
    (release / "provenance.json").write_bytes(data.replace(b"0.81", b"0.99"))


def add_a_file(release: Path) -> None:
    (release / "README.md").write_text("trust me")


def remove_a_file(release: Path) -> None:
    (release / "provenance.json").unlink()


SPOILERS = [flip_a_bit, alter_the_statement, add_a_file, remove_a_file]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_the_stock_tool_refuses_an_altered_release(
    spoil: Callable[[Path], None], release: Path, public_key: Path
) -> None:
    verify_with_its_api(release, public_key)
    spoil(release)
    done = stock_tool(release, public_key)
    assert done.returncode == 1
    assert "Verification failed" in done.stderr
    with pytest.raises(ValueError, match=r"mismatch|Extra|Missing"):
        verify_with_its_api(release, public_key)
    ours = verify(release)
    assert ours.failed is not None


def test_the_stock_tool_refuses_another_nodes_key(
    workshop: Workshop, release: Path, public_key: Path
) -> None:
    public_key.write_text(workshop.other.profile.signing_key)
    with pytest.raises(ValueError, match="Key mismatch"):
        verify_with_its_api(release, public_key)


def verify_with_its_api(release: Path, public_key: Path) -> None:
    import model_signing

    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    config.verify(release, release / "model.sig")


def test_a_bundle_of_the_stock_tool_is_of_another_spelling(
    workshop: Workshop, release: Path, tmp_path: Path
) -> None:
    """What it signs it spells in its own way: a release is signed by its node's `publish`."""
    from cryptography.hazmat.primitives import serialization

    key = tmp_path / "signing.pem"
    key.write_bytes(
        workshop.node._signing_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    import model_signing

    hashing = model_signing.hashing.Config().set_ignored_paths(
        paths=["model.sig", "receipt.json"], ignore_git_paths=False
    )
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=key)
    config.set_hashing_config(hashing).sign(release, release / "model.sig")
    failed = verify(release).failed
    assert failed is not None
    assert failed.number == 3


def payload_of(release: Path) -> dict[str, Any]:
    bundle = json.loads((release / "model.sig").read_bytes())
    payload: dict[str, Any] = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return payload


@pytest.mark.parametrize("which", ["model.sig", "provenance.json"])
def test_both_statements_are_valid_in_toto(which: str, release: Path) -> None:
    value = (
        payload_of(release)
        if which == "model.sig"
        else json.loads((release / "provenance.json").read_bytes())
    )
    statement = InTotoStatement([], "", {})
    json_format.ParseDict(value, statement.pb)
    statement.validate()


def test_signing_the_same_files_gives_the_same_bytes(workshop: Workshop, tmp_path: Path) -> None:
    draft = workshop.draft()
    from genkd.provenance.draft import build_release

    one, two = (build_release(tmp_path / f, draft, workshop.node) for f in ("one", "two"))
    assert one.name == two.name
    for name in ("student.safetensors", "provenance.json", "model.sig", "receipt.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_release_is_signed_without_a_chain(release: Path) -> None:
    assert [check.outcome for check in verify(release).checks[1:6]] == [Outcome.PASSED] * 5
