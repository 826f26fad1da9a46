"""The app bundle of the federation: it names the installed apps and carries no code.

    bundle = app_bundle()            # the same bytes on every machine
    app_bundle_sha256()              # what nodes allow in their policy, and the run's card states

Flower hands each run's bundle (a "FAB", a zip archive) from the coordinator to the nodes. A stock
SuperNode unpacks and imports what it is sent; a node of this project compares the hash with its
allow-list and runs its own installed app. So the bundle is one configuration file, and its bytes
depend on nothing but this file: entries are stored, not compressed (compressors differ in their
output from one zlib to the next), under a fixed date.
"""

from __future__ import annotations

import hashlib
import io
import zipfile

PROTOCOL = 1
CLIENT_APP = "node.client_app:app"
SERVER_APP = "coordinator.server_app:app"

_PYPROJECT = f"""\
[project]
name = "genkd-protocol"
version = "{PROTOCOL}.0.0"
description = "GenKD federation, protocol {PROTOCOL}: carries no code, names the installed apps"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "genkd"

[tool.flwr.app.components]
serverapp = "{SERVER_APP}"
clientapp = "{CLIENT_APP}"

[tool.flwr.app.config]
protocol = {PROTOCOL}
plan = ""
"""
# The first instant a zip archive can state.
_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_READABLE_FILE = 0o100644 << 16


def app_project() -> str:
    """The `pyproject.toml` of the bundle; in a folder of its own, a stock `flwr run` takes it."""
    return _PYPROJECT


def app_bundle() -> bytes:
    """The bundle: `pyproject.toml`, and the list of contents that Flower expects beside it."""
    project = _PYPROJECT.encode()
    # Flower's list: path, sha256, size in bits.
    contents = f"pyproject.toml,{hashlib.sha256(project).hexdigest()},{len(project) * 8}".encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as bundle:
        for name, data in (("pyproject.toml", project), (".info/CONTENT", contents)):
            entry = zipfile.ZipInfo(name, _DATE)
            # By default the entry would say on which system it was made.
            entry.create_system = _UNIX
            entry.external_attr = _READABLE_FILE
            bundle.writestr(entry, data)
    return archive.getvalue()


def app_bundle_sha256() -> str:
    """The SHA-256 of `app_bundle()`, 64 hexadecimal digits."""
    return hashlib.sha256(app_bundle()).hexdigest()
