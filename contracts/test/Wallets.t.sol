// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

import {IStudentRegistry} from "../src/IStudentRegistry.sol";
import {RegistryTest} from "./RegistryTest.sol";

/// @dev A wallet with one key, which it can change.
contract Wallet is IERC1271 {
    address public key;

    constructor(address first) {
        key = first;
    }

    function change(address next) external {
        key = next;
    }

    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        (address signer,,) = ECDSA.tryRecoverCalldata(hash, signature);
        return signer == key ? IERC1271.isValidSignature.selector : bytes4(0);
    }
}

/// @dev Says yes in the wrong words.
contract SloppyWallet {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bool) {
        return true;
    }
}

/// @dev Says no to everything.
contract StubbornWallet {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        return 0xffffffff;
    }
}

/// @dev Nodes whose key is an ERC-1271 wallet, or has been given code (EIP-7702).
contract WalletsTest is RegistryTest {
    Wallet private wallet;

    function setUp() public override {
        super.setUp();
        wallet = new Wallet(vm.addr(MALLORY));
        vm.prank(OWNER);
        registry.addNode(address(wallet), 0, PROFILE);
        registry.commitTeacher(TEACHER, address(wallet), LATER, _signTeacher(MALLORY, TEACHER, address(wallet), LATER));
    }

    function _walletStudent() private view returns (IStudentRegistry.Student memory student) {
        student = _student(ALICE);
        student.node = address(wallet);
    }

    function test_walletRegistersAndItsRecordOutlivesItsKey() public {
        IStudentRegistry.Student memory student = _walletStudent();
        _register(MALLORY, student);
        _assertValid(student, "registered");
        wallet.change(vm.addr(BOB));
        _assertValid(student, "its word was taken once");
    }

    function test_walletsRoundAnswerFollowsTheWallet() public {
        IStudentRegistry.Student[] memory students = new IStudentRegistry.Student[](1);
        students[0] = _walletStudent();
        bytes memory signature = _signStudent(MALLORY, students[0]);
        _commitRound(students);
        vm.assertTrue(registry.verify(students[0], signature, noProof).valid, "in the round");
        wallet.change(vm.addr(BOB));
        vm.assertTrue(!registry.verify(students[0], signature, noProof).valid, "documented: such a node registers");
    }

    function test_walletThatSaysNoOrAnswersWronglyIsRefused() public {
        IStudentRegistry.Student memory student = _walletStudent();
        bytes memory signature = _signStudent(BOB, student);
        vm.expectRevert(IStudentRegistry.BadSignature.selector);
        registry.register(student, signature);

        vm.etch(address(wallet), address(new SloppyWallet()).code);
        signature = _signStudent(MALLORY, student);
        vm.expectRevert(IStudentRegistry.BadSignature.selector);
        registry.register(student, signature);
    }

    function test_thiefWhoDelegatesAnAccountLongAfterDoesNotVoidItsRounds() public {
        IStudentRegistry.Student[] memory students = _students(ALICE, 1);
        bytes memory signature = _signStudent(ALICE, students[0]);
        _commitRound(students);
        vm.warp(START + 1 days);
        _remove(ALICE, START + 1 days);
        vm.etch(vm.addr(ALICE), address(new StubbornWallet()).code);
        vm.assertTrue(registry.verify(students[0], signature, noProof).valid, "the key's word stands");
    }

    function test_accountWithCodeIsStillBelievedByItsKey() public {
        vm.etch(vm.addr(ALICE), address(new StubbornWallet()).code);
        IStudentRegistry.Student memory student = _student(ALICE);
        _register(ALICE, student);
        _assertValid(student, "signed with the key");
        student.round = 8;
        bytes memory signature = _signStudent(BOB, student);
        vm.expectRevert(IStudentRegistry.BadSignature.selector);
        registry.register(student, signature);
    }
}
