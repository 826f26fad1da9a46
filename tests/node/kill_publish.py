"""Publish in a child, kill it at its n-th step, publish again; for every n. Run by `test_publish`.

    python kill_publish.py RPC_URL CHAIN_ID REGISTRY KEYS RUN_TEMPLATE WORK

A step is anything that leaves a trace: a transaction sent, a file put in its place, a directory
renamed. The kill is SIGKILL, once just before the step and once just after it. Prints one JSON
object a line: {"kill": n, "killed": true, "registrations": 1, "answer": "valid"}.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from contracts.chain_reader import RegistryReader
from contracts.json_rpc import JsonRpc
from contracts.registry import RegistryClient
from genkd.provenance import Domain, Policy, keystore, verify
from genkd.provenance.keys import KeyFolder
from genkd.provenance.passphrase import Passphrase
from genkd.provenance.record import run_id_of
from node.publish import PublishOptions, publish
from tests.kill_points import FILES_PUT_IN_PLACE, TRANSACTIONS, killed_at

MAX_STEPS = 100
POINTS = (*FILES_PUT_IN_PLACE, TRANSACTIONS)


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

        killed = killed_at(kill, work_once, POINTS, after=True)
        assert not killed_at(0, work_once, ())
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


if __name__ == "__main__":
    main(*sys.argv[1:])
