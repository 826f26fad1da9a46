"""The bundle carries no code and has the same bytes everywhere; Flower takes it as its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from contracts.app_bundle import (
    CLIENT_APP,
    SERVER_APP,
    app_bundle,
    app_bundle_sha256,
    app_project,
)
from contracts.flower_environment import flower_environment

ROOT = Path(__file__).parents[2]
# Nodes pin it in their policies: whoever changes the bundle changes the protocol.
SHA256 = "1e086a8713a12cd8182f97e43cdb4943df828ec2720e225e93e45ed5805611c5"


def test_its_hash_is_the_one_that_nodes_have_pinned() -> None:
    assert app_bundle_sha256() == SHA256


def test_another_process_in_another_zone_makes_the_same_bytes() -> None:
    script = "from contracts.app_bundle import app_bundle_sha256 as f; print(f())"
    environment = os.environ | {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == SHA256, done.stderr


def test_it_holds_one_configuration_and_its_list_and_no_code() -> None:
    with zipfile.ZipFile(io.BytesIO(app_bundle())) as bundle:
        assert bundle.namelist() == ["pyproject.toml", ".info/CONTENT"]
        assert bundle.testzip() is None
        assert bundle.read("pyproject.toml").decode() == app_project()
    assert len(app_bundle()) < 1024


@pytest.mark.parametrize("component", [CLIENT_APP, SERVER_APP])
def test_the_apps_it_names_are_installed(component: str) -> None:
    assert find_spec(component.split(":")[0]) is not None


def test_flower_reads_and_installs_it_as_a_bundle_of_its_own(tmp_path: Path) -> None:
    script = (
        "import sys; from flwr.cli.install import install_from_fab\n"
        "from contracts.app_bundle import app_bundle\n"
        "install_from_fab(app_bundle(), skip_prompt=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=flower_environment(tmp_path / "home"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    installed = [path.name for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert "pyproject.toml" in installed
    assert not [name for name in installed if name.endswith(".py")]
