// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @title The registry of one federation: which key vouched for which student model, and when.
///
/// @notice A student model is recorded by an EIP-712 digest of its `Student` record, the record id. That
/// digest is at once what the node signs, the key of the record, and a leaf of a round's Merkle tree. There
/// are two ways onto the chain, and a record may take both:
///
///  - `register`: one student, one transaction, sent by anyone; the signature is checked on the spot. Nobody
///    can keep a node out of it, the coordinator included.
///  - `commitRound`: one Merkle root for any number of students; `verify` checks a student's signature and
///    proof against it.
///
/// Records are keyed by record id, never by a file hash: whoever claims a file that is not theirs neither
/// blocks nor overwrites the claim of its author. All signatures are over the domain {name "GenKD", version
/// "1", chainId, verifyingContract}, so one made for another chain, registry, run or round counts nowhere
/// else. A signature is never an identifier; its high-s twin is refused.
///
/// Four type strings are signed (EIP-712):
///
///     Student(bytes32 fileHash,bytes32 tensorRoot,bytes32 metadataHash,bytes32 teacherCommitment,
///             bytes32 runId,bytes32 parentsRoot,address node,uint32 round,uint64 deadline)
///     Teacher(bytes32 commitment,address node,uint64 deadline)
///     Rotate(address oldKey,address newKey,bytes32 nextKeyHash,bytes32 profileHash,uint64 deadline)
///     Revoke(bytes32 recordId,uint8 reason,address node)
///
/// (the first without its line break). A deadline is the last Unix second at which the message may be put on
/// the chain; a withdrawal has none, so that it can be signed ahead and kept. Times are block times, in Unix
/// seconds.
///
/// @dev Immutable: no proxy, no upgrade. The owner enrols and removes nodes and opens runs; it cannot forge a
/// record, alter one, or undo a removal. Signers may be ERC-1271 wallets; an account that has a key is believed
/// by its key, whatever code it delegates to (EIP-7702).
interface IStudentRegistry {
    /// @notice What a node says about one student model when it signs it.
    /// @param fileHash SHA-256 of the model file, byte for byte.
    /// @param tensorRoot Root over the tensors, which survives re-serialising the file.
    /// @param metadataHash SHA-256 of the provenance statement, as its stored bytes.
    /// @param teacherCommitment keccak256(node | SHA-256 of the teacher | salt), committed before recording.
    /// @param runId The run it belongs to.
    /// @param parentsRoot Root over the record ids of the models it was made from, 0 if there are none.
    /// @param node The signing key's address.
    /// @param round The round of the run.
    /// @param deadline The last second at which it may be recorded.
    struct Student {
        bytes32 fileHash;
        bytes32 tensorRoot;
        bytes32 metadataHash;
        bytes32 teacherCommitment;
        bytes32 runId;
        bytes32 parentsRoot;
        address node;
        uint32 round;
        uint64 deadline;
    }

    /// @notice A key of a node and the time during which it counts.
    /// @param identity The first key of this node, which names it for ever; 0 for a key never enrolled.
    /// @param since From this second on, inclusive.
    /// @param until Up to this second, exclusive; the largest uint48 while nothing ends it.
    struct Node {
        address identity;
        uint48 since;
        uint48 until;
    }

    /// @notice A run, as the owner opened it.
    /// @param coordinator Who may commit its rounds; 0 if the run does not exist.
    /// @param openedAt When it was opened.
    /// @param configHash SHA-256 of the configuration that all of its nodes run under.
    struct Run {
        address coordinator;
        uint48 openedAt;
        bytes32 configHash;
    }

    /// @notice The one Merkle root of a round.
    /// @param root Root over the record ids, leaves hashed twice.
    /// @param recordedAt When it was committed, 0 if it was not.
    /// @param count How many leaves it has, as the coordinator says.
    struct Round {
        bytes32 root;
        uint48 recordedAt;
        uint32 count;
    }

    /// @notice What a record id alone tells of a student recorded by itself.
    /// @param node The key that signed it, 0 if there is no such record.
    /// @param recordedAt When, 0 if it was not.
    /// @param round The round its record names.
    /// @param nodeCounted Whether the key counted then, as known now.
    /// @param revoked Whether its identity or the owner withdrew it.
    struct Entry {
        address node;
        uint48 recordedAt;
        uint32 round;
        bool nodeCounted;
        bool revoked;
    }

    /// @notice A withdrawal.
    /// @param key Who made it: a node's key, or the owner.
    /// @param revokedAt When, 0 if there is none.
    /// @param reason 0 unspecified, 1 key compromised, 2 defective, 3 superseded, 4 data withdrawn; others are kept
    /// as given.
    struct Revocation {
        address key;
        uint48 revokedAt;
        uint8 reason;
    }

    /// @notice All that this registry knows about one student.
    /// @param recordId Its record id; compare it with one's own computation.
    /// @param profileHash Hash of the node profile enrolled with the signing key, 0 if the key is unknown.
    /// @param node The signing key's identity and time.
    /// @param registeredAt When it was registered by itself, 0 if it was not.
    /// @param committedAt When a round's root that provably holds it was committed, 0 without such a proof or
    /// without a good signature.
    /// @param teacherCommittedAt When the teacher's commitment was recorded by the same identity, 0 if never.
    /// @param recordedAt The time that counts: of `registeredAt` and `committedAt` the earlier one at which
    /// the record was in order, or, where neither was, any one that exists; 0 if there is none.
    /// @param inOrder At `recordedAt` the deadline had not passed, the key was enrolled, and the teacher was
    /// committed.
    /// @param revokedByNode Withdrawal by a key of the same identity that counted when it made it, else empty.
    /// @param revokedByOwner Withdrawal by the owner.
    /// @param valid In order and not withdrawn.
    struct Verdict {
        bytes32 recordId;
        bytes32 profileHash;
        Node node;
        uint48 registeredAt;
        uint48 committedAt;
        uint48 teacherCommittedAt;
        uint48 recordedAt;
        bool inOrder;
        Revocation revokedByNode;
        Revocation revokedByOwner;
        bool valid;
    }

    /// @notice A key begins to count: a new node, or a node's next key.
    event NodeEnrolled(address indexed key, address indexed identity, bytes32 profileHash, bytes32 nextKeyHash);
    /// @notice A key counts up to `until` only, which may lie in the past.
    event NodeRemoved(address indexed key, address indexed identity, uint48 until);
    /// @notice A run was opened.
    event RunOpened(bytes32 indexed runId, address indexed coordinator, bytes32 configHash);
    /// @notice A node committed to a teacher that it keeps to itself.
    event TeacherCommitted(bytes32 indexed commitment, address indexed identity);
    /// @notice A student was recorded by itself. Indexed by tensor root: every claim to the same weights, under
    /// whichever key and file header, is found by one query.
    event StudentRegistered(
        bytes32 indexed recordId, bytes32 indexed tensorRoot, address indexed node, Student student
    );
    /// @notice The students of a round were recorded.
    event RoundCommitted(
        bytes32 indexed runId, uint32 indexed round, bytes32 root, uint32 count, bytes32 aggregateHash
    );
    /// @notice A record was withdrawn, by an identity, or by the owner (0).
    event Revoked(bytes32 indexed recordId, address indexed by, uint8 reason);

    /// @notice This key is not enrolled at this time.
    error NotANode(address key);
    /// @notice The signature is not the named signer's over this message in this registry's domain.
    error BadSignature();
    /// @notice The deadline has passed.
    error Expired(uint64 deadline);
    /// @notice What the call would write is there. Nothing was changed; a relayer compares, and goes on.
    error AlreadyThere();
    /// @notice No such run was opened.
    error UnknownRun(bytes32 runId);
    /// @notice Only the run's coordinator commits its rounds.
    error NotCoordinator(address caller);
    /// @notice The node has not committed to this teacher.
    error TeacherNotCommitted(bytes32 commitment);
    /// @notice This is not the key whose hash was committed to.
    error WrongNextKey(address newKey);
    /// @notice A removal may neither lie in the future nor give time back to a key.
    error NotEarlier(uint48 until);
    /// @notice A value that must be given is zero.
    error ZeroValue();

    /// @notice Enrol a node. Owner only. A key is enrolled once, ever.
    /// @param key The node's signing key, which becomes its identity.
    /// @param nextKeyHash keccak256(abi.encode(the next key)), see `rotate`; 0 for a node that will not rotate.
    /// @param profileHash Hash of the node's profile, which binds its other keys; not 0.
    function addNode(address key, bytes32 nextKeyHash, bytes32 profileHash) external;

    /// @notice Let a key count no longer than up to `until`. Owner only. With a past time the records and
    /// withdrawals that the key made from then on are void, the thief's, while what the node made before
    /// stands. A second call can only move the time back further. (Teacher commitments stay: without the salt
    /// they are of no use to a thief.) A removed key no longer rotates: a node that shall go on under its next
    /// key rotates first, and the key it left is removed after that.
    /// @param until Unix seconds, exclusive, not in the future.
    function removeNode(address key, uint48 until) external;

    /// @notice Replace a node's key by the next one, whose hash was committed to beforehand: a thief of the
    /// current key cannot rotate, and a node that lost it can. Sent by anyone; the old key need not sign.
    /// A record made in the very second of the rotation counts as made after it.
    /// @param oldKey The key in force.
    /// @param newKey The key whose hash was committed to.
    /// @param nextKeyHash Commitment to the key after that.
    /// @param profileHash Hash of the profile that belongs to the new key; not 0.
    /// @param deadline The last second at which this counts.
    /// @param signature The new key's, over `Rotate`.
    function rotate(
        address oldKey,
        address newKey,
        bytes32 nextKeyHash,
        bytes32 profileHash,
        uint64 deadline,
        bytes calldata signature
    ) external;

    /// @notice Open a run. Owner only. A run id is used once.
    /// @param runId The run's name, a hash or a number.
    /// @param coordinator Who may commit its rounds; not 0.
    /// @param configHash SHA-256 of the run's configuration.
    function openRun(bytes32 runId, address coordinator, bytes32 configHash) external;

    /// @notice Record that a node is bound to a teacher, without showing which. Sent by anyone. Another node
    /// may copy the commitment but cannot open it, for it covers the committing key's address.
    /// @param commitment keccak256(node | SHA-256 of the teacher | 32 random bytes).
    /// @param node The signing key.
    /// @param deadline The last second at which this counts.
    /// @param signature The node's, over `Teacher`.
    function commitTeacher(bytes32 commitment, address node, uint64 deadline, bytes calldata signature) external;

    /// @notice Record one student. Sent by anyone; whoever is first, the record is the node's.
    /// @param student The record.
    /// @param signature The node's, over `student`.
    /// @return id The record id.
    function register(Student calldata student, bytes calldata signature) external returns (bytes32 id);

    /// @notice Record the students of a round by one root. The run's coordinator only, once for each round.
    /// A root shows that its coordinator knew a record id at that time, not that the node had signed it by then:
    /// a verifier that does not trust the coordinator so far looks at `registeredAt` alone.
    /// @param root Merkle root as OpenZeppelin's StandardMerkleTree over (bytes32 recordId): leaves are hashed
    /// twice, so no inner node passes for one; pairs are sorted.
    /// @param count How many students; not 0.
    /// @param aggregateHash SHA-256 of the model merged from them, 0 if there is none.
    function commitRound(bytes32 runId, uint32 round, bytes32 root, uint32 count, bytes32 aggregateHash) external;

    /// @notice Withdraw a record; the caller is an enrolled key. Anyone may withdraw any id in their own name;
    /// a verifier heeds only the identity that signed the record, and the owner. An id may be withdrawn
    /// before it is recorded. A withdrawal is final, unless the key that made it is removed from before it.
    function revoke(bytes32 recordId, uint8 reason) external;

    /// @notice `revoke`, sent by anyone for the node that signed.
    /// @param node The signing key, of the record's identity and enrolled now.
    /// @param signature The node's, over `Revoke`.
    function revokeFor(bytes32 recordId, uint8 reason, address node, bytes calldata signature) external;

    /// @notice Withdraw a record in the owner's name. Owner only.
    function revokeAsOwner(bytes32 recordId, uint8 reason) external;

    /// @notice All that is known about a student, in one call.
    /// @dev For an ERC-1271 signer the answer about a round depends on what the wallet says today: such a
    /// signer should `register`, where its word is taken once. The signature is not looked at for a student
    /// registered by itself unless a proof is given, for `register` checked it.
    /// @param student The record.
    /// @param signature The node's, over `student`; may be empty for a student registered by itself.
    /// @param proof Siblings from the leaf up to its round's root; empty also for a round of one.
    function verify(Student calldata student, bytes calldata signature, bytes32[] calldata proof)
        external
        view
        returns (Verdict memory);

    /// @notice The record id of a student: its EIP-712 digest in this registry's domain.
    function recordIdOf(Student calldata student) external view returns (bytes32);

    /// @notice Whether a key counted at a time.
    function isNodeAt(address key, uint256 time) external view returns (bool);

    /// @notice The identity and time of a key.
    function nodeOf(address key) external view returns (Node memory);

    /// @notice Hash of the profile enrolled with a key, 0 if it never was.
    function profileHashOf(address key) external view returns (bytes32);

    /// @notice Commitment to an identity's next key.
    function nextKeyHashOf(address identity) external view returns (bytes32);

    /// @notice A run.
    function runOf(bytes32 runId) external view returns (Run memory);

    /// @notice A round's root.
    function roundOf(bytes32 runId, uint32 round) external view returns (Round memory);

    /// @notice What is known about a record id alone; nothing of a student that only a round holds.
    function entryOf(bytes32 recordId) external view returns (Entry memory);

    /// @notice `entryOf` for each of several, in order: the parents of a merged model.
    function entriesOf(bytes32[] calldata recordIds) external view returns (Entry[] memory);

    /// @notice When an identity committed to a teacher, 0 if it did not.
    function teacherCommittedAt(bytes32 commitment, address identity) external view returns (uint48);

    /// @notice The withdrawal of a record by an identity, or by the owner (0), be it in force or void.
    function revocationOf(bytes32 recordId, address by) external view returns (Revocation memory);
}
