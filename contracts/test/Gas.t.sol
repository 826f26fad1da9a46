// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IStudentRegistry} from "../src/IStudentRegistry.sol";
import {StudentRegistry} from "../src/StudentRegistry.sol";
import {Merkle} from "./Merkle.sol";
import {RegistryTest} from "./RegistryTest.sol";

/// @dev What each call costs its sender, kept in snapshots/StudentRegistry.json. Record fields are hashes, as they
/// are in life: zero bytes are cheaper to send, and would flatter the figures. Every call is a transaction of its own
/// (`isolate`), so that the figures include what a sender pays before the first instruction.
/// forge-config: default.isolate = true
contract GasTest is RegistryTest {
    uint256 private constant REGISTER_AT_MOST = 75_000;
    uint256 private constant COMMIT_ROUND_BELOW = 80_000;

    function _snapshot(string memory name) private returns (uint256) {
        vm.snapshotGasLastCall("StudentRegistry", name);
        return vm.lastCallGas().gasTotalUsed;
    }

    function _hashes(uint256 secret) private pure returns (IStudentRegistry.Student memory student) {
        student = _student(secret);
        student.fileHash = keccak256("file");
        student.tensorRoot = keccak256("tensors");
        student.metadataHash = keccak256("metadata");
        student.parentsRoot = keccak256("parents");
        student.runId = keccak256("run");
        student.teacherCommitment = keccak256("commitment");
    }

    function test_gasOfEveryCall() public {
        new StudentRegistry(OWNER);
        _snapshot("deploy");
        vm.prank(OWNER);
        registry.addNode(vm.addr(MALLORY), keccak256("next"), keccak256("profile"));
        _snapshot("addNode");
        vm.prank(OWNER);
        registry.removeNode(vm.addr(MALLORY), uint48(START));
        _snapshot("removeNode");
        vm.prank(OWNER);
        registry.openRun(keccak256("run"), COORDINATOR, keccak256("configuration"));
        _snapshot("openRun");

        address alice = vm.addr(ALICE);
        bytes memory signature = _signTeacher(ALICE, keccak256("commitment"), alice, LATER);
        registry.commitTeacher(keccak256("commitment"), alice, LATER, signature);
        _snapshot("commitTeacher");

        IStudentRegistry.Student memory student = _hashes(ALICE);
        signature = _signStudent(ALICE, student);
        bytes32 id = registry.register(student, signature);
        vm.assertLe(_snapshot("register"), REGISTER_AT_MOST, "register");

        vm.prank(alice);
        registry.revoke(id, 2);
        _snapshot("revoke");
        vm.prank(OWNER);
        registry.revokeAsOwner(id, 2);
        _snapshot("revokeAsOwner");
        signature = _signRevoke(ALICE, keccak256("id"), 2, alice);
        registry.revokeFor(keccak256("id"), 2, alice, signature);
        _snapshot("revokeFor");

        address next = vm.addr(ALICE_NEXT);
        signature = _signRotate(ALICE_NEXT, alice, next, _keyHash(ALICE_LAST), keccak256("profile"), LATER);
        registry.rotate(alice, next, _keyHash(ALICE_LAST), keccak256("profile"), LATER, signature);
        _snapshot("rotate");
    }

    function test_gasOfARoundDoesNotDependOnItsSize() public {
        bytes32 run = keccak256("run");
        vm.prank(OWNER);
        registry.openRun(run, COORDINATOR, keccak256("configuration"));
        vm.prank(COORDINATOR);
        registry.commitRound(run, 1, keccak256("root"), 10_000, keccak256("aggregate"));
        uint256 large = _snapshot("commitRound of 10000 students");
        vm.assertTrue(large < COMMIT_ROUND_BELOW, "commitRound");
        vm.assertTrue(large < 8 * 10_000, "under 8 gas a student");
        vm.prank(COORDINATOR);
        registry.commitRound(run, 2, keccak256("root"), 1, keccak256("aggregate"));
        vm.assertLe(large, _snapshot("commitRound of 1 student") + 100, "the same but for the count's bytes");
    }

    function test_gasOfAVerification() public {
        IStudentRegistry.Student[] memory students = _students(ALICE, 16);
        bytes32[] memory nodes = _commitRound(students);
        registry.verify(students[0], _signStudent(ALICE, students[0]), Merkle.proof(nodes, 30));
        _snapshot("verify, 1 of a round of 16");
        bytes memory signature = _signStudent(ALICE, students[0]);
        registry.register(students[0], signature);
        registry.verify(students[0], signature, noProof);
        _snapshot("verify, recorded by itself");
    }
}
