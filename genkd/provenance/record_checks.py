"""What the registry must say of a signed record: checks 7 and 8 of `verifier`.

    answer = ask_about(chain, receipt, record_id)            # the registry holds it, in order
    recorded_at = require_confirmed(chain, answer, receipt)  # at a final block, the receipt's own
    require_not_revoked(answer)

They need the receipt and not the student, so they serve a release and a parent's receipt alike.
"""

from __future__ import annotations

import time

from genkd.provenance.chain import Answer, ChainReader, Verdict, require_order, require_sense
from genkd.provenance.receipt import Receipt
from genkd.provenance.signed_release import Unmade, refused

MAX_TIME = 253_402_300_799  # the last second of the year 9999


def ask_about(chain: ChainReader, receipt: Receipt, record_id: bytes) -> Answer:
    """What the registry says of a receipt's record, once it makes sense and is in order.

    Args:
        chain: The trusted registry.
        receipt: The receipt; the signature in it is checked already.
        record_id: Its record's id for the trusted registry, 32 bytes.

    Raises:
        VerificationFailed: If the registry does not hold it, or something about it was not in
            order.
        Unmade: If it is being reorganised away.
        CannotCheck: If the endpoint is silent or contradicts itself.
    """
    record = receipt.record
    proof = () if receipt.inclusion is None else receipt.inclusion.proof or ()
    answer = chain.look_up(record, receipt.signature, proof)
    for verdict in (answer.confirmed, answer.latest):
        require_sense(verdict, record, record_id)
    if not answer.latest.recorded_at:
        if answer.confirmed.recorded_at:
            raise Unmade("the record is being reorganised away; ask again later")
        raise refused("the registry does not hold it")
    require_order(answer.latest, record, receipt.profile.profile_hash())
    return answer


def require_confirmed(chain: ChainReader, answer: Answer, receipt: Receipt) -> int:
    """When it was recorded, Unix seconds, if that is final and where the receipt says.

    Raises:
        Unmade: If it is recorded, but not confirmed yet.
        VerificationFailed: If the receipt names another place on the chain.
        CannotCheck: If the endpoint does not answer.
    """
    if not answer.confirmed.in_order:
        raise Unmade("it is recorded, but not confirmed yet")
    _check_inclusion(chain, answer.latest, receipt)
    return answer.latest.recorded_at


def _check_inclusion(chain: ChainReader, verdict: Verdict, receipt: Receipt) -> None:
    """Where the receipt says it is on the chain is where it is."""
    inclusion = receipt.inclusion
    if inclusion is None:
        return
    recorded = verdict.registered_at if inclusion.proof is None else verdict.committed_at
    if not recorded:
        raise refused("the receipt's Merkle proof does not lead to the round's root")
    block = chain.block(inclusion.block)
    if block is None or block.timestamp != recorded:
        raise refused("the receipt names a block that did not record it")
    if inclusion.transaction not in block.transactions:
        raise refused("the receipt names a transaction that is not in its block")


def require_not_revoked(answer: Answer) -> None:
    """Nobody who may has taken it back, at the confirmed or at the newest block.

    Raises:
        VerificationFailed: If somebody has.
    """
    for verdict in (answer.confirmed, answer.latest):
        for who, when in (
            ("its node", verdict.revoked_by_node),
            ("the registry's owner", verdict.revoked_by_owner),
        ):
            if when:
                raise refused(f"{who} revoked it, {as_time(when)}, reason {verdict.reason}")


def as_time(seconds: int) -> str:
    """A block's time for people; whatever an endpoint says has some form."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(seconds, MAX_TIME)))
