// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IStudentRegistry} from "../src/IStudentRegistry.sol";
import {RegistryTest} from "./RegistryTest.sol";

/// @dev Withdrawals: by whom, heeded when, and what a thief's is worth.
contract RevocationTest is RegistryTest {
    uint8 private constant DEFECTIVE = 2;
    IStudentRegistry.Student private student;
    bytes32 private id;

    function setUp() public override {
        super.setUp();
        student = _student(ALICE);
        id = _register(ALICE, student);
    }

    function test_nodeWithdrawsItsRecord() public {
        vm.warp(START + 3);
        vm.prank(vm.addr(ALICE));
        registry.revoke(id, DEFECTIVE);
        IStudentRegistry.Verdict memory verdict = _verdict(student);
        vm.assertTrue(!verdict.valid && verdict.inOrder, "withdrawn, though in order");
        vm.assertEq(verdict.revokedByNode.revokedAt, START + 3, "when");
        vm.assertEq(verdict.revokedByNode.reason, DEFECTIVE, "why");
        vm.assertEq(verdict.revokedByNode.key, vm.addr(ALICE), "by which key");
        vm.assertTrue(registry.entryOf(id).revoked, "also by id alone");
    }

    function test_anyoneCarriesTheNodesWithdrawal() public {
        bytes memory signature = _signRevoke(ALICE, id, DEFECTIVE, vm.addr(ALICE));
        vm.prank(STRANGER);
        registry.revokeFor(id, DEFECTIVE, vm.addr(ALICE), signature);
        _assertNotValid(student, "withdrawn");
        vm.expectRevert(IStudentRegistry.AlreadyThere.selector);
        registry.revokeFor(id, DEFECTIVE, vm.addr(ALICE), signature);
    }

    function test_withdrawalThatStandsIsAlreadyThereAlsoForAnEndedKey() public {
        bytes memory signature = _signRevoke(ALICE, id, DEFECTIVE, vm.addr(ALICE));
        registry.revokeFor(id, DEFECTIVE, vm.addr(ALICE), signature);
        vm.warp(START + 1);
        _rotate(ALICE, ALICE_NEXT, 0);
        vm.expectRevert(IStudentRegistry.AlreadyThere.selector);
        registry.revokeFor(id, DEFECTIVE, vm.addr(ALICE), signature);
    }

    function test_ownersWithdrawalIsNotTakenForAStrangersOwn() public {
        vm.prank(OWNER);
        registry.revokeAsOwner(id, DEFECTIVE);
        bytes memory signature = _signRevoke(MALLORY, id, DEFECTIVE, vm.addr(MALLORY));
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.NotANode.selector, vm.addr(MALLORY)));
        registry.revokeFor(id, DEFECTIVE, vm.addr(MALLORY), signature);
    }

    function test_ownerWithdrawsARecord() public {
        vm.prank(OWNER);
        registry.revokeAsOwner(id, DEFECTIVE);
        _assertNotValid(student, "withdrawn");
        vm.assertEq(_verdict(student).revokedByOwner.key, OWNER, "by the owner");
        vm.assertTrue(registry.entryOf(id).revoked, "also by id alone");
        vm.prank(OWNER);
        vm.expectRevert(IStudentRegistry.AlreadyThere.selector);
        registry.revokeAsOwner(id, 0);
    }

    function testFuzz_withdrawalOfAnotherRecordReasonOrSignerIsRefused(bytes32 otherId, uint8 otherReason) public {
        vm.assume(otherId != id && otherReason != DEFECTIVE);
        address alice = vm.addr(ALICE);
        bytes memory signature = _signRevoke(ALICE, id, DEFECTIVE, alice);
        vm.expectRevert(IStudentRegistry.BadSignature.selector);
        registry.revokeFor(otherId, DEFECTIVE, alice, signature);
        vm.expectRevert(IStudentRegistry.BadSignature.selector);
        registry.revokeFor(id, otherReason, alice, signature);
        vm.expectRevert(IStudentRegistry.BadSignature.selector);
        registry.revokeFor(id, DEFECTIVE, vm.addr(BOB), signature);
    }

    function test_anotherNodesWithdrawalIsNotHeededAndBlocksNothing() public {
        vm.prank(vm.addr(BOB));
        registry.revoke(id, DEFECTIVE);
        _assertValid(student, "Bob has no say");
        vm.prank(vm.addr(ALICE));
        registry.revoke(id, DEFECTIVE);
        _assertNotValid(student, "Alice has");
    }

    function test_strangerCannotWithdraw() public {
        vm.prank(STRANGER);
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.NotANode.selector, STRANGER));
        registry.revoke(id, DEFECTIVE);
    }

    function test_recordCanBeWithdrawnBeforeItIsMade() public {
        IStudentRegistry.Student memory next = _student(ALICE);
        next.round = 8;
        vm.prank(vm.addr(ALICE));
        registry.revoke(_id(next), DEFECTIVE);
        _register(ALICE, next);
        _assertNotValid(next, "withdrawn beforehand");
    }

    function test_nextKeyWithdrawsARecordOfTheOldKey() public {
        _rotate(ALICE, ALICE_NEXT, 0);
        vm.prank(vm.addr(ALICE_NEXT));
        registry.revoke(id, DEFECTIVE);
        _assertNotValid(student, "the same identity");
    }

    function test_withdrawalOutlivesTheOrdinaryEndOfItsKey() public {
        vm.prank(vm.addr(ALICE));
        registry.revoke(id, DEFECTIVE);
        vm.warp(START + 1);
        _rotate(ALICE, ALICE_NEXT, 0);
        _assertNotValid(student, "the key counted when it withdrew");
    }

    function test_thiefsWithdrawalIsVoidOnceTheKeyIsRemovedFromBeforeIt() public {
        vm.warp(START + 1 days);
        vm.prank(vm.addr(ALICE));
        registry.revoke(id, 1);
        _assertNotValid(student, "not yet known to be a thief's");
        vm.warp(START + 2 days);
        _rotate(ALICE, ALICE_NEXT, 0);
        _remove(ALICE, START + 1 days);
        _assertValid(student, "the withdrawal is void");
        vm.assertTrue(!registry.entryOf(id).revoked, "also by id alone");
        vm.assertEq(registry.revocationOf(id, vm.addr(ALICE)).revokedAt, START + 1 days, "it can still be seen");

        vm.prank(vm.addr(ALICE_NEXT));
        registry.revoke(id, DEFECTIVE);
        _assertNotValid(student, "and does not keep the node from its own");
        vm.prank(vm.addr(ALICE_NEXT));
        vm.expectRevert(IStudentRegistry.AlreadyThere.selector);
        registry.revoke(id, 0);
    }

    function test_removedKeyWithdrawsNothing() public {
        vm.warp(START + 1);
        _remove(ALICE, START + 1);
        bytes memory signature = _signRevoke(ALICE, id, DEFECTIVE, vm.addr(ALICE));
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.NotANode.selector, vm.addr(ALICE)));
        registry.revokeFor(id, DEFECTIVE, vm.addr(ALICE), signature);
    }

    function test_ownersWithdrawalIsNoUnknownKeysOwn() public {
        vm.prank(OWNER);
        registry.revokeAsOwner(_id(_student(MALLORY)), DEFECTIVE);
        vm.assertEq(_verdict(_student(MALLORY)).revokedByNode.revokedAt, 0, "no identity, no withdrawal by it");
    }
}
