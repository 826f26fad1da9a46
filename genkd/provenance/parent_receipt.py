"""A parent known by its receipt alone: its node's signature, and the registry's word for it.

    found = find_receipt(record_id, folders)                      # student-0x....receipt.json
    result = check_receipt(found, record_id, domain, chain)       # a ParentReceipt

Whoever gets a merged student has no right to the students it was made from, and a round's root on
the chain names none of them. A receipt proves that a parent was signed and recorded, by whom and
when, without its file. It says nothing of the parent's own parents.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from genkd.errors import CannotCheck, GenKDError
from genkd.provenance.chain import ChainReader
from genkd.provenance.receipt import MAX_RECEIPT_BYTES, Receipt
from genkd.provenance.record_checks import (
    as_time,
    ask_about,
    require_confirmed,
    require_not_revoked,
)
from genkd.provenance.release import read_bounded, receipt_file_name
from genkd.provenance.secp256k1 import recover_address
from genkd.provenance.signed_release import Unmade, refused
from genkd.provenance.typed_data import Domain
from genkd.provenance.verification import ParentReceipt, Status


def find_receipt(record_id: bytes, folders: Iterable[Path]) -> Path | None:
    """The first file in the folders named as this record's receipt; None if there is none.

    A link counts as found, to be refused when it is read: nothing else takes its place silently.
    """
    name = receipt_file_name(record_id)
    return next((folder / name for folder in folders if os.path.lexists(folder / name)), None)


def read_parent_receipt(path: Path, record_id: bytes, domain: Domain) -> Receipt:
    """The receipt in a file, signed by its record's node for one registry.

    Args:
        path: `student-0x....receipt.json`.
        record_id: The record it must be about, 32 bytes.
        domain: The registry it must be for.

    Raises:
        InputFileRefused: If it is no regular file, too large, or malformed.
        VerificationFailed: If it is for another registry or record, or another key signed it.
        KeyOrSignatureError: If a signature in it is malformed or its profile is not genuine.
    """
    receipt = Receipt.from_bytes(read_bounded(path, MAX_RECEIPT_BYTES))
    if receipt.domain != domain:
        raise refused("its receipt is for another chain or registry")
    if receipt.record_id() != record_id:
        raise refused("its receipt is another record's")
    if receipt.profile.node != receipt.record.node:
        raise refused("the profile in its receipt is another node's")
    receipt.profile.check()
    if recover_address(record_id, receipt.signature) != receipt.record.node:
        raise refused(f"{receipt.record.node} did not sign its receipt")
    return receipt


def check_receipt(
    path: Path, record_id: bytes, domain: Domain, chain: ChainReader | None
) -> ParentReceipt:
    """Everything that can be checked of a parent without its file.

    Args:
        path: Its receipt.
        record_id: Its record id, 32 bytes.
        domain: The registry of the student that was made from it.
        chain: That registry; None leaves the record itself unchecked.

    Returns:
        The outcome; a hostile receipt is an answer and not an exception.

    Raises:
        CannotCheck: If the endpoint is silent, slow, or contradicts itself.
    """
    receipt: Receipt | None = None
    try:
        receipt = read_parent_receipt(path, record_id, domain)
        if chain is None:
            raise Unmade("its node signed it, but no endpoint was asked whether it is recorded")
        answer = ask_about(chain, receipt, record_id)
        require_not_revoked(answer)
        recorded_at = require_confirmed(chain, answer, receipt)
    except Unmade as reason:
        return ParentReceipt(Status.CANNOT_CHECK, str(reason), receipt)
    except CannotCheck:
        raise
    except GenKDError as error:
        return ParentReceipt(Status.NOT_VALID, error.message, receipt)
    detail = f"recorded {as_time(recorded_at)}, its file is not at hand"
    return ParentReceipt(Status.VALID, detail, receipt, recorded_at)
