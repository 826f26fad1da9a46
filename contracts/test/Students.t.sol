// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IStudentRegistry} from "../src/IStudentRegistry.sol";
import {StudentRegistry} from "../src/StudentRegistry.sol";
import {RegistryTest} from "./RegistryTest.sol";

/// @dev Students recorded by themselves, and their teachers: every way to record what a node did not sign.
contract StudentsTest is RegistryTest {
    uint256 private constant CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    function _refused(IStudentRegistry.Student memory student, bytes memory signature, bytes memory revertData)
        private
    {
        vm.expectRevert(revertData);
        registry.register(student, signature);
    }

    function _badSignature() private pure returns (bytes memory) {
        return abi.encodeWithSelector(IStudentRegistry.BadSignature.selector);
    }

    function test_registeredStudentIsValidAndItsEventHoldsAllOfIt() public {
        IStudentRegistry.Student memory student = _student(ALICE);
        bytes memory signature = _signStudent(ALICE, student);
        vm.warp(START + 5);
        vm.expectEmit(address(registry));
        emit IStudentRegistry.StudentRegistered(_id(student), student.tensorRoot, student.node, student);
        vm.prank(STRANGER);
        bytes32 id = registry.register(student, signature);

        vm.assertEq(id, _id(student), "record id is the EIP-712 digest");
        IStudentRegistry.Verdict memory verdict = _verdict(student);
        vm.assertTrue(verdict.valid && verdict.inOrder, "valid");
        vm.assertEq(verdict.recordId, id, "record id");
        vm.assertEq(verdict.profileHash, PROFILE, "profile");
        vm.assertEq(verdict.recordedAt, START + 5, "recorded at");
        vm.assertEq(verdict.registeredAt, START + 5, "registered at");
        vm.assertEq(verdict.committedAt, 0, "in no round");
        vm.assertEq(verdict.teacherCommittedAt, START, "teacher");
        IStudentRegistry.Entry memory entry = registry.entryOf(id);
        vm.assertEq(entry.node, student.node, "entry's node");
        vm.assertEq(entry.recordedAt, START + 5, "entry's time");
        vm.assertEq(entry.round, 7, "entry's round");
        vm.assertTrue(entry.nodeCounted && !entry.revoked, "entry stands");
    }

    function testFuzz_recordIdIsTheDigestOfEveryField(IStudentRegistry.Student memory student) public view {
        vm.assertEq(registry.recordIdOf(student), _id(student), "digest");
    }

    function test_unknownStudentIsNotValid() public view {
        IStudentRegistry.Verdict memory verdict = _verdict(_student(ALICE));
        vm.assertTrue(!verdict.valid && !verdict.inOrder && verdict.recordedAt == 0, "not recorded");
        vm.assertEq(registry.entryOf(_id(_student(ALICE))).node, address(0), "no entry");
    }

    function test_entriesOfSeveralComeInTheOrderAsked() public {
        _commitTeacher(BOB);
        bytes32[] memory ids = new bytes32[](3);
        (ids[0], ids[1], ids[2]) = (_register(BOB, _student(BOB)), "unknown", _register(ALICE, _student(ALICE)));
        IStudentRegistry.Entry[] memory entries = registry.entriesOf(ids);
        vm.assertEq(entries.length, 3, "one each");
        vm.assertEq(entries[0].node, vm.addr(BOB), "first");
        vm.assertEq(entries[1].node, address(0), "unknown");
        vm.assertEq(entries[2].node, vm.addr(ALICE), "last");
        vm.assertEq(registry.entriesOf(noProof).length, 0, "none asked, none told");
    }

    // ------------------------------------------------------------------ replay, substitution, bit flips

    function testFuzz_anyOtherRecordUnderTheSameSignatureIsRefused(IStudentRegistry.Student memory other) public {
        IStudentRegistry.Student memory signed = _student(ALICE);
        bytes memory signature = _signStudent(ALICE, signed);
        // Let all other checks pass, so that it is the signature that fails.
        other.node = signed.node;
        other.runId = RUN;
        other.teacherCommitment = TEACHER;
        other.deadline = LATER + other.deadline % 1000;
        vm.assume(_id(other) != _id(signed));
        _refused(other, signature, _badSignature());
    }

    function testFuzz_flippedBitInTheRecordIsRefusedAndUnknown(uint256 bit) public {
        IStudentRegistry.Student memory signed = _student(ALICE);
        bytes memory signature = _signStudent(ALICE, signed);
        registry.register(signed, signature);
        bytes memory encoded = abi.encode(signed);
        // The last bytes of each word only: higher ones do not fit the narrow fields and do not decode.
        bit = bit % (9 * 32);
        encoded[(bit / 32) * 32 + 31 - (bit % 32) / 8] ^= bytes1(uint8(1) << uint8(bit % 8));
        IStudentRegistry.Student memory flipped = abi.decode(encoded, (IStudentRegistry.Student));
        vm.assertTrue(!registry.verify(flipped, signature, noProof).valid, "flipped");
        try registry.register(flipped, signature) {
            vm.assertTrue(false, "a flipped record was registered");
        } catch {}
    }

    function testFuzz_flippedBitInTheSignatureIsRefused(uint256 bit) public {
        IStudentRegistry.Student memory student = _student(ALICE);
        bytes memory signature = _signStudent(ALICE, student);
        bit = bit % (65 * 8);
        signature[bit / 8] ^= bytes1(uint8(1) << uint8(bit % 8));
        _refused(student, signature, _badSignature());
    }

    function testFuzz_signatureOfAnotherLengthIsRefused(bytes memory signature) public {
        vm.assume(signature.length != 65);
        _refused(_student(ALICE), signature, _badSignature());
    }

    function test_compactSignatureIsRefused() public {
        IStudentRegistry.Student memory student = _student(ALICE);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(ALICE, _id(student));
        bytes32 vs = bytes32(uint256(s) | (uint256(v - 27) << 255));
        _refused(student, abi.encodePacked(r, vs), _badSignature());
    }

    function testFuzz_highSTwinIsRefused(bytes32 fileHash) public {
        IStudentRegistry.Student memory student = _student(ALICE);
        student.fileHash = fileHash;
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(ALICE, _id(student));
        bytes memory twin = abi.encodePacked(r, bytes32(CURVE_ORDER - uint256(s)), v == 27 ? uint8(28) : uint8(27));
        _refused(student, twin, _badSignature());
    }

    function test_zeroSignatureOfAnUnenrolledZeroAddressIsRefused() public {
        IStudentRegistry.Student memory student = _student(ALICE);
        student.node = address(0);
        _refused(student, new bytes(65), abi.encodeWithSelector(IStudentRegistry.NotANode.selector, address(0)));
    }

    function test_signatureForAnotherRegistryIsRefused() public {
        StudentRegistry other = new StudentRegistry(OWNER);
        IStudentRegistry.Student memory student = _student(ALICE);
        bytes memory signature = _sign(ALICE, _digestFor(other, _studentHash(student)));
        _refused(student, signature, _badSignature());
    }

    function test_signatureForAnotherChainIsRefusedAlsoAfterAFork() public {
        IStudentRegistry.Student memory student = _student(ALICE);
        bytes memory signature = _signStudent(ALICE, student);
        uint256 here = block.chainid;
        vm.chainId(here + 1);
        _refused(student, signature, _badSignature());
        vm.chainId(here);
        registry.register(student, signature);
    }

    function test_teachersSignatureIsNoStudentsSignature() public {
        IStudentRegistry.Student memory student = _student(ALICE);
        _refused(student, _signTeacher(ALICE, TEACHER, student.node, LATER), _badSignature());
    }

    function test_studentSignedByAnotherNodeIsRefused() public {
        IStudentRegistry.Student memory student = _student(ALICE);
        _refused(student, _signStudent(BOB, student), _badSignature());
    }

    // ------------------------------------------------------------------ front-running and copycats

    function test_frontRunnerMakesTheAuthorsRecordAndTheAuthorSeesAlreadyThere() public {
        IStudentRegistry.Student memory student = _student(ALICE);
        bytes memory signature = _signStudent(ALICE, student);
        vm.prank(STRANGER);
        registry.register(student, signature);
        _refused(student, signature, abi.encodeWithSelector(IStudentRegistry.AlreadyThere.selector));
        vm.assertEq(registry.entryOf(_id(student)).node, vm.addr(ALICE), "the author's all the same");
    }

    function test_copycatNeitherBlocksNorOverwritesTheAuthor() public {
        _commitTeacher(BOB);
        IStudentRegistry.Student memory copy = _student(BOB);
        _register(BOB, copy);
        IStudentRegistry.Student memory student = _student(ALICE);
        vm.warp(START + 1);
        _register(ALICE, student);
        _assertValid(student, "the author's");
        _assertValid(copy, "a second claim, of Bob's, seen as such by its node");
        vm.assertEq(_verdict(student).recordedAt, START + 1, "untouched");
        vm.assertEq(_verdict(copy).node.identity, vm.addr(BOB), "named");
    }

    function test_copiedTeacherCommitmentNeitherBlocksNorServesAnother() public {
        registry.commitTeacher("secret", vm.addr(BOB), LATER, _signTeacher(BOB, "secret", vm.addr(BOB), LATER));
        IStudentRegistry.Student memory student = _student(ALICE);
        student.teacherCommitment = "secret";
        bytes memory signature = _signStudent(ALICE, student);
        _refused(
            student, signature, abi.encodeWithSelector(IStudentRegistry.TeacherNotCommitted.selector, bytes32("secret"))
        );
        registry.commitTeacher("secret", vm.addr(ALICE), LATER, _signTeacher(ALICE, "secret", vm.addr(ALICE), LATER));
        registry.register(student, signature);
    }

    function test_recordThatStandsIsAlreadyThereWhateverHappenedSince() public {
        IStudentRegistry.Student memory student = _student(ALICE);
        bytes memory signature = _signStudent(ALICE, student);
        registry.register(student, signature);
        vm.warp(LATER + 1);
        _remove(ALICE, LATER);
        _refused(student, signature, abi.encodeWithSelector(IStudentRegistry.AlreadyThere.selector));
    }

    // ------------------------------------------------------------------ deadlines, runs, teachers, strangers

    function testFuzz_deadlineIsTheLastSecond(uint64 deadline, uint48 now_) public {
        vm.assume(now_ >= START);
        IStudentRegistry.Student memory student = _student(ALICE);
        student.deadline = deadline;
        bytes memory signature = _signStudent(ALICE, student);
        vm.warp(now_);
        vm.assume(now_ < NEVER);
        if (now_ > deadline) vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.Expired.selector, deadline));
        registry.register(student, signature);
        vm.assertTrue(_verdict(student).valid == (now_ <= deadline), "valid exactly if it was in time");
    }

    function test_uncommittedTeacherIsRefused() public {
        IStudentRegistry.Student memory student = _student(ALICE);
        student.teacherCommitment = "uncommitted";
        _refused(
            student,
            _signStudent(ALICE, student),
            abi.encodeWithSelector(IStudentRegistry.TeacherNotCommitted.selector, bytes32("uncommitted"))
        );
    }

    function test_unknownRunIsRefused() public {
        IStudentRegistry.Student memory student = _student(ALICE);
        student.runId = "unopened";
        _refused(
            student,
            _signStudent(ALICE, student),
            abi.encodeWithSelector(IStudentRegistry.UnknownRun.selector, bytes32("unopened"))
        );
    }

    function testFuzz_strangerIsRefused(uint256 secret) public {
        secret = 1 + secret % (CURVE_ORDER - 1);
        vm.assume(secret != ALICE && secret != BOB);
        IStudentRegistry.Student memory student = _student(secret);
        _refused(
            student,
            _signStudent(secret, student),
            abi.encodeWithSelector(IStudentRegistry.NotANode.selector, vm.addr(secret))
        );
    }

    function test_teacherIsCommittedOnceInTimeByItsSigner() public {
        address alice = vm.addr(ALICE);
        bytes memory signature = _signTeacher(ALICE, TEACHER, alice, LATER);
        vm.expectRevert(IStudentRegistry.AlreadyThere.selector);
        registry.commitTeacher(TEACHER, alice, LATER, signature);

        signature = _signTeacher(BOB, "other", alice, LATER);
        vm.expectRevert(IStudentRegistry.BadSignature.selector);
        registry.commitTeacher("other", alice, LATER, signature);

        signature = _signTeacher(ALICE, "other", alice, uint64(START));
        vm.warp(START + 1);
        vm.expectRevert(abi.encodeWithSelector(IStudentRegistry.Expired.selector, uint64(START)));
        registry.commitTeacher("other", alice, uint64(START), signature);
        vm.assertEq(registry.teacherCommittedAt(TEACHER, alice), START, "first commitment stands");
    }
}
