"""Flower's own `flower-supernode`, in a process that ends with its keeper and when its work does.

    python -P -m node.supernode_process --former-self NUMBER --superlink HOST:PORT ...

The arguments but the first are those of `flower-supernode`. Four things differ from the stock
command. It ends when the process that keeps it ends, see `node.child_process`. It ends when its
main loop does: stock, a message that cannot be read, such as one of a run whose app bundle is no
archive, ends the loop but not the process, which then serves nobody for ever. It says little on the
line, see `contracts.flower_private`. And it signs off its former self first, if that was killed:
the SuperLink would else take it for present for minutes, and refuse its successor.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import NoReturn

from node.child_process import end_with_parent

COMMAND = "flower-supernode"
# In which a coordinator finds the node away, and with it what its former self was asked: it looks
# every two seconds.
SECONDS_AWAY = 5.0


def main() -> NoReturn:
    """Run it, and end this process as it ends; with status 1 if it simply stops."""
    end_with_parent()
    from contracts.flower_private import quieten_supernode

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--former-self", type=int)
    ours, arguments = parser.parse_known_args()
    quieten_supernode()
    status = 1
    try:
        if ours.former_self is not None and sign_off(ours.former_self, arguments):
            time.sleep(SECONDS_AWAY)
        # By the name of the command, which is public; the module behind it is not.
        (command,) = entry_points(group="console_scripts", name=COMMAND)
        sys.argv = [COMMAND, *arguments]
        command.load()()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # whatever threads are left


def sign_off(number: int, arguments: Sequence[str]) -> bool:
    """Tell the SuperLink that this node is away.

    Args:
        number: The SuperLink's number of this node.
        arguments: Of `flower-supernode`.

    Returns:
        Whether it took the node for present until now.
    """
    import httpx
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    from contracts.flower_private import (
        DeactivateNodeRequest,
        NodeAuthHttpInterceptor,
        QuietFleetClient,
    )

    parser = argparse.ArgumentParser(add_help=False)
    for name in ("--superlink", "--root-certificates", "--auth-supernode-private-key"):
        parser.add_argument(name, required=True)
    given, _ = parser.parse_known_args(arguments)
    try:
        key = load_ssh_private_key(Path(given.auth_supernode_private_key).read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            return False
        with QuietFleetClient.from_server_address(
            given.superlink,
            insecure=False,
            root_certificates=Path(given.root_certificates).read_bytes(),
            interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
        ) as client:
            client.DeactivateNode(DeactivateNodeRequest(node_id=number))
    except (OSError, ValueError, httpx.HTTPError):  # it was away already, or nobody answers
        return False
    return True


if __name__ == "__main__":
    main()
