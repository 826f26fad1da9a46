"""The packages of the extra `onnx`, imported so that none of them speaks to anybody.

    runtime = require_package("onnxruntime")

ONNX Runtime from 1.29 on reports its sessions to its makers over the network, also on Linux
(https://github.com/microsoft/onnxruntime/pull/27379). It decides that once, when it starts, before
`disable_telemetry_events` can be called; so the environment has to say it before the first import.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from genkd.errors import UsageError


def require_package(name: str) -> Any:  # a module without types
    """Import a package of the extra `onnx`.

    Raises:
        UsageError: If it is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{name} is not installed, which ONNX files need",
            hint="pip install 'genkd-node[onnx]'",
        ) from error
    if name == "onnxruntime":
        package.disable_telemetry_events()  # on Windows, and of older versions
    return package
