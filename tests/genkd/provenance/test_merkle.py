"""The Merkle tree, against the published example of OpenZeppelin's library."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genkd.provenance import merkle
from genkd.provenance.merkle import MerkleTree, leaf_hash, verify_proof
from genkd.provenance.typed_data import encode_word, keccak256


def test_the_published_example_has_its_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The README of @openzeppelin/merkle-tree: two leaves of (address, uint256)."""
    leaves = [
        keccak256(keccak256(encode_word("address", address) + encode_word("uint256", amount)))
        for address, amount in (
            ("0x" + "1" * 40, 5_000_000_000_000_000_000),
            ("0x" + "2" * 40, 2_500_000_000_000_000_000),
        )
    ]
    monkeypatch.setattr(merkle, "leaf_hash", lambda leaf: leaf)
    root = MerkleTree(leaves).root.hex()
    assert root == "d4dee0beab2d53f2cc83e567171bd2820e49898130a22622b10ead383e90bd77"


IDS = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=40, unique=True)


@settings(max_examples=50, deadline=None)
@given(IDS)
def test_every_leaf_is_proved_and_nothing_else_is(ids: list[bytes]) -> None:
    tree = MerkleTree(ids)
    assert MerkleTree(ids[::-1]).root == tree.root
    for one in ids:
        proof = tree.proof(one)
        assert verify_proof(tree.root, one, proof)
        assert not verify_proof(tree.root, keccak256(one), proof)
        assert not verify_proof(tree.root, one, (*proof, bytes(32)))
        if proof:
            assert not verify_proof(tree.root, one, proof[1:])


def test_a_tree_of_one_is_its_leaf() -> None:
    one = b"\x01" * 32
    assert MerkleTree([one]).root == leaf_hash(one)
    assert MerkleTree([one]).proof(one) == ()


@pytest.mark.parametrize("ids", [[], [b"\x01" * 32] * 2], ids=["none", "one twice"])
def test_a_tree_over_nothing_or_doubles_is_refused(ids: list[bytes]) -> None:
    with pytest.raises(ValueError, match="only once"):
        MerkleTree(ids)


def test_ids_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        MerkleTree([b"short"])


def test_malformed_proofs_prove_nothing() -> None:
    tree = MerkleTree([b"\x01" * 32, b"\x02" * 32])
    assert not verify_proof(tree.root, b"\x01" * 32, [b"short"])
    assert not verify_proof(tree.root, b"\x01" * 32, [bytes(32)] * 33)


def test_the_proof_of_a_stranger_is_refused() -> None:
    with pytest.raises(KeyError):
        MerkleTree([b"\x01" * 32]).proof(b"\x02" * 32)
