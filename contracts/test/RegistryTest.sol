// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IStudentRegistry} from "../src/IStudentRegistry.sol";
import {StudentRegistry} from "../src/StudentRegistry.sol";
import {Merkle} from "./Merkle.sol";
import {Vm} from "./Vm.sol";

/// @dev A federation of two nodes, Alice and Bob, with one run; Alice has committed to a teacher. The digests are
/// computed here from the EIP-712 text, not by the contract's functions.
abstract contract RegistryTest {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    uint256 internal constant ALICE = 0xA11CE;
    uint256 internal constant ALICE_NEXT = 0xA11CE2;
    uint256 internal constant ALICE_LAST = 0xA11CE3;
    uint256 internal constant BOB = 0xB0B;
    uint256 internal constant MALLORY = 0x666;
    address internal constant OWNER = address(0x0123);
    address internal constant COORDINATOR = address(0xC00D);
    address internal constant STRANGER = address(0x5742);

    uint256 internal constant START = 1_900_000_000;
    uint64 internal constant LATER = uint64(START + 30 days);
    uint48 internal constant NEVER = type(uint48).max;
    bytes32 internal constant RUN = "run";
    bytes32 internal constant TEACHER = "commitment";
    bytes32 internal constant PROFILE = "profile";
    bytes32[] internal noProof;

    StudentRegistry internal registry;

    function setUp() public virtual {
        vm.warp(START);
        registry = new StudentRegistry(OWNER);
        _enrol(ALICE, ALICE_NEXT);
        _enrol(BOB, 0);
        vm.prank(OWNER);
        registry.openRun(RUN, COORDINATOR, "config");
        _commitTeacher(ALICE);
    }

    // ------------------------------------------------------------------ the other side of EIP-712

    function _separator(StudentRegistry where) internal view returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("GenKD"),
                keccak256("1"),
                block.chainid,
                address(where)
            )
        );
    }

    function _digest(bytes32 structHash) internal view returns (bytes32) {
        return _digestFor(registry, structHash);
    }

    function _digestFor(StudentRegistry where, bytes32 structHash) internal view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", _separator(where), structHash));
    }

    function _studentHash(IStudentRegistry.Student memory s) internal pure returns (bytes32) {
        bytes32 kind = keccak256(
            "Student(bytes32 fileHash,bytes32 tensorRoot,bytes32 metadataHash,bytes32 teacherCommitment,bytes32 runId,bytes32 parentsRoot,address node,uint32 round,uint64 deadline)"
        );
        bytes memory first =
            abi.encode(kind, s.fileHash, s.tensorRoot, s.metadataHash, s.teacherCommitment, s.runId, s.parentsRoot);
        return keccak256(bytes.concat(first, abi.encode(s.node, s.round, s.deadline)));
    }

    function _id(IStudentRegistry.Student memory student) internal view returns (bytes32) {
        return _digest(_studentHash(student));
    }

    function _sign(uint256 secret, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(secret, digest);
        return abi.encodePacked(r, s, v);
    }

    function _signStudent(uint256 secret, IStudentRegistry.Student memory student)
        internal
        view
        returns (bytes memory)
    {
        return _sign(secret, _id(student));
    }

    function _signTeacher(uint256 secret, bytes32 commitment, address node, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        bytes32 kind = keccak256("Teacher(bytes32 commitment,address node,uint64 deadline)");
        return _sign(secret, _digest(keccak256(abi.encode(kind, commitment, node, deadline))));
    }

    function _signRotate(uint256 secret, address oldKey, address newKey, bytes32 next, bytes32 profile, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        bytes32 kind =
            keccak256("Rotate(address oldKey,address newKey,bytes32 nextKeyHash,bytes32 profileHash,uint64 deadline)");
        return _sign(secret, _digest(keccak256(abi.encode(kind, oldKey, newKey, next, profile, deadline))));
    }

    function _signRevoke(uint256 secret, bytes32 id, uint8 reason, address node) internal view returns (bytes memory) {
        bytes32 kind = keccak256("Revoke(bytes32 recordId,uint8 reason,address node)");
        return _sign(secret, _digest(keccak256(abi.encode(kind, id, reason, node))));
    }

    // ------------------------------------------------------------------ things done often

    function _keyHash(uint256 secret) internal pure returns (bytes32) {
        return secret == 0 ? bytes32(0) : keccak256(abi.encode(vm.addr(secret)));
    }

    function _enrol(uint256 secret, uint256 next) internal {
        vm.prank(OWNER);
        registry.addNode(vm.addr(secret), _keyHash(next), PROFILE);
    }

    function _remove(uint256 secret, uint256 until) internal {
        vm.prank(OWNER);
        registry.removeNode(vm.addr(secret), uint48(until));
    }

    function _commitTeacher(uint256 secret) internal {
        address node = vm.addr(secret);
        registry.commitTeacher(TEACHER, node, LATER, _signTeacher(secret, TEACHER, node, LATER));
    }

    function _rotate(uint256 from, uint256 to, uint256 next) internal {
        bytes memory signature = _signRotate(to, vm.addr(from), vm.addr(to), _keyHash(next), "new profile", LATER);
        registry.rotate(vm.addr(from), vm.addr(to), _keyHash(next), "new profile", LATER, signature);
    }

    function _student(uint256 secret) internal pure returns (IStudentRegistry.Student memory) {
        return IStudentRegistry.Student({
            fileHash: "file",
            tensorRoot: "tensors",
            metadataHash: "metadata",
            teacherCommitment: TEACHER,
            runId: RUN,
            parentsRoot: "parents",
            node: vm.addr(secret),
            round: 7,
            deadline: LATER
        });
    }

    function _students(uint256 secret, uint256 count) internal pure returns (IStudentRegistry.Student[] memory all) {
        all = new IStudentRegistry.Student[](count);
        for (uint256 i = 0; i < count; ++i) {
            all[i] = _student(secret);
            all[i].fileHash = bytes32(i + 1);
        }
    }

    function _register(uint256 secret, IStudentRegistry.Student memory student) internal returns (bytes32) {
        return registry.register(student, _signStudent(secret, student));
    }

    /// @dev Commit round 7 over these students, and return the tree.
    function _commitRound(IStudentRegistry.Student[] memory students) internal returns (bytes32[] memory nodes) {
        bytes32[] memory ids = new bytes32[](students.length);
        for (uint256 i = 0; i < students.length; ++i) {
            ids[i] = _id(students[i]);
        }
        nodes = Merkle.tree(ids);
        vm.prank(COORDINATOR);
        registry.commitRound(RUN, 7, nodes[0], uint32(students.length), 0);
    }

    function _verdict(IStudentRegistry.Student memory student) internal view returns (IStudentRegistry.Verdict memory) {
        return registry.verify(student, "", noProof);
    }

    function _assertValid(IStudentRegistry.Student memory student, string memory what) internal view {
        vm.assertTrue(_verdict(student).valid, what);
    }

    function _assertNotValid(IStudentRegistry.Student memory student, string memory what) internal view {
        vm.assertTrue(!_verdict(student).valid, what);
    }
}
