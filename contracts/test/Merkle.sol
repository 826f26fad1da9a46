// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @dev A Merkle tree as OpenZeppelin's StandardMerkleTree builds it, for tests: the contract only checks.
library Merkle {
    function leaf(bytes32 id) internal pure returns (bytes32) {
        return keccak256(bytes.concat(keccak256(abi.encode(id))));
    }

    function pair(bytes32 a, bytes32 b) internal pure returns (bytes32) {
        return a < b ? keccak256(abi.encode(a, b)) : keccak256(abi.encode(b, a));
    }

    /// @return nodes A heap: the root first, the leaves of ids[i] at nodes[2n - 2 - i].
    function tree(bytes32[] memory ids) internal pure returns (bytes32[] memory nodes) {
        uint256 n = ids.length;
        nodes = new bytes32[](2 * n - 1);
        for (uint256 i = 0; i < n; ++i) {
            nodes[2 * n - 2 - i] = leaf(ids[i]);
        }
        for (uint256 i = n - 1; i > 0; --i) {
            nodes[i - 1] = pair(nodes[2 * i - 1], nodes[2 * i]);
        }
    }

    /// @return siblings From the node at `place` of the heap up to the root.
    function proof(bytes32[] memory nodes, uint256 place) internal pure returns (bytes32[] memory siblings) {
        uint256 depth = 0;
        for (uint256 node = place; node > 0; node = (node - 1) / 2) {
            ++depth;
        }
        siblings = new bytes32[](depth);
        for (uint256 i = 0; place > 0; ++i) {
            siblings[i] = nodes[place % 2 == 1 ? place + 1 : place - 1];
            place = (place - 1) / 2;
        }
    }
}
