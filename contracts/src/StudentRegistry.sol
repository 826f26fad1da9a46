// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

import {IStudentRegistry} from "./IStudentRegistry.sol";

/// @title The registry of one federation
/// @dev Documented in `IStudentRegistry`.
contract StudentRegistry is IStudentRegistry, EIP712, Ownable2Step {
    bytes32 private constant STUDENT_TYPEHASH = keccak256(
        "Student(bytes32 fileHash,bytes32 tensorRoot,bytes32 metadataHash,bytes32 teacherCommitment,bytes32 runId,bytes32 parentsRoot,address node,uint32 round,uint64 deadline)"
    );
    bytes32 private constant TEACHER_TYPEHASH = keccak256("Teacher(bytes32 commitment,address node,uint64 deadline)");
    bytes32 private constant ROTATE_TYPEHASH =
        keccak256("Rotate(address oldKey,address newKey,bytes32 nextKeyHash,bytes32 profileHash,uint64 deadline)");
    bytes32 private constant REVOKE_TYPEHASH = keccak256("Revoke(bytes32 recordId,uint8 reason,address node)");

    // `until` of a key that nothing ends. Not 0, so that "removed from the beginning" is no special case.
    uint48 private constant NEVER = type(uint48).max;
    // The owner's name among those who revoke. No identity is 0, for `addNode` refuses it.
    address private constant OWNER = address(0);

    // A student recorded by itself, in one slot.
    struct Record {
        address node;
        uint48 recordedAt;
        uint32 round;
    }

    mapping(address key => Node) private _nodes;
    mapping(address key => bytes32) private _profileHashes;
    mapping(address identity => bytes32) private _nextKeyHashes;
    mapping(bytes32 runId => Run) private _runs;
    mapping(bytes32 runId => mapping(uint32 round => Round)) private _rounds;
    mapping(bytes32 recordId => Record) private _records;
    mapping(bytes32 commitment => mapping(address identity => uint48)) private _teachers;
    mapping(bytes32 recordId => mapping(address by => Revocation)) private _revocations;

    constructor(address admin) EIP712("GenKD", "1") Ownable(admin) {}

    // ------------------------------------------------------------------ nodes

    /// @inheritdoc IStudentRegistry
    function addNode(address key, bytes32 nextKeyHash, bytes32 profileHash) external onlyOwner {
        if (key == address(0)) revert ZeroValue();
        _enrol(key, key, nextKeyHash, profileHash);
    }

    /// @inheritdoc IStudentRegistry
    function removeNode(address key, uint48 until) external onlyOwner {
        Node storage node = _nodes[key];
        if (node.identity == address(0)) revert NotANode(key);
        // Only ever back: were it to move on again, what was void would be valid once more.
        if (until > block.timestamp || until >= node.until) revert NotEarlier(until);
        _end(key, node, until);
    }

    /// @inheritdoc IStudentRegistry
    function rotate(
        address oldKey,
        address newKey,
        bytes32 nextKeyHash,
        bytes32 profileHash,
        uint64 deadline,
        bytes calldata signature
    ) external {
        if (_nodes[newKey].identity != address(0)) revert AlreadyThere();
        _inTime(deadline);
        address identity = _identity(oldKey);
        if (keccak256(abi.encode(newKey)) != _nextKeyHashes[identity]) revert WrongNextKey(newKey);
        bytes32 message = keccak256(abi.encode(ROTATE_TYPEHASH, oldKey, newKey, nextKeyHash, profileHash, deadline));
        _signed(newKey, _hashTypedDataV4(message), signature);
        _end(oldKey, _nodes[oldKey], uint48(block.timestamp));
        _enrol(newKey, identity, nextKeyHash, profileHash);
    }

    function _enrol(address key, address identity, bytes32 nextKeyHash, bytes32 profileHash) private {
        if (profileHash == 0) revert ZeroValue();
        // Also for a key that was removed: it never comes back, under no identity.
        if (_nodes[key].identity != address(0)) revert AlreadyThere();
        _nodes[key] = Node(identity, uint48(block.timestamp), NEVER);
        _profileHashes[key] = profileHash;
        _nextKeyHashes[identity] = nextKeyHash;
        emit NodeEnrolled(key, identity, profileHash, nextKeyHash);
    }

    function _end(address key, Node storage node, uint48 until) private {
        node.until = until;
        emit NodeRemoved(key, node.identity, until);
    }

    // ------------------------------------------------------------------ runs and teachers

    /// @inheritdoc IStudentRegistry
    function openRun(bytes32 runId, address coordinator, bytes32 configHash) external onlyOwner {
        if (coordinator == address(0)) revert ZeroValue();
        if (_runs[runId].coordinator != address(0)) revert AlreadyThere();
        _runs[runId] = Run(coordinator, uint48(block.timestamp), configHash);
        emit RunOpened(runId, coordinator, configHash);
    }

    /// @inheritdoc IStudentRegistry
    function commitTeacher(bytes32 commitment, address node, uint64 deadline, bytes calldata signature) external {
        if (_teachers[commitment][_nodes[node].identity] != 0) revert AlreadyThere();
        _inTime(deadline);
        address identity = _identity(node);
        bytes32 message = keccak256(abi.encode(TEACHER_TYPEHASH, commitment, node, deadline));
        _signed(node, _hashTypedDataV4(message), signature);
        _teachers[commitment][identity] = uint48(block.timestamp);
        emit TeacherCommitted(commitment, identity);
    }

    // ------------------------------------------------------------------ students

    /// @inheritdoc IStudentRegistry
    function register(Student calldata student, bytes calldata signature) external returns (bytes32 id) {
        // Before all else: a record that stands is an answer, whatever has happened since it was made.
        id = recordIdOf(student);
        if (_records[id].recordedAt != 0) revert AlreadyThere();
        _inTime(student.deadline);
        address identity = _identity(student.node);
        if (_runs[student.runId].coordinator == address(0)) revert UnknownRun(student.runId);
        if (_teachers[student.teacherCommitment][identity] == 0) {
            revert TeacherNotCommitted(student.teacherCommitment);
        }
        _signed(student.node, id, signature);
        _records[id] = Record(student.node, uint48(block.timestamp), student.round);
        emit StudentRegistered(id, student.tensorRoot, student.node, student);
    }

    /// @inheritdoc IStudentRegistry
    function commitRound(bytes32 runId, uint32 round, bytes32 root, uint32 count, bytes32 aggregateHash) external {
        if (_runs[runId].coordinator != msg.sender) revert NotCoordinator(msg.sender);
        if (root == 0 || count == 0) revert ZeroValue();
        // One root for a round, ever: a coordinator cannot show two histories on one chain.
        if (_rounds[runId][round].recordedAt != 0) revert AlreadyThere();
        _rounds[runId][round] = Round(root, uint48(block.timestamp), count);
        emit RoundCommitted(runId, round, root, count, aggregateHash);
    }

    // ------------------------------------------------------------------ revocation

    /// @inheritdoc IStudentRegistry
    function revoke(bytes32 recordId, uint8 reason) external {
        _revoke(recordId, _identity(msg.sender), msg.sender, reason);
    }

    /// @inheritdoc IStudentRegistry
    function revokeFor(bytes32 recordId, uint8 reason, address node, bytes calldata signature) external {
        address known = _nodes[node].identity;
        if (known != address(0) && _inForce(_revocations[recordId][known], known)) revert AlreadyThere();
        address identity = _identity(node);
        bytes32 message = keccak256(abi.encode(REVOKE_TYPEHASH, recordId, reason, node));
        _signed(node, _hashTypedDataV4(message), signature);
        _revoke(recordId, identity, node, reason);
    }

    /// @inheritdoc IStudentRegistry
    function revokeAsOwner(bytes32 recordId, uint8 reason) external onlyOwner {
        _revoke(recordId, OWNER, msg.sender, reason);
    }

    function _revoke(bytes32 recordId, address by, address key, uint8 reason) private {
        // A void withdrawal, a thief's, does not keep the node from its own.
        if (_inForce(_revocations[recordId][by], by)) revert AlreadyThere();
        _revocations[recordId][by] = Revocation(key, uint48(block.timestamp), reason);
        emit Revoked(recordId, by, reason);
    }

    /// @dev The withdrawals in force by a record's identity and by the owner; empty where there is none.
    function _revocationsOf(bytes32 recordId, address identity)
        private
        view
        returns (Revocation memory byNode, Revocation memory byOwner)
    {
        byOwner = _revocations[recordId][OWNER];
        if (identity != address(0) && _inForce(_revocations[recordId][identity], identity)) {
            byNode = _revocations[recordId][identity];
        }
    }

    /// @dev Whether a withdrawal is there, and the key that made it counted then.
    function _inForce(Revocation memory revocation, address by) private view returns (bool) {
        if (revocation.revokedAt == 0) return false;
        return by == OWNER || _countsAt(_nodes[revocation.key], revocation.revokedAt);
    }

    // ------------------------------------------------------------------ what a verifier asks

    /// @inheritdoc IStudentRegistry
    function verify(Student calldata student, bytes calldata signature, bytes32[] calldata proof)
        external
        view
        returns (Verdict memory verdict)
    {
        bytes32 id = recordIdOf(student);
        Node memory node = _nodes[student.node];
        verdict.recordId = id;
        verdict.profileHash = _profileHashes[student.node];
        verdict.node = node;
        verdict.registeredAt = _records[id].recordedAt;
        verdict.committedAt = _committedAt(student, id, signature, proof);
        verdict.teacherCommittedAt = _teachers[student.teacherCommitment][node.identity];

        // Both are looked at. Were the single record to win, anybody could void a node's round by registering
        // its students after the node was removed from a date between the two.
        bool single = _inOrderAt(verdict.registeredAt, student.deadline, verdict);
        bool round = _inOrderAt(verdict.committedAt, student.deadline, verdict);
        bool roundCounts = round ? !single || verdict.committedAt < verdict.registeredAt : verdict.registeredAt == 0;
        verdict.recordedAt = roundCounts ? verdict.committedAt : verdict.registeredAt;
        verdict.inOrder = single || round;
        (verdict.revokedByNode, verdict.revokedByOwner) = _revocationsOf(id, node.identity);
        verdict.valid = verdict.inOrder && verdict.revokedByNode.revokedAt == 0 && verdict.revokedByOwner.revokedAt == 0;
    }

    /// @dev When the root of the student's own run and round was committed, if it holds the student.
    function _committedAt(Student calldata student, bytes32 id, bytes calldata signature, bytes32[] calldata proof)
        private
        view
        returns (uint48)
    {
        Round storage round = _rounds[student.runId][student.round];
        if (round.recordedAt == 0) return 0;
        // Hashed twice: an inner node is a hash of 64 bytes, a leaf of 32, so neither passes for the other.
        bytes32 leaf = keccak256(bytes.concat(keccak256(abi.encode(id))));
        if (!MerkleProof.verifyCalldata(proof, round.root, leaf)) return 0;
        // A root says only that the coordinator saw the record; that the node made it, its signature says.
        return _isSigned(student.node, id, signature) ? round.recordedAt : 0;
    }

    function _inOrderAt(uint48 time, uint64 deadline, Verdict memory verdict) private pure returns (bool) {
        return time != 0 && time <= deadline && _countsAt(verdict.node, time) && verdict.teacherCommittedAt != 0
            && verdict.teacherCommittedAt <= time;
    }

    /// @inheritdoc IStudentRegistry
    function recordIdOf(Student calldata student) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(STUDENT_TYPEHASH, student)));
    }

    /// @inheritdoc IStudentRegistry
    function isNodeAt(address key, uint256 time) external view returns (bool) {
        return _countsAt(_nodes[key], time);
    }

    /// @inheritdoc IStudentRegistry
    function nodeOf(address key) external view returns (Node memory) {
        return _nodes[key];
    }

    /// @inheritdoc IStudentRegistry
    function profileHashOf(address key) external view returns (bytes32) {
        return _profileHashes[key];
    }

    /// @inheritdoc IStudentRegistry
    function nextKeyHashOf(address identity) external view returns (bytes32) {
        return _nextKeyHashes[identity];
    }

    /// @inheritdoc IStudentRegistry
    function runOf(bytes32 runId) external view returns (Run memory) {
        return _runs[runId];
    }

    /// @inheritdoc IStudentRegistry
    function roundOf(bytes32 runId, uint32 round) external view returns (Round memory) {
        return _rounds[runId][round];
    }

    /// @inheritdoc IStudentRegistry
    function entryOf(bytes32 recordId) public view returns (Entry memory) {
        Record memory record = _records[recordId];
        Node memory node = _nodes[record.node];
        (Revocation memory byNode, Revocation memory byOwner) = _revocationsOf(recordId, node.identity);
        return Entry({
            node: record.node,
            recordedAt: record.recordedAt,
            round: record.round,
            nodeCounted: _countsAt(node, record.recordedAt),
            revoked: byNode.revokedAt != 0 || byOwner.revokedAt != 0
        });
    }

    /// @inheritdoc IStudentRegistry
    function entriesOf(bytes32[] calldata recordIds) external view returns (Entry[] memory entries) {
        entries = new Entry[](recordIds.length);
        for (uint256 i = 0; i < recordIds.length; ++i) {
            entries[i] = entryOf(recordIds[i]);
        }
    }

    /// @inheritdoc IStudentRegistry
    function teacherCommittedAt(bytes32 commitment, address identity) external view returns (uint48) {
        return _teachers[commitment][identity];
    }

    /// @inheritdoc IStudentRegistry
    function revocationOf(bytes32 recordId, address by) external view returns (Revocation memory) {
        return _revocations[recordId][by];
    }

    // ------------------------------------------------------------------ checks

    /// @dev The identity of a key that counts now.
    function _identity(address key) private view returns (address) {
        Node memory node = _nodes[key];
        if (!_countsAt(node, block.timestamp)) revert NotANode(key);
        return node.identity;
    }

    function _countsAt(Node memory node, uint256 time) private pure returns (bool) {
        return node.identity != address(0) && node.since <= time && time < node.until;
    }

    function _inTime(uint64 deadline) private view {
        if (block.timestamp > deadline) revert Expired(deadline);
    }

    function _signed(address signer, bytes32 digest, bytes calldata signature) private view {
        if (!_isSigned(signer, digest, signature)) revert BadSignature();
    }

    /// @dev The key itself first, whatever code its account has. By EIP-7702 a thief of a key can give its account
    /// code, even long after the key was removed, and code that says no would void all that the node signed.
    function _isSigned(address signer, bytes32 digest, bytes calldata signature) private view returns (bool) {
        (address recovered, ECDSA.RecoverError error_,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (error_ == ECDSA.RecoverError.NoError && recovered == signer) return true;
        return signer.code.length != 0 && SignatureChecker.isValidERC1271SignatureNowCalldata(signer, digest, signature);
    }
}
