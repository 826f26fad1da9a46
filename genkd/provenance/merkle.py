"""One root for many records, as OpenZeppelin's StandardMerkleTree builds it for `["bytes32"]`.

    tree = MerkleTree(record_ids)
    verify_proof(tree.root, record_ids[3], tree.proof(record_ids[3]))

Leaves are hashed twice, so that no inner node can pass for a leaf; pairs are sorted before hashing,
so that a proof is a plain list of siblings.
"""

from __future__ import annotations

from collections.abc import Sequence

from genkd.provenance.typed_data import keccak256

MAX_PROOF_LENGTH = 32  # the contract counts the students of a round in 32 bits


def leaf_hash(record_id: bytes) -> bytes:
    """keccak(keccak(abi.encode(bytes32)))."""
    if len(record_id) != 32:
        raise ValueError("a record id has 32 bytes")
    return keccak256(keccak256(record_id))


def _hash_pair(a: bytes, b: bytes) -> bytes:
    return keccak256(a + b if a < b else b + a)


class MerkleTree:
    """The tree over a round's record ids.

    Args:
        record_ids: 1 to 2^32 - 1 distinct ids of 32 bytes, in any order: the root does not depend
            on it.

    Attributes:
        root: 32 bytes.

    Raises:
        ValueError: If there is none, or one is given twice.
    """

    def __init__(self, record_ids: Sequence[bytes]) -> None:
        if not record_ids or len(set(record_ids)) != len(record_ids):
            raise ValueError("a tree needs at least one record id, and each only once")
        # The order of the published library: leaves sorted by hash, at the end of a heap, reversed.
        leaves = sorted((leaf_hash(one), one) for one in record_ids)
        size = 2 * len(leaves) - 1
        self._nodes = [b""] * size
        self._place = {}
        for i, (leaf, record_id) in enumerate(leaves):
            self._nodes[size - 1 - i] = leaf
            self._place[record_id] = size - 1 - i
        for i in range(size - len(leaves) - 1, -1, -1):
            self._nodes[i] = _hash_pair(self._nodes[2 * i + 1], self._nodes[2 * i + 2])
        self.root = self._nodes[0]

    def proof(self, record_id: bytes) -> tuple[bytes, ...]:
        """The siblings from a leaf to the root.

        Raises:
            KeyError: If the record is not in the tree.
        """
        siblings = []
        place = self._place[record_id]
        while place > 0:
            siblings.append(self._nodes[place + 1 if place % 2 else place - 1])
            place = (place - 1) // 2
        return tuple(siblings)


def verify_proof(root: bytes, record_id: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `record_id` is a leaf of the tree with this root."""
    if len(proof) > MAX_PROOF_LENGTH or any(len(one) != 32 for one in proof):
        return False
    node = leaf_hash(record_id)
    for sibling in proof:
        node = _hash_pair(node, sibling)
    return node == root
