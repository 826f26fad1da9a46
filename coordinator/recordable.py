"""Would the registry find a release in order, were its round committed now? Before anything is.

    fault = fault_of_place(record, run_id, 1) or fault_of_record(chain, receipt)

A round's root cannot be taken back, and a release in it that is void on the chain stays void.
"""

from __future__ import annotations

from typing import Final

from genkd.errors import CannotCheck
from genkd.provenance.chain import ChainReader, require_sense
from genkd.provenance.receipt import Receipt
from genkd.provenance.record import StudentRecord
from genkd.provenance.typed_data import Domain, to_hex

SECONDS_TO_SPARE: Final = 60  # between now and the block that will hold the root


def fault_of_registry(chain: ChainReader, domain: Domain) -> str | None:
    """Why the endpoint does not serve the trusted registry; None if it does.

    Raises:
        CannotCheck: If it does not answer.
    """
    chain_id = chain.chain_id()
    if chain_id != domain.chain_id:
        return f"the endpoint serves chain {chain_id}, not {domain.chain_id}"
    return chain.fault_of_contract()


def fault_of_place(record: StudentRecord, run_id: bytes, number: int) -> str | None:
    """Why a record does not belong into a round; None if it does."""
    if (record.run_id, record.round) == (run_id, number):
        return None
    return f"it is of run {to_hex(record.run_id)}, round {record.round}"


def fault_of_record(chain: ChainReader, receipt: Receipt) -> str | None:
    """Why the registry would not find a signed release in order now; None if it would.

    Args:
        chain: The registry, at one endpoint: it is asked for the time of the block that it answers
            of.
        receipt: Of a release whose signatures were checked.

    Raises:
        CannotCheck: If the endpoint does not answer, or lies.
    """
    record, record_id = receipt.record, receipt.record_id()
    verdict = chain.look_up(record, receipt.signature, ()).latest
    require_sense(verdict, record, record_id)
    block = chain.block(verdict.block)
    if block is None:
        raise CannotCheck("the chain is being reorganised", hint="try again in a moment")
    now = block.timestamp
    enrolled = verdict.enrolled_since <= now < verdict.enrolled_until
    if verdict.profile_hash != receipt.profile.profile_hash() or not enrolled:
        return f"its node {record.node} is not enrolled with this profile"
    if not verdict.teacher_committed_at:
        return "its node has not committed to the teacher"
    if now > record.deadline - SECONDS_TO_SPARE:
        return "its deadline has passed"
    if verdict.revoked_by_node or verdict.revoked_by_owner:
        who = "its node" if verdict.revoked_by_node else "the registry's owner"
        return f"{who} revoked it, reason {verdict.reason}"
    return None
