"""Flower's own `flower-supernode`, in a process that ends with its keeper and when its work does.

    python -P -m node.supernode_process --superlink HOST:PORT --isolation process ...

The arguments are those of `flower-supernode`. Two things differ from the stock command. It ends
when the process that keeps it ends, see `node.child_process`. And it ends when its main loop does:
stock, a message that cannot be read, such as one of a run whose app bundle is no archive, ends the
loop but not the process, which then serves nobody for ever.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib.metadata import entry_points
from typing import NoReturn

from node.child_process import end_with_parent

COMMAND = "flower-supernode"


def main() -> NoReturn:
    """Run it, and end this process as it ends; with status 1 if it simply stops."""
    end_with_parent()
    # By the name of the command, which is public; the module behind it is not.
    (command,) = entry_points(group="console_scripts", name=COMMAND)
    sys.argv[0] = COMMAND
    status = 1
    try:
        command.load()()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # whatever threads are left


if __name__ == "__main__":
    main()
