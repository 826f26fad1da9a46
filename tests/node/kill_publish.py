"""Publish in a child, kill it at its n-th step, publish again; for every n. Run by `test_publish`.

    python kill_publish.py RPC_URL CHAIN_ID REGISTRY KEYS RUN_TEMPLATE WORK

A step is anything that leaves a trace: a transaction sent, a file put in its place, a directory
renamed. The kill is SIGKILL, once just before the step and once just after it. Prints one JSON
object a line: {"kill": n, "killed": true, "registrations": 1, "answer": "valid"}.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contracts.chain_reader import RegistryReader
from contracts.json_rpc import JsonRpc
from contracts.registry import RegistryClient
from genkd.provenance import Domain, Policy, keystore, verify
from genkd.provenance.keys import KeyFolder
from genkd.provenance.passphrase import Passphrase
from genkd.provenance.record import run_id_of
from node.publish import PublishOptions, publish

MAX_STEPS = 100


def main(url: str, chain_id: str, registry: str, keys: str, template: str, work: str) -> None:
    """Kill at step 0, 1, 2, ... until a publication ends before it is killed."""
    keystore.SCRYPT_N = 2**12
    domain = Domain(int(chain_id), registry)
    passphrase = Passphrase("correct horse battery")
    secrets = KeyFolder(Path(keys)).unlock(passphrase)
    rpc = JsonRpc(url)
    for kill in range(MAX_STEPS):
        snapshot = rpc.ask("evm_snapshot")
        run = Path(shutil.copytree(template, Path(work) / str(kill)))
        folder = KeyFolder(Path(shutil.copytree(keys, Path(work) / f"keys-{kill}")))

        def work_once(run: Path = run, folder: KeyFolder = folder) -> None:
            client = RegistryClient(url, domain, signer=secrets, confirmations=0)
            publish(run, PublishOptions(domain, run_id_of("spring"), 1), folder, secrets, client)

        killed = in_child(lambda kill=kill, work_once=work_once: killed_at(kill, work_once))
        assert in_child(work_once) is False
        releases = list((run / "release").glob("student-0x*"))
        reader = RegistryReader(url, domain, confirmations=0)
        answers = [verify(p, policy=Policy(domain), chain=reader).summary for p in releases]
        logs = rpc.ask("eth_getLogs", {"address": registry, "fromBlock": snapshot_block(rpc)})
        registered = [log for log in logs if len(log["data"]) == 2 + 64 * 9]
        print(
            json.dumps(
                {
                    "kill": kill,
                    "killed": killed,
                    "registrations": len(registered),
                    "answers": answers,
                }
            ),
            flush=True,
        )
        assert rpc.ask("evm_revert", snapshot) is True
        if not killed:
            return


def snapshot_block(rpc: JsonRpc) -> str:
    """The logs of this round of the loop are all there are: what came before was undone."""
    return hex(max(0, rpc.quantity("eth_blockNumber") - 5))


def in_child(work: Callable[[], Any]) -> bool:
    """Do it in a child process; whether the child was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:  # told by the exit status, never raised into the parent
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def killed_at(kill: int, work: Callable[[], None]) -> None:
    """Do it with every step counted twice, before and after; die at the count `kill`."""
    count = -1

    def tick() -> None:
        nonlocal count
        count += 1
        if count == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepping(step: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if not counts(*arguments):
                return step(*arguments, **named)
            tick()
            result = step(*arguments, **named)
            tick()
            return result

        return wrapped

    os.replace = stepping(os.replace, lambda *_: True)
    os.rename = stepping(os.rename, lambda *_: True)
    sends = "eth_sendRawTransaction"
    JsonRpc.ask = stepping(JsonRpc.ask, lambda rpc, method, *_: method == sends)  # type: ignore[method-assign]
    work()


if __name__ == "__main__":
    main(*sys.argv[1:])
