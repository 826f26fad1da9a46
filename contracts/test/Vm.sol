// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @dev The few of forge's cheat codes that these tests use.
interface Vm {
    struct Gas {
        uint64 gasLimit;
        uint64 gasTotalUsed;
        uint64 gasMemoryUsed;
        int64 gasRefunded;
        uint64 gasRemaining;
    }

    function addr(uint256 secret) external pure returns (address);
    function sign(uint256 secret, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function warp(uint256 time) external;
    function chainId(uint256 id) external;
    function prank(address sender) external;
    function etch(address target, bytes calldata code) external;
    function expectRevert(bytes calldata revertData) external;
    function expectRevert(bytes4 revertData) external;
    function expectEmit(address emitter) external;
    function assume(bool condition) external pure;
    function snapshotState() external returns (uint256 id);
    function revertToState(uint256 id) external returns (bool done);
    function snapshotGasLastCall(string calldata group, string calldata name) external returns (uint256 gasUsed);
    function lastCallGas() external view returns (Gas memory gas);
    function assertTrue(bool condition, string calldata claim) external pure;
    function assertEq(uint256 left, uint256 right, string calldata claim) external pure;
    function assertEq(bytes32 left, bytes32 right, string calldata claim) external pure;
    function assertEq(address left, address right, string calldata claim) external pure;
    function assertLe(uint256 left, uint256 right, string calldata claim) external pure;
}
