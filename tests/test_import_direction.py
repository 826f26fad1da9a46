"""Imports only go down: node, coordinator -> contracts -> genkd.provenance, genkd."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("genkd", "contracts", "node", "coordinator")
HEAVY = ("torch", "torchvision", "flwr", "web3")
# What provenance shares with the algorithm: nothing that needs torch.
SHARED_WITH_PROVENANCE = {
    *("genkd", "genkd.errors", "genkd.digest", "genkd.durable", "genkd.card", "genkd.weights"),
    *("genkd.canonical", "genkd.safetensors_header", "genkd.json_values"),
}
LIGHT_MODULES = (
    *("genkd", "genkd.errors", "genkd.digest", "genkd.durable", "genkd.card", "genkd.weights"),
    *("genkd.json_values", "genkd.run_directory", "genkd.event_log", "genkd.averaging"),
    *("coordinator.cli", "coordinator.superlink", "contracts.app_bundle"),
    *("node.prior_cli", "genkd.generative_card"),
    *("node.cli", "genkd.console", "node.settings", "node.doctor", "genkd.layered_settings"),
)


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "node_modules" not in path.parts]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, as `package.module`."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{path}: relative imports hide the direction"
            assert statement.module is not None
            yield statement.module
            # `from genkd import weights` imports a module by way of its package.
            for alias in statement.names:
                as_module = ROOT / statement.module.replace(".", "/") / alias.name
                if as_module.is_dir() or as_module.with_suffix(".py").exists():
                    yield f"{statement.module}.{alias.name}"


def is_of(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def offences(paths: list[Path], *forbidden: str) -> list[str]:
    return [
        f"{module_of(path)} imports {module}"
        for path in paths
        for module in imports_of(path)
        if is_of(module, *forbidden)
    ]


def test_the_check_reads_real_files_and_sees_an_import(tmp_path: Path) -> None:
    assert {module_of(path).split(".")[0] for path in sources(*PACKAGES)} >= {"genkd", "node"}
    sample = tmp_path / "sample.py"
    sample.write_text("def f():\n    from genkd import weights\n    import torch.nn\n")
    assert sorted(imports_of(sample)) == ["genkd", "genkd.weights", "torch.nn"]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("genkd", ("node", "coordinator", "contracts")),
        ("contracts", ("node", "coordinator")),
        ("node", ("coordinator",)),
        ("coordinator", ("node",)),
        ("genkd/provenance", HEAVY),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_imports_only_go_down(folder: str, forbidden: tuple[str, ...]) -> None:
    assert offences(sources(folder), *forbidden) == []


def test_provenance_shares_only_what_needs_no_torch() -> None:
    strange = {
        f"{module_of(path)} imports {module}"
        for path in sources("genkd/provenance")
        for module in imports_of(path)
        if is_of(module, "genkd") and not is_of(module, "genkd.provenance")
        if module not in SHARED_WITH_PROVENANCE
    }
    assert strange == set()


def test_nothing_imports_web3() -> None:
    """Two seconds of import; `contracts` speaks JSON-RPC by itself."""
    assert offences(sources(*PACKAGES), "web3", "eth_account") == []


def test_only_evaluation_and_priors_of_public_images_read_data_sets() -> None:
    allowed = {"genkd.images", "genkd.evaluate", "node.evaluation", "genkd.dgm.public_images"}
    paths = [path for path in sources(*PACKAGES) if module_of(path) not in allowed]
    assert offences(paths, "genkd.images", "torchvision.datasets") == []


def test_distilling_knows_no_public_images() -> None:
    readers = ("genkd.dgm.public_images", "genkd.dgm.training")
    allowed = {*readers, "node.prior_cli"}
    paths = [path for path in sources(*PACKAGES) if module_of(path) not in allowed]
    assert offences(paths, *readers) == []


def test_no_module_is_a_drawer_without_a_noun() -> None:
    drawers = {"utils", "util", "common", "core", "helpers", "base", "misc"}
    assert [module_of(p) for p in sources(*PACKAGES) if p.stem in drawers] == []


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_it_loads_neither_torch_nor_flwr_nor_web3(module: str) -> None:
    script = (
        f"import sys, {module}\n"
        f"heavy = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["distill", "--help"]], ids=str)
def test_asking_for_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from node.cli import main\n"
        f"code = main({arguments!r})\n"
        f"heavy = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
