// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IStudentRegistry} from "../src/IStudentRegistry.sol";
import {RegistryTest} from "./RegistryTest.sol";

/// @dev Plays random sequences of everybody's moves, honest and not, and remembers what was written. Keys come in
/// four lines (identities), each of four generations; a line's later keys take over by rotation.
contract Players is RegistryTest {
    uint256 private constant LINES = 4;
    uint256 private constant GENERATIONS = 4;

    struct Written {
        IStudentRegistry.Student student;
        bytes32 id;
        uint48 recordedAt;
        uint256 signer;
        bool wasVoid;
    }

    Written[] private _written;
    mapping(bytes32 id => bool) private _known;
    mapping(address key => uint48) public untilSeen;
    mapping(uint32 round => bytes32) public rootSeen;
    uint32[] private _rounds;
    uint256 public forgeries;
    address[] private _keys;

    function setUp() public override {
        super.setUp();
        for (uint256 i = 0; i < LINES * GENERATIONS; ++i) {
            _keys.push(vm.addr(_secret(i / GENERATIONS, i)));
        }
        for (uint256 i = 0; i < LINES; ++i) {
            _enrol(_secret(i, 0), _secret(i, 1));
            _commitTeacher(_secret(i, 0));
        }
        _lookAtKeys();
    }

    function _secret(uint256 line, uint256 generation) private pure returns (uint256) {
        return uint256(keccak256(abi.encode("line", line % LINES, generation % GENERATIONS))) >> 1;
    }

    function writtenCount() external view returns (uint256) {
        return _written.length;
    }

    function written(uint256 i) external view returns (Written memory) {
        return _written[i];
    }

    function rounds() external view returns (uint32[] memory) {
        return _rounds;
    }

    function registryUnderTest() external view returns (IStudentRegistry) {
        return registry;
    }

    function keys() public view returns (address[] memory) {
        return _keys;
    }

    function lineOf(uint256 i) external pure returns (uint256) {
        return i / GENERATIONS;
    }

    // ------------------------------------------------------------------ moves

    function timePasses(uint16 seconds_) external {
        vm.warp(block.timestamp + seconds_);
    }

    function ownerRemoves(uint256 line, uint256 generation, uint16 ago) external {
        vm.prank(OWNER);
        try registry.removeNode(vm.addr(_secret(line, generation)), uint48(block.timestamp - ago)) {} catch {}
        _lookAtKeys();
    }

    function ownerEnrolsAgain(uint256 line, uint256 generation) external {
        address key = vm.addr(_secret(line, generation));
        if (registry.nodeOf(key).identity == address(0)) return; // a fresh key may be enrolled, of course
        vm.prank(OWNER);
        try registry.addNode(key, 0, PROFILE) {
            ++forgeries;
        } catch {}
    }

    function nodeRotates(uint256 line, uint256 generation) external {
        generation = generation % (GENERATIONS - 1);
        _tryRotate(line, generation, _secret(line, generation + 1), _secret(line, generation + 2));
    }

    function thiefRotates(uint256 line, uint256 generation, uint256 to) external {
        uint256 secret = uint256(keccak256(abi.encode("thief", to))) >> 1;
        if (_tryRotate(line, generation, secret, 0)) ++forgeries;
    }

    function _tryRotate(uint256 line, uint256 generation, uint256 to, uint256 next) private returns (bool done) {
        address old = vm.addr(_secret(line, generation));
        bytes memory signature = _signRotate(to, old, vm.addr(to), _keyHash(next), PROFILE, type(uint64).max);
        try registry.rotate(old, vm.addr(to), _keyHash(next), PROFILE, type(uint64).max, signature) {
            done = true;
        } catch {}
        _lookAtKeys();
    }

    function nodeRegisters(uint256 line, uint256 generation, uint8 file, uint32 patience) external {
        uint256 secret = _secret(line, generation);
        _tryRegister(_move(secret, file, patience), secret);
    }

    function thiefRegistersInAnothersName(uint256 line, uint256 generation, uint8 file, uint256 by) external {
        IStudentRegistry.Student memory student = _move(_secret(line, generation), file, 1000);
        uint256 other = _secret(by, generation);
        if (vm.addr(other) == student.node || _known[_id(student)]) return;
        if (_tryRegister(student, other)) ++forgeries;
    }

    function _move(uint256 secret, uint8 file, uint32 patience)
        private
        view
        returns (IStudentRegistry.Student memory student)
    {
        student = _student(secret);
        student.fileHash = bytes32(uint256(file));
        student.deadline = uint64(block.timestamp + patience);
    }

    function _tryRegister(IStudentRegistry.Student memory student, uint256 signer) private returns (bool) {
        bytes32 id = _id(student);
        try registry.register(student, _sign(signer, id)) {
            if (_known[id]) ++forgeries; // written twice
            _known[id] = true;
            _written.push(Written(student, id, uint48(block.timestamp), signer, false));
            return true;
        } catch {
            return false;
        }
    }

    function keyRevokes(uint256 line, uint256 generation, uint256 which) external {
        if (_written.length == 0) return;
        vm.prank(vm.addr(_secret(line, generation)));
        try registry.revoke(_written[which % _written.length].id, 1) {} catch {}
    }

    function coordinatorCommits(uint32 round, bytes32 root) external {
        round = round % 8;
        vm.prank(COORDINATOR);
        try registry.commitRound(RUN, round, root, 1, 0) {
            if (rootSeen[round] != 0) ++forgeries;
            rootSeen[round] = root;
            _rounds.push(round);
        } catch {}
    }

    function _lookAtKeys() private {
        address[] memory all = keys();
        for (uint256 i = 0; i < all.length; ++i) {
            IStudentRegistry.Node memory node = registry.nodeOf(all[i]);
            if (node.identity == address(0)) continue;
            if (untilSeen[all[i]] != 0 && node.until > untilSeen[all[i]]) ++forgeries; // time was given back
            untilSeen[all[i]] = node.until;
        }
        for (uint256 i = 0; i < _written.length; ++i) {
            bool inOrder = _verdict(_written[i].student).inOrder;
            if (_written[i].wasVoid && inOrder) ++forgeries; // what was void is valid again
            if (!inOrder) _written[i].wasVoid = true;
        }
    }
}

/// @dev What holds after any sequence of moves.
contract InvariantsTest is RegistryTest {
    Players private players;
    address[] private _targets;

    function setUp() public override {
        players = new Players();
        players.setUp();
        _targets.push(address(players));
    }

    /// @dev forge asks for what it shall play with.
    function targetContracts() public view returns (address[] memory) {
        return _targets;
    }

    /// @dev `setUp` of the players is theirs alone.
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    function excludeSelectors() public view returns (FuzzSelector[] memory excluded) {
        excluded = new FuzzSelector[](1);
        excluded[0].addr = address(players);
        excluded[0].selectors = new bytes4[](1);
        excluded[0].selectors[0] = Players.setUp.selector;
    }

    /// @dev One campaign for all: forge would play the same games again for each.
    function invariant_theRegistryKeepsItsWord() public view {
        _nobodyForgesRotatesRewritesOrUndoes();
        _recordsStayAsTheyWereWritten();
        _validMeansInOrderAndNotWithdrawnByIdAndByRecordAlike();
        _atMostOneKeyOfAnIdentityCounts();
        _rootsStayAsTheyWereCommitted();
    }

    function _nobodyForgesRotatesRewritesOrUndoes() private view {
        vm.assertEq(players.forgeries(), 0, "forged, doubled, rewritten or undone");
    }

    function _recordsStayAsTheyWereWritten() private view {
        IStudentRegistry registry_ = players.registryUnderTest();
        for (uint256 i = 0; i < players.writtenCount(); ++i) {
            Players.Written memory one = players.written(i);
            IStudentRegistry.Entry memory entry = registry_.entryOf(one.id);
            vm.assertEq(entry.recordedAt, one.recordedAt, "time");
            vm.assertEq(entry.node, one.student.node, "node");
            vm.assertEq(entry.node, vm.addr(one.signer), "the signer's own");
            vm.assertTrue(one.recordedAt <= one.student.deadline, "in time");
        }
    }

    function _validMeansInOrderAndNotWithdrawnByIdAndByRecordAlike() private view {
        IStudentRegistry registry_ = players.registryUnderTest();
        for (uint256 i = 0; i < players.writtenCount(); ++i) {
            Players.Written memory one = players.written(i);
            IStudentRegistry.Verdict memory verdict = registry_.verify(one.student, "", noProof);
            IStudentRegistry.Entry memory entry = registry_.entryOf(one.id);
            vm.assertTrue(verdict.inOrder == registry_.isNodeAt(one.student.node, one.recordedAt), "in order");
            vm.assertTrue(verdict.inOrder == entry.nodeCounted, "the two answers agree");
            vm.assertTrue(verdict.valid == (entry.nodeCounted && !entry.revoked), "valid");
            vm.assertTrue(verdict.teacherCommittedAt <= verdict.recordedAt, "teacher first");
        }
    }

    function _atMostOneKeyOfAnIdentityCounts() private view {
        IStudentRegistry registry_ = players.registryUnderTest();
        address[] memory all = players.keys();
        uint256[4] memory counting;
        for (uint256 i = 0; i < all.length; ++i) {
            if (registry_.isNodeAt(all[i], block.timestamp)) ++counting[players.lineOf(i)];
        }
        for (uint256 line = 0; line < 4; ++line) {
            vm.assertLe(counting[line], 1, "two keys at once");
        }
    }

    function _rootsStayAsTheyWereCommitted() private view {
        IStudentRegistry registry_ = players.registryUnderTest();
        uint32[] memory rounds = players.rounds();
        for (uint256 i = 0; i < rounds.length; ++i) {
            vm.assertEq(registry_.roundOf(RUN, rounds[i]).root, players.rootSeen(rounds[i]), "root");
        }
    }
}
