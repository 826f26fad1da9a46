"""The committed artifact, gas snapshot and Solidity tests are those of the committed sources.

A missing tool is a failure here, not a reason to skip: `make test` installs them all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contracts.artifact import artifact, expected_code, fault_of_code
from genkd.provenance.secp256k1 import address_of
from genkd.provenance.typed_data import Domain

CONTRACTS = Path(__file__).parents[2] / "contracts"
MODULES = CONTRACTS / "node_modules"
HINT = "run `make test`, which installs the contract tools (npm ci in contracts/)"


def tool(name: str) -> Path:
    """The native program of one of Foundry's npm packages."""
    found = sorted((MODULES / "@foundry-rs").glob(f"{name}-*/bin/{name}"))
    assert found, f"{name} is not installed: {HINT}"
    return found[0]


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=CONTRACTS,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def forge_test() -> subprocess.CompletedProcess[str]:
    """All Solidity tests, run once, the gas snapshot compared and not rewritten."""
    return run(tool("forge"), "test", FORGE_SNAPSHOT_CHECK="true", FORGE_SNAPSHOT_EMIT="false")


def test_artifact_is_what_the_sources_compile_to(tmp_path: Path) -> None:
    node = shutil.which("node")
    assert node, f"Node is not installed: {HINT}"
    done = run(node, "compile.cjs", tmp_path / "artifact.json")
    assert done.returncode == 0, f"{done.stderr}\n{HINT}"
    compiled = (tmp_path / "artifact.json").read_bytes()
    committed = (CONTRACTS / "StudentRegistry.json").read_bytes()
    assert compiled == committed, "run `node compile.cjs` in contracts/ and commit the artifact"


def test_every_solidity_test_passes_and_gas_is_as_committed(
    forge_test: subprocess.CompletedProcess[str],
) -> None:
    said = forge_test.stdout + forge_test.stderr
    assert "Snapshots differ" not in said, f"{said}\nif it is meant: `forge test` and commit it"
    assert forge_test.returncode == 0, said
    assert "0 failed, 0 skipped" in forge_test.stdout


def test_what_forge_tested_is_the_artifact(
    forge_test: subprocess.CompletedProcess[str],
) -> None:
    built = json.loads((CONTRACTS / "out/StudentRegistry.sol/StudentRegistry.json").read_bytes())
    assert built["bytecode"]["object"] == artifact()["bytecode"]
    assert built["deployedBytecode"]["object"] == artifact()["deployedBytecode"]


def test_gas_stays_within_what_was_promised() -> None:
    gas = json.loads((CONTRACTS / "snapshots/StudentRegistry.json").read_bytes())
    assert int(gas["register"]) <= 75_000
    assert int(gas["commitRound of 10000 students"]) < 80_000


def test_solidity_is_formatted() -> None:
    done = run(tool("forge"), "fmt", "--check")
    assert done.returncode == 0, f"run `forge fmt` in contracts/\n{done.stdout}"


def test_every_threat_has_its_solidity_test(
    forge_test: subprocess.CompletedProcess[str],
) -> None:
    for words in (
        "AnotherChain",
        "AnotherRegistry",
        "AnotherRunOrRound",
        "flippedBit",
        "highSTwin",
        "anyOtherRecordUnderTheSameSignature",
        "frontRunner",
        "copycat",
        "secondRoot",
        "innerNode",
        "stolenKey",
        "thief",
        "deadline",
        "uncommittedTeacher",
        "censored",
    ):
        assert words in forge_test.stdout, f"no Solidity test is named for {words}"


def test_lock_file_pins_every_package_and_names_no_host() -> None:
    lock = json.loads((CONTRACTS / "package-lock.json").read_bytes())
    for name, package in lock["packages"].items():
        assert "resolved" not in package
        assert package["version"], name
    direct = lock["packages"][""]["devDependencies"]
    assert all(version[0].isdigit() for version in direct.values()), "exact versions only"


def test_installed_compiler_is_the_one_of_the_artifact() -> None:
    package = json.loads((MODULES / "solc" / "package.json").read_bytes())
    assert artifact()["compiler"]["version"].startswith(package["version"] + "+")


def test_every_member_of_the_interface_is_documented() -> None:
    text = (CONTRACTS / "src/IStudentRegistry.sol").read_text()
    lines = [line.strip() for line in text.splitlines()]
    for i, line in enumerate(lines):
        if line.startswith(("function ", "event ", "error ", "struct ")):
            assert lines[i - 1].startswith("///"), f"undocumented: {line}"


# ---------------------------------------------------------------------- comparing code

HERE = Domain(31337, address_of(1))


def test_expected_code_differs_from_the_artifact_in_the_immutables_only() -> None:
    compiled = bytes.fromhex(artifact()["deployedBytecode"][2:])
    code = expected_code(HERE)
    places = [at for one in artifact()["immutableReferences"].values() for at in one]
    assert len(code) == len(compiled)
    for at in places:
        assert compiled[at : at + 32] == bytes(32), "the compiler leaves zeros"
        assert any(code[at : at + 32])
    outside = set(range(len(code))) - {i for at in places for i in range(at, at + 32)}
    assert all(code[i] == compiled[i] for i in outside)


FAULTS: dict[str, tuple[Any, str]] = {
    "nothing": (b"", "no contract"),
    "other code": (b"\x60\x00", "not this version"),
    "longer": (expected_code(HERE) + b"\0", "not this version"),
    "shorter": (expected_code(HERE)[:-1], "not this version"),
    "as compiled, never constructed": (
        bytes.fromhex(artifact()["deployedBytecode"][2:]),
        "another chain or address",
    ),
    "of another chain": (expected_code(Domain(1, HERE.contract)), "another chain or address"),
    "of another address": (expected_code(Domain(31337, address_of(2))), "another chain or"),
}


@pytest.mark.parametrize(("code", "fault"), FAULTS.values(), ids=FAULTS)
def test_code_that_is_not_exactly_ours_is_told(code: bytes, fault: str) -> None:
    found = fault_of_code(code, HERE)
    assert found is not None
    assert fault in found


def test_our_code_has_no_fault() -> None:
    assert fault_of_code(expected_code(HERE), HERE) is None


def test_reading_the_artifact_is_quick() -> None:
    script = (
        "import time; began = time.process_time()\n"
        "from contracts.artifact import expected_code, selector; selector('verify')\n"
        "import sys; sys.exit(0 if time.process_time() - began < 0.5 else 'slow')"
    )
    done = run(sys.executable, "-c", script, PYTHONPATH=str(CONTRACTS.parent))
    assert done.returncode == 0, done.stderr
