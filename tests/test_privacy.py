"""Distilling reads the teacher and nothing else, and speaks to nobody.

Two observers watch runs of `genkd.distill`: of GenKD, with the student as ONNX too, of a baseline,
and of a black box and a prior. Inside the process, an audit hook refuses sockets and an import hook
refuses data-set modules. Outside it, where this machine lets us, `strace` lists every socket and
every file that any of its threads or children opened, below Python, and a network namespace of its
own holds no network at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from genkd.export import export_onnx
from genkd.generative_card import GenerativeCard
from genkd.generative_model import GenerativeModel, save_generative_model
from genkd.teacher import load_teacher

ROOT = Path(__file__).parents[1]
# Refuses and notes what must not happen; what a library swallows is noted all the same.
GUARD = """
import json, sys

NO_DATA = (
    "torchvision.datasets", "genkd.images", "genkd.picture_folder", "datasets", "webdataset",
    "tensorflow_datasets", "torchtext", "torchaudio", "keras", "sklearn.datasets",
)
noted = []


class NoDataSets:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in NO_DATA):
            noted.append("import " + name)
            raise RuntimeError(name + " is imported")


def no_sockets(event, arguments):
    # TensorBoard names its files after the machine: that asks the kernel, not the network.
    if event.startswith(("socket.", "urllib.", "http.", "smtplib.", "ftplib.")):
        if event != "socket.gethostname":
            noted.append(event)
            raise RuntimeError(event + " " + repr(arguments))


sys.meta_path.insert(0, NoDataSets())
sys.addaudithook(no_sockets)
"""
RUN = """
from genkd import distill

distill(**json.loads(sys.argv[1]))
print(json.dumps({"noted": noted, "modules": sorted(sys.modules)}))
"""
OVERRIDES = {
    "batch": "24",
    "bank_images": "64",
    "generator_channels": "4",
    "generator_steps": "3",
    "generator_rate": "0.02",
    "label_loss_weight": "20",
    "latent_dim": "8",
    "langevin_steps": "3",
    "student_steps": "2",
    "student_batch": "16",
    "student_rate": "0.01",
    "warm_up": "0",
    "synthesis_share": "1",
}
PACE = ("batch", "bank_images", "student_steps", "student_batch", "student_rate", "synthesis_share")
NAMESPACE = ["unshare", "--map-root-user", "--net"]
STRACE = ["strace", "-f", "-qq", "-e", "trace=network,open,openat,openat2", "-o"]


def works(command: list[str]) -> bool:
    """Whether this machine lets us watch: containers often do not."""
    if shutil.which(command[0]) is None:
        return False
    try:
        return subprocess.run([*command, "true"], capture_output=True, timeout=30).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def watched(log: Path) -> tuple[list[str], bool, bool]:
    """What to put before a command; whether it has no network; whether its calls are listed."""
    namespace = NAMESPACE if works(NAMESPACE) else []
    strace = [*STRACE, str(log)] if works([*namespace, *STRACE, str(log)]) else []
    return [*namespace, *strace], bool(namespace), bool(strace)


def black_box(teacher: Path, folder: Path) -> dict[str, str]:
    """The teacher as an ONNX file, and a prior that has learnt nothing."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_onnx(load_teacher(teacher), folder / "box.onnx")
    random = torch.Generator().manual_seed(0)
    model = GenerativeModel(GenerativeCard("vae", 4, 0, 1, 16, 16, 8), random).freeze()
    save_generative_model(folder / "prior.safetensors", model)
    return {"teacher": str(folder / "box.onnx"), "prior": str(folder / "prior.safetensors")}


@pytest.fixture(scope="module", params=["genkd", "exported", "deepinversion", "black box"])
def observed(
    request: pytest.FixtureRequest, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A run, what it noted, and the calls that strace saw (None: it may not look here)."""
    folder = tmp_path_factory.mktemp("privacy")
    of_kind: dict[str, Any] = {"overrides": OVERRIDES}
    if request.param == "exported":
        pytest.importorskip("onnxruntime")
        of_kind["export_onnx"] = True
    if request.param in ("deepinversion", "black box"):
        of_kind["overrides"] = {key: OVERRIDES[key] for key in PACE}
    if request.param == "deepinversion":
        of_kind["overrides"] |= {"method": "deepinversion", "generator_steps": "3"}
    if request.param == "black box":
        of_kind |= black_box(tiny_teacher, folder)
    prefix, isolated, listed = watched(folder / "calls")
    arguments = {
        "teacher": str(tiny_teacher),
        "out": str(folder / "run"),
        "student": "lenet5-bn-quarter",
        "budget": "256 passes",
        "device": "cpu",
        **of_kind,
    }
    # What `black_box` said to this process must not silence the other.
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [*prefix, sys.executable, "-c", GUARD + RUN, json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    calls = (folder / "calls").read_text(errors="replace") if listed else None
    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "calls": calls,
        "isolated": isolated,
        "out": folder / "run",
        "given": {Path(arguments[key]) for key in ("teacher", "prior") if key in arguments},
    }


def test_distilling_opens_no_socket_and_imports_no_data_set_module(
    observed: dict[str, Any],
) -> None:
    assert observed["noted"] == []
    assert "genkd.train" in observed["modules"]
    assert "genkd.images" not in observed["modules"]
    assert "torchvision" not in observed["modules"]  # it brings its data sets along
    assert (observed["out"] / "student.safetensors").exists()


def test_distilling_needs_no_network(observed: dict[str, Any]) -> None:
    if not observed["isolated"]:
        pytest.skip("this machine grants no network namespace")
    assert (observed["out"] / "student.safetensors").exists()


def sockets(calls: str) -> list[str]:
    """Calls that reach beyond this machine. The C library asks a local name cache for the user."""
    local = re.compile(r"socket\(AF_UNIX,|socketpair\(AF_UNIX,|sun_path=\"/(var/)?run/nscd/")
    speaking = re.compile(r"\b(socket|socketpair|connect|bind|listen|accept4?|sendto|sendm?msg)\(")
    return [line for line in calls.splitlines() if speaking.search(line) and not local.search(line)]


def files_read(calls: str) -> set[Path]:
    """Files, not folders, that were opened for reading and were there before."""
    opened = re.compile(r'open(?:at2?)?\((?:\S+, )?"([^"]+)", (?:\{flags=)?(\S+?)[,})].* = \d+')
    found = (opened.search(line) for line in calls.splitlines())
    return {
        Path(os.path.normpath(match[1]))
        for match in found
        if match and "O_CREAT" not in match[2] and "O_DIRECTORY" not in match[2]
    }


def test_no_thread_or_child_speaks_to_the_network(observed: dict[str, Any]) -> None:
    if observed["calls"] is None:
        pytest.skip("this machine does not let strace look")
    assert sockets(observed["calls"]) == []


def test_of_all_files_only_those_given_are_a_persons(observed: dict[str, Any]) -> None:
    if observed["calls"] is None:
        pytest.skip("this machine does not let strace look")
    programs = [sys.prefix, sys.base_prefix, ROOT / "genkd", "/usr", "/lib", "/lib64", "/opt"]
    system = ["/etc", "/proc", "/sys", "/dev", "/run", "/var/lib", "/var/cache", "/var/run"]
    named = [Path(folder) for folder in (*programs, *system, observed["out"])]
    folders = {*named, *(folder.resolve() for folder in named)}
    read = files_read(observed["calls"])
    others = {
        path
        for path in read
        if path.is_absolute() and not any(path.is_relative_to(folder) for folder in folders)
    }
    assert observed["given"] <= read
    code = (".py", ".pyc", ".pth", ".so", ".cfg", ".egg-link")
    assert {path for path in others if path.suffix not in code} == observed["given"]
    # A data set may lie among the system's files, too.
    data = re.compile(r"mnist|cifar|imagenet|-ubyte|\.(npz|npy|png|jpe?g|parquet|arrow|tar)$", re.I)
    own = observed["out"]
    assert [path for path in read if data.search(path.name) and path.parent != own] == []


# -- the observers see what they should ------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import socket; socket.socket()", "socket.__new__"),
        ("import socket; socket.getaddrinfo('localhost', 80)", "socket.getaddrinfo"),
        ("import asyncio; asyncio.run(asyncio.sleep(0))", "socket"),
        ("import urllib.request as u; u.urlopen('http://localhost:9')", "urllib.Request"),
        ("import genkd.images", "genkd.images is imported"),
        ("from genkd import images", "genkd.images is imported"),
        ("import datasets", "datasets is imported"),
    ],
)
def test_the_guard_refuses(code: str, what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GUARD + code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode != 0
    assert what in done.stderr


@pytest.mark.parametrize(
    ("line", "speaks"),
    [
        ("9 socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_IP) = 3", True),
        ("9 socket(AF_INET6, SOCK_DGRAM, IPPROTO_IP) = -1 EACCES (Permission denied)", True),
        ('9 connect(3, {sa_family=AF_UNIX, sun_path="/run/docker.sock"}, 110) = 0', True),
        ("9 socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC|SOCK_NONBLOCK, 0) = 5", False),
        ('9 connect(5, {sa_family=AF_UNIX, sun_path="/var/run/nscd/socket"}, 110) = -1', False),
        ('9 openat(AT_FDCWD, "/a/socket", O_RDONLY) = 3', False),
    ],
)
def test_a_call_that_speaks_is_told_from_one_that_does_not(line: str, speaks: bool) -> None:
    assert bool(sockets(line)) == speaks


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ('9 openat(AT_FDCWD, "/a/b.npz", O_RDONLY|O_CLOEXEC) = 3', "/a/b.npz"),
        ('9 open("/a/../b.npz", O_RDONLY) = 3', "/b.npz"),
        ('9 openat2(7, "/a/b", {flags=O_RDONLY, resolve=0}, 24) = 11', "/a/b"),
        ('9 openat(AT_FDCWD, "/a/b", O_RDWR) = 3', "/a/b"),
        ('9 openat(AT_FDCWD, "/a", O_RDONLY|O_DIRECTORY) = 3', None),
        ('9 openat(AT_FDCWD, "/a/new", O_RDWR|O_CREAT|O_EXCL, 0600) = 3', None),
        ('9 openat(AT_FDCWD, "/a/b", O_RDONLY) = -1 ENOENT (No such file or directory)', None),
    ],
)
def test_a_file_that_was_read_is_told_from_one_that_was_not(line: str, path: str | None) -> None:
    assert files_read(line) == ({Path(path)} if path else set())
