// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";

import {IStudentRegistry} from "../src/IStudentRegistry.sol";
import {RegistryTest} from "./RegistryTest.sol";

/// @dev Enrolment, removal, rotation, and what a thief can do with a key.
contract NodesTest is RegistryTest {
    function test_enrolledKeyIsItsOwnIdentityAndKeepsItsProfile() public view {
        IStudentRegistry.Node memory node = registry.nodeOf(vm.addr(ALICE));
        vm.assertEq(node.identity, vm.addr(ALICE), "identity");
        vm.assertEq(node.since, START, "since");
        vm.assertEq(node.until, NEVER, "until");
        vm.assertEq(registry.profileHashOf(vm.addr(ALICE)), PROFILE, "profile");
        vm.assertEq(registry.nextKeyHashOf(vm.addr(ALICE)), _keyHash(ALICE_NEXT), "next key");
    }

    function test_onlyTheOwnerEnrolsRemovesOpensAndRevokes() public {
        bytes memory revertData = abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, STRANGER);
        vm.prank(STRANGER);
        vm.expectRevert(revertData);
        registry.addNode(vm.addr(MALLORY), 0, PROFILE);
        vm.prank(STRANGER);
        vm.expectRevert(revertData);
        registry.removeNode(vm.addr(ALICE), uint48(START));
        vm.prank(STRANGER);
        vm.expectRevert(revertData);
        registry.openRun("other", STRANGER, 0);
        vm.prank(STRANGER);
        vm.expectRevert(revertData);
        registry.revokeAsOwner("id", 0);
    }

    function test_ownershipPassesOnlyToWhoAcceptsIt() public {
        vm.prank(OWNER);
        registry.transferOwnership(STRANGER);
        vm.assertEq(registry.owner(), OWNER, "not before it is accepted");
        vm.prank(STRANGER);
        registry.acceptOwnership();
        vm.assertEq(registry.owner(), STRANGER, "accepted");
    }

    function test_keyIsEnrolledOnlyOnceEvenAfterItsRemoval() public {
        _remove(ALICE, START);
        vm.prank(OWNER);
        vm.expectRevert(IStudentRegistry.AlreadyThere.selector);
        registry.addNode(vm.addr(ALICE), 0, PROFILE);
    }

    function test_zeroKeyAndZeroProfileAreRefused() public {
        vm.prank(OWNER);
        vm.expectRevert(IStudentRegistry.ZeroValue.selector);
        registry.addNode(address(0), 0, PROFILE);
        vm.prank(OWNER);
        vm.expectRevert(IStudentRegistry.ZeroValue.selector);
        registry.addNode(vm.addr(MALLORY), 0, 0);
    }

    function test_runIsOpenedOnlyOnceAndNeedsACoordinator() public {
        vm.prank(OWNER);
        vm.expectRevert(IStudentRegistry.AlreadyThere.selector);
        registry.openRun(RUN, STRANGER, 0);
        vm.prank(OWNER);
        vm.expectRevert(IStudentRegistry.ZeroValue.selector);
        registry.openRun("other", address(0), 0);
        vm.assertEq(registry.runOf(RUN).coordinator, COORDINATOR, "coordinator");
        vm.assertEq(registry.runOf(RUN).configHash, "config", "configuration");
    }

    // ------------------------------------------------------------------ stolen key, before and after

    function test_stolenKeyRemovedFromTheTheftVoidsWhatCameAfterAndKeepsWhatCameBefore() public {
        IStudentRegistry.Student memory honest = _student(ALICE);
        _register(ALICE, honest);
        vm.warp(START + 1 days);
        IStudentRegistry.Student memory forged = _student(ALICE);
        forged.fileHash = "back door";
        _register(ALICE, forged);
        _assertValid(forged, "not yet known to be stolen");

        vm.warp(START + 2 days);
        _remove(ALICE, START + 1 days);
        _assertValid(honest, "made before the theft");
        _assertNotValid(forged, "made after the theft");
    }

    function test_removedKeyRecordsNothingMore() public {
        vm.warp(START + 1);
        _remove(ALICE, START + 1);
        IStudentRegistry.Student memory student = _student(ALICE);
        bytes memory signature = _signStudent(ALICE, student);
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.NotANode.selector, vm.addr(ALICE)));
        registry.register(student, signature);
        bytes memory forTeacher = _signTeacher(ALICE, "second", vm.addr(ALICE), LATER);
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.NotANode.selector, vm.addr(ALICE)));
        registry.commitTeacher("second", vm.addr(ALICE), LATER, forTeacher);
    }

    function test_studentRegisteredBeforeTheRemovalOfItsNodeStaysValid() public {
        IStudentRegistry.Student memory student = _student(ALICE);
        _register(ALICE, student);
        vm.warp(START + 1);
        _remove(ALICE, START + 1);
        _assertValid(student, "recorded one second before the end");
    }

    function test_recordInTheSecondOfTheRemovalIsVoid() public {
        IStudentRegistry.Student memory student = _student(ALICE);
        _register(ALICE, student);
        _remove(ALICE, START);
        _assertNotValid(student, "the end is exclusive");
    }

    function test_keyRemovedFromBeforeItsEnrolmentNeverCounted() public {
        IStudentRegistry.Student memory student = _student(ALICE);
        _register(ALICE, student);
        _remove(ALICE, 0);
        _assertNotValid(student, "removed from the beginning of time");
        vm.assertTrue(!registry.isNodeAt(vm.addr(ALICE), START), "not at its enrolment either");
    }

    function testFuzz_removalMovesOnlyBack(uint48 first, uint48 second) public {
        vm.warp(START + 10 days);
        vm.assume(first <= block.timestamp);
        _remove(ALICE, first);
        vm.prank(OWNER);
        if (second >= first) {
            vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.NotEarlier.selector, second));
        }
        registry.removeNode(vm.addr(ALICE), second);
        vm.assertEq(registry.nodeOf(vm.addr(ALICE)).until, second < first ? second : first, "until");
    }

    function test_removalInTheFutureIsRefused() public {
        vm.prank(OWNER);
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.NotEarlier.selector, uint48(START + 1)));
        registry.removeNode(vm.addr(ALICE), uint48(START + 1));
    }

    function test_removalOfAStrangerIsRefused() public {
        vm.prank(OWNER);
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.NotANode.selector, vm.addr(MALLORY)));
        registry.removeNode(vm.addr(MALLORY), uint48(START));
    }

    function testFuzz_keyCountsFromItsEnrolmentUpToItsRemoval(uint48 time, uint48 until) public {
        vm.warp(START + 100 days);
        vm.assume(until <= block.timestamp);
        _remove(ALICE, until);
        vm.assertTrue(registry.isNodeAt(vm.addr(ALICE), time) == (START <= time && time < until), "interval");
        vm.assertTrue(!registry.isNodeAt(vm.addr(MALLORY), time), "a stranger never counts");
    }

    // ------------------------------------------------------------------ rotation

    function test_nextKeyTakesOverWithItsProfileAndTheSameIdentity() public {
        vm.warp(START + 1);
        vm.prank(STRANGER);
        _rotate(ALICE, ALICE_NEXT, ALICE_LAST);
        IStudentRegistry.Node memory next = registry.nodeOf(vm.addr(ALICE_NEXT));
        vm.assertEq(next.identity, vm.addr(ALICE), "identity stays");
        vm.assertEq(next.since, START + 1, "since");
        vm.assertEq(registry.nodeOf(vm.addr(ALICE)).until, START + 1, "the old key ends");
        vm.assertEq(registry.profileHashOf(vm.addr(ALICE_NEXT)), "new profile", "new profile");
        vm.assertEq(registry.profileHashOf(vm.addr(ALICE)), PROFILE, "the old key keeps its own, for old releases");
        vm.assertEq(registry.nextKeyHashOf(vm.addr(ALICE)), _keyHash(ALICE_LAST), "next commitment");

        IStudentRegistry.Student memory student = _student(ALICE_NEXT);
        _register(ALICE_NEXT, student);
        _assertValid(student, "the teacher committed by the identity still holds");
        vm.warp(START + 2);
        _rotate(ALICE_NEXT, ALICE_LAST, 0);
        _assertValid(student, "and the second rotation leaves it");
    }

    function test_thiefOfTheCurrentKeyCannotRotateToAKeyOfTheirs() public {
        address thief = vm.addr(MALLORY);
        bytes memory signature = _signRotate(MALLORY, vm.addr(ALICE), thief, 0, PROFILE, LATER);
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.WrongNextKey.selector, thief));
        registry.rotate(vm.addr(ALICE), thief, 0, PROFILE, LATER, signature);
    }

    function test_thiefOfTheCurrentKeyCannotRotateInTheNextKeysName() public {
        address next = vm.addr(ALICE_NEXT);
        bytes memory signature = _signRotate(ALICE, vm.addr(ALICE), next, 0, PROFILE, LATER);
        vm.expectRevert(IStudentRegistry.BadSignature.selector);
        registry.rotate(vm.addr(ALICE), next, 0, PROFILE, LATER, signature);
    }

    function test_rotationSeenInTheMempoolCannotBeSentWithAnotherCommitmentOrProfile() public {
        address old = vm.addr(ALICE);
        address next = vm.addr(ALICE_NEXT);
        bytes memory signature = _signRotate(ALICE_NEXT, old, next, _keyHash(ALICE_LAST), "new profile", LATER);
        vm.expectRevert(IStudentRegistry.BadSignature.selector);
        registry.rotate(old, next, _keyHash(MALLORY), "new profile", LATER, signature);
        vm.expectRevert(IStudentRegistry.BadSignature.selector);
        registry.rotate(old, next, _keyHash(ALICE_LAST), "their profile", LATER, signature);
        vm.expectRevert(IStudentRegistry.BadSignature.selector);
        registry.rotate(old, next, _keyHash(ALICE_LAST), "new profile", LATER + 1, signature);
    }

    function test_rotatedKeyRecordsNothingMoreAndRotatesNoMore() public {
        vm.warp(START + 1);
        _rotate(ALICE, ALICE_NEXT, ALICE_LAST);
        IStudentRegistry.Student memory student = _student(ALICE);
        bytes memory signature = _signStudent(ALICE, student);
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.NotANode.selector, vm.addr(ALICE)));
        registry.register(student, signature);

        bytes memory again = _signRotate(ALICE_LAST, vm.addr(ALICE), vm.addr(ALICE_LAST), 0, PROFILE, LATER);
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.NotANode.selector, vm.addr(ALICE)));
        registry.rotate(vm.addr(ALICE), vm.addr(ALICE_LAST), 0, PROFILE, LATER, again);
    }

    function test_replayedRotationIsAlreadyThere() public {
        bytes memory signature = _signRotate(ALICE_NEXT, vm.addr(ALICE), vm.addr(ALICE_NEXT), 0, "new profile", LATER);
        registry.rotate(vm.addr(ALICE), vm.addr(ALICE_NEXT), 0, "new profile", LATER, signature);
        vm.expectRevert(IStudentRegistry.AlreadyThere.selector);
        registry.rotate(vm.addr(ALICE), vm.addr(ALICE_NEXT), 0, "new profile", LATER, signature);
    }

    function test_expiredRotationIsRefused() public {
        bytes memory signature = _signRotate(ALICE_NEXT, vm.addr(ALICE), vm.addr(ALICE_NEXT), 0, "new profile", LATER);
        vm.warp(LATER + 1);
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.Expired.selector, LATER));
        registry.rotate(vm.addr(ALICE), vm.addr(ALICE_NEXT), 0, "new profile", LATER, signature);
    }

    function test_removedNodeCannotRotateItselfBackIn() public {
        vm.warp(START + 1);
        _remove(ALICE, START + 1);
        bytes memory signature = _signRotate(ALICE_NEXT, vm.addr(ALICE), vm.addr(ALICE_NEXT), 0, "new profile", LATER);
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.NotANode.selector, vm.addr(ALICE)));
        registry.rotate(vm.addr(ALICE), vm.addr(ALICE_NEXT), 0, "new profile", LATER, signature);
    }

    function test_nodeWithoutACommitmentCannotRotate() public {
        bytes memory signature = _signRotate(MALLORY, vm.addr(BOB), vm.addr(MALLORY), 0, PROFILE, LATER);
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.WrongNextKey.selector, vm.addr(MALLORY)));
        registry.rotate(vm.addr(BOB), vm.addr(MALLORY), 0, PROFILE, LATER, signature);
    }

    function test_anotherNodesCommitmentCopiedByAThirdBlocksNothing() public {
        vm.prank(OWNER);
        registry.addNode(vm.addr(MALLORY), _keyHash(ALICE_NEXT), PROFILE);
        _rotate(ALICE, ALICE_NEXT, ALICE_LAST);
        vm.assertEq(registry.nodeOf(vm.addr(ALICE_NEXT)).identity, vm.addr(ALICE), "still Alice");
    }

    function test_theftFoundAfterTheRotationVoidsTheOldKeyOnlyFromTheTheft() public {
        IStudentRegistry.Student memory honest = _student(ALICE);
        _register(ALICE, honest);
        vm.warp(START + 1 days);
        IStudentRegistry.Student memory forged = _student(ALICE);
        forged.fileHash = "back door";
        _register(ALICE, forged);
        vm.warp(START + 2 days);
        _rotate(ALICE, ALICE_NEXT, ALICE_LAST);
        _remove(ALICE, START + 1 days);
        IStudentRegistry.Student memory later = _student(ALICE_NEXT);
        _register(ALICE_NEXT, later);
        _assertValid(honest, "before the theft");
        _assertNotValid(forged, "after the theft");
        _assertValid(later, "under the new key");
    }
}
