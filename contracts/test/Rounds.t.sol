// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IStudentRegistry} from "../src/IStudentRegistry.sol";
import {Merkle} from "./Merkle.sol";
import {RegistryTest} from "./RegistryTest.sol";

/// @dev Students recorded by a round's root: what a proof can and cannot be made to say.
contract RoundsTest is RegistryTest {
    /// forge-config: default.fuzz.runs = 32
    function testFuzz_everyStudentOfARoundIsValidByItsProof(uint8 size) public {
        uint256 n = 1 + uint256(size) % 40;
        IStudentRegistry.Student[] memory students = _students(ALICE, n);
        vm.warp(START + 9);
        bytes32[] memory nodes = _commitRound(students);
        for (uint256 i = 0; i < n; ++i) {
            bytes32[] memory proof = Merkle.proof(nodes, 2 * n - 2 - i);
            IStudentRegistry.Verdict memory verdict =
                registry.verify(students[i], _signStudent(ALICE, students[i]), proof);
            vm.assertTrue(verdict.valid, "valid");
            vm.assertEq(verdict.committedAt, START + 9, "time of the root");
            vm.assertEq(verdict.recordedAt, START + 9, "recorded at");
            vm.assertEq(verdict.registeredAt, 0, "not by itself");
        }
    }

    function test_leafOfTheTreeWithoutTheNodesSignatureIsNotValid() public {
        IStudentRegistry.Student[] memory students = _students(ALICE, 4);
        bytes32[] memory nodes = _commitRound(students);
        bytes32[] memory proof = Merkle.proof(nodes, 6);
        vm.assertTrue(!registry.verify(students[0], "", proof).valid, "no signature");
        vm.assertTrue(!registry.verify(students[0], _signStudent(BOB, students[0]), proof).valid, "another's");
        vm.assertTrue(
            !registry.verify(students[0], _signStudent(ALICE, students[1]), proof).valid, "over another student"
        );
        vm.assertTrue(registry.verify(students[0], _signStudent(ALICE, students[0]), proof).valid, "the node's own");
    }

    function test_innerNodeDoesNotPassForALeaf() public {
        // Trees whose leaves are the ids, or their hashes: there an inner node and a leaf look alike.
        IStudentRegistry.Student[] memory students = _students(ALICE, 2);
        bytes memory signature = _signStudent(ALICE, students[0]);
        bytes32[] memory proof = new bytes32[](1);
        uint256 clean = vm.snapshotState();
        for (uint256 hashes = 0; hashes < 2; ++hashes) {
            bytes32 leaf = _id(students[0]);
            proof[0] = _id(students[1]);
            if (hashes == 1) (leaf, proof[0]) = (keccak256(abi.encode(leaf)), keccak256(abi.encode(proof[0])));
            vm.prank(COORDINATOR);
            registry.commitRound(RUN, 7, Merkle.pair(leaf, proof[0]), 2, 0);
            vm.assertTrue(!registry.verify(students[0], signature, proof).valid, "hashed twice, or not a leaf");
            vm.revertToState(clean);
        }
    }

    /// forge-config: default.fuzz.runs = 32
    function testFuzz_rootItselfOrAnInnerNodeIsNoStudent(uint8 size) public {
        uint256 n = 2 + uint256(size) % 30;
        IStudentRegistry.Student[] memory students = _students(ALICE, n);
        bytes32[] memory nodes = _commitRound(students);
        bytes memory signature = _signStudent(ALICE, students[0]);
        // The way from every inner node up to the root is no proof for a student below it.
        for (uint256 place = 0; place < n - 1; ++place) {
            vm.assertTrue(!registry.verify(students[0], signature, Merkle.proof(nodes, place)).valid, "too short");
        }
    }

    /// forge-config: default.fuzz.runs = 32
    function testFuzz_proofOfAnotherStudentOrWithAFlippedBitIsNotValid(uint8 size, uint256 flip) public {
        uint256 n = 2 + uint256(size) % 30;
        IStudentRegistry.Student[] memory students = _students(ALICE, n);
        bytes32[] memory nodes = _commitRound(students);
        bytes memory signature = _signStudent(ALICE, students[0]);
        bytes32[] memory proof = Merkle.proof(nodes, 2 * n - 2);
        vm.assertTrue(registry.verify(students[0], signature, proof).valid, "its own");
        vm.assertTrue(
            !registry.verify(students[0], signature, Merkle.proof(nodes, 2 * n - 3)).valid, "another student's"
        );
        proof[flip % proof.length] ^= bytes32(1 << (flip >> 8) % 256);
        vm.assertTrue(!registry.verify(students[0], signature, proof).valid, "flipped");
    }

    function test_truncatedExtendedOrEmptyProofIsNotValid() public {
        IStudentRegistry.Student[] memory students = _students(ALICE, 4);
        bytes32[] memory nodes = _commitRound(students);
        bytes memory signature = _signStudent(ALICE, students[0]);
        vm.assertTrue(!registry.verify(students[0], signature, noProof).valid, "empty");
        bytes32[] memory whole = Merkle.proof(nodes, 6);
        bytes32[] memory short = new bytes32[](1);
        short[0] = whole[0];
        vm.assertTrue(!registry.verify(students[0], signature, short).valid, "truncated");
        bytes32[] memory long = new bytes32[](3);
        (long[0], long[1], long[2]) = (whole[0], whole[1], nodes[0]);
        vm.assertTrue(!registry.verify(students[0], signature, long).valid, "extended");
    }

    function test_secondRootForARoundIsRefusedAndTheFirstStands() public {
        bytes32[] memory nodes = _commitRound(_students(ALICE, 2));
        vm.prank(COORDINATOR);
        vm.expectRevert(IStudentRegistry.AlreadyThere.selector);
        registry.commitRound(RUN, 7, "another", 2, 0);
        vm.assertEq(registry.roundOf(RUN, 7).root, nodes[0], "root");
        vm.assertEq(registry.roundOf(RUN, 7).count, 2, "count");
    }

    function test_onlyTheRunsCoordinatorCommitsItsRounds() public {
        address[3] memory others = [STRANGER, OWNER, vm.addr(ALICE)];
        for (uint256 i = 0; i < 3; ++i) {
            vm.prank(others[i]);
            vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.NotCoordinator.selector, others[i]));
            registry.commitRound(RUN, 7, "root", 1, 0);
        }
        vm.prank(COORDINATOR);
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.NotCoordinator.selector, COORDINATOR));
        registry.commitRound("unopened", 7, "root", 1, 0);
    }

    function test_emptyRoundIsRefused() public {
        vm.prank(COORDINATOR);
        vm.expectRevert(IStudentRegistry.ZeroValue.selector);
        registry.commitRound(RUN, 7, 0, 1, 0);
        vm.prank(COORDINATOR);
        vm.expectRevert(IStudentRegistry.ZeroValue.selector);
        registry.commitRound(RUN, 7, "root", 0, 0);
    }

    function test_studentOfAnotherRunOrRoundPutIntoThisTreeIsNotValid() public {
        vm.prank(OWNER);
        registry.openRun("other run", COORDINATOR, 0);
        IStudentRegistry.Student[] memory students = _students(ALICE, 2);
        students[0].runId = "other run";
        students[1].round = 8;
        bytes32[] memory nodes = _commitRound(students);
        for (uint256 i = 0; i < 2; ++i) {
            bytes32[] memory proof = Merkle.proof(nodes, 2 - i);
            bytes memory signature = _signStudent(ALICE, students[i]);
            vm.assertTrue(!registry.verify(students[i], signature, proof).valid, "replayed");
        }
    }

    function test_roundCommittedAfterTheDeadlineIsNotValid() public {
        IStudentRegistry.Student[] memory students = _students(ALICE, 1);
        bytes memory signature = _signStudent(ALICE, students[0]);
        vm.warp(LATER + 1);
        _commitRound(students);
        IStudentRegistry.Verdict memory verdict = registry.verify(students[0], signature, noProof);
        vm.assertTrue(!verdict.valid && !verdict.inOrder, "late");
        vm.assertEq(verdict.recordedAt, LATER + 1, "it says when");
    }

    function test_teacherCommittedAfterTheRoundDoesNotCount() public {
        IStudentRegistry.Student[] memory students = _students(BOB, 1);
        bytes memory signature = _signStudent(BOB, students[0]);
        _commitRound(students);
        vm.assertTrue(!registry.verify(students[0], signature, noProof).valid, "never committed");
        vm.warp(START + 1);
        _commitTeacher(BOB);
        vm.assertTrue(!registry.verify(students[0], signature, noProof).valid, "committed too late");
    }

    function test_nodeEnrolledAfterTheRoundDoesNotCount() public {
        IStudentRegistry.Student[] memory students = _students(MALLORY, 1);
        bytes memory signature = _signStudent(MALLORY, students[0]);
        _commitRound(students);
        vm.warp(START + 1);
        _enrol(MALLORY, 0);
        _commitTeacher(MALLORY);
        vm.assertTrue(!registry.verify(students[0], signature, noProof).valid, "a stranger then");
    }

    function test_keyRemovedFromBeforeTheRoundVoidsItsStudentsOnly() public {
        _commitTeacher(BOB);
        IStudentRegistry.Student[] memory students = _students(ALICE, 2);
        students[1].node = vm.addr(BOB);
        vm.warp(START + 1 days);
        bytes32[] memory nodes = _commitRound(students);
        _remove(ALICE, START + 1);
        vm.assertTrue(
            !registry.verify(students[0], _signStudent(ALICE, students[0]), Merkle.proof(nodes, 2)).valid, "Alice's"
        );
        vm.assertTrue(
            registry.verify(students[1], _signStudent(BOB, students[1]), Merkle.proof(nodes, 1)).valid, "Bob's"
        );
    }

    // ------------------------------------------------------------------ both ways at once

    function test_registeringARoundsStudentAfterTheTheftDoesNotVoidTheRound() public {
        IStudentRegistry.Student[] memory students = _students(ALICE, 1);
        bytes memory signature = _signStudent(ALICE, students[0]);
        _commitRound(students);
        vm.warp(START + 2 days);
        vm.prank(STRANGER);
        registry.register(students[0], signature);
        _remove(ALICE, START + 1 days);
        IStudentRegistry.Verdict memory verdict = registry.verify(students[0], signature, noProof);
        vm.assertTrue(verdict.valid, "the round was before");
        vm.assertEq(verdict.recordedAt, START, "and it is what counts");
        vm.assertEq(verdict.registeredAt, START + 2 days, "the other is told");
    }

    function test_censoringCoordinatorThatCommitsLateDoesNotVoidTheRegistration() public {
        IStudentRegistry.Student[] memory students = _students(ALICE, 1);
        bytes memory signature = _signStudent(ALICE, students[0]);
        registry.register(students[0], signature);
        vm.warp(LATER + 1);
        _commitRound(students);
        IStudentRegistry.Verdict memory verdict = registry.verify(students[0], signature, noProof);
        vm.assertTrue(verdict.valid, "registered in time");
        vm.assertEq(verdict.recordedAt, START, "the registration counts");
    }

    function test_censoredNodeRegistersByItself() public {
        _commitRound(_students(BOB, 3)); // without Alice, and for ever
        IStudentRegistry.Student memory student = _student(ALICE);
        vm.prank(STRANGER);
        _register(ALICE, student);
        _assertValid(student, "no one was asked");
    }

    function testFuzz_recordedAtIsTheEarlierOfTheTwo(uint24 first, uint24 second) public {
        vm.assume(uint256(first) < LATER - START && uint256(second) < LATER - START);
        IStudentRegistry.Student[] memory students = _students(ALICE, 1);
        bytes memory signature = _signStudent(ALICE, students[0]);
        bool roundFirst = first < second;
        vm.warp(START + (roundFirst ? first : second));
        if (roundFirst) _commitRound(students);
        else registry.register(students[0], signature);
        vm.warp(START + (roundFirst ? second : first));
        if (roundFirst) registry.register(students[0], signature);
        else _commitRound(students);
        IStudentRegistry.Verdict memory verdict = registry.verify(students[0], signature, noProof);
        vm.assertTrue(verdict.valid, "valid");
        vm.assertEq(verdict.recordedAt, START + (roundFirst ? first : second), "earlier");
        vm.assertEq(verdict.committedAt, START + first, "round");
        vm.assertEq(verdict.registeredAt, START + second, "single");
    }
}
