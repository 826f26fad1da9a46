"""Write to the registry: send the calls of `IStudentRegistry`, each safe to repeat.

    client = RegistryClient(url, domain, signer=LocalSigner(secret))
    client.commit_teacher(message, signature)
    written = client.register(record, signature)
    placement = client.await_record(record, signature)      # confirmed; sent again after a reorg

What a call would write may be there already, put there by an earlier attempt or by somebody else
who sent the same signed message: that is success, and it is said.
"""

from __future__ import annotations

from collections.abc import Callable

from contracts.abi import encode_call, encode_creation
from contracts.account import Account, TransactionSigner, Written, pauses
from contracts.artifact import error_name
from contracts.chain_reader import Confirmations, RegistryReader
from contracts.json_rpc import JsonRpc, RpcRefused
from contracts.refusals import RegistryRefused, refusal
from contracts.registry_state import NEVER, Placement, RegistryState
from genkd.errors import CannotCheck, Stopped
from genkd.provenance.record import Revocation, Rotation, StudentRecord, TeacherMessage
from genkd.provenance.typed_data import Domain

MAX_GAS_OF_CALL = 500_000
MAX_GAS_OF_DEPLOYMENT = 5_000_000


def deploy(
    rpc_url: str, chain_id: int, signer: TransactionSigner, *, owner: str, timeout: float = 10.0
) -> tuple[Domain, Written]:
    """Deploy a registry.

    Args:
        rpc_url: The endpoint.
        chain_id: The chain that the caller means.
        signer: Who pays.
        owner: Who enrols nodes and opens runs.
        timeout: Seconds for one question to the endpoint.

    Returns:
        Where it is, and what it cost.

    Raises:
        CannotCheck, KeyOrSignatureError, RefusedByPolicy, Stopped: As `Account.send`.
    """
    account = Account(JsonRpc(rpc_url, timeout=timeout), chain_id, signer)
    written = account.send(encode_creation(owner), to=None, max_gas=MAX_GAS_OF_DEPLOYMENT)
    domain = Domain(chain_id, written.contract or "")
    fault = RegistryReader(rpc_url, domain, timeout=timeout).fault_of_contract()
    if fault is not None:
        raise CannotCheck(
            f"the deployed registry is not as compiled: {fault}",
            hint="the endpoint is broken or lies; use another",
        )
    return domain, written


class RegistryClient:
    """One registry, written to by one account.

    Every writing method raises, besides what it lists: `CannotCheck` when the endpoint is of no use
    or serves another chain or contract, `KeyOrSignatureError` when the account cannot pay,
    `KeyRefusedByRegistry` and `RegistryRefused` when the contract refuses, `Stopped` when the
    transaction is sent but not mined yet. Repeating the call is always right.

    Args:
        rpc_url: The endpoint.
        domain: The chain id and the registry's address that the caller trusts.
        signer: Who pays for transactions.
        confirmations: What counts as final, see `RegistryReader`.
        timeout: Seconds for one question to the endpoint.
        patience: Seconds to wait for a transaction to be mined.

    Attributes:
        state: The same registry, for reading.
        domain: As given.
    """

    def __init__(
        self,
        rpc_url: str,
        domain: Domain,
        *,
        signer: TransactionSigner,
        confirmations: Confirmations = "finalized",
        timeout: float = 10.0,
        patience: float = 120.0,
    ) -> None:
        self.state = RegistryState(rpc_url, domain, confirmations=confirmations, timeout=timeout)
        self.domain = domain
        self._account = Account(self.state.rpc, domain.chain_id, signer, patience=patience)
        self._checked = False

    # ------------------------------------------------------------------ the owner's calls

    def add_node(self, key: str, next_key_hash: bytes, profile_hash: bytes) -> Written:
        """Enrol a node.

        Raises:
            RegistryRefused: If the key is enrolled with another profile, or was removed.
        """

        def same() -> bool:
            node = self.state.node(key)
            return (node.profile_hash, node.until) == (profile_hash, NEVER)

        return self._write("addNode", (key, next_key_hash, profile_hash), same)

    def remove_node(self, key: str, until: int) -> Written:
        """Let a key count up to a time only, which may lie in the past (Unix seconds)."""
        if self.state.node(key).until == until:
            return Written()
        return self._write("removeNode", (key, until))

    def open_run(self, run_id: bytes, coordinator: str, config_hash: bytes) -> Written:
        """Open a run.

        Raises:
            RegistryRefused: If it is open for another coordinator or configuration.
        """

        def same() -> bool:
            run = self.state.run(run_id)
            return (run.coordinator, run.config_hash) == (coordinator, config_hash)

        return self._write("openRun", (run_id, coordinator, config_hash), same)

    def revoke_as_owner(self, record_id: bytes, reason: int) -> Written:
        """Withdraw a record in the owner's name."""
        return self._write("revokeAsOwner", (record_id, reason))

    # ------------------------------------------------------------------ what a node signed

    def rotate(self, rotation: Rotation, signature: bytes) -> Written:
        """Let a node's next key take over, whose signature this is."""

        def same() -> bool:
            new, old = self.state.node(rotation.new_key), self.state.node(rotation.old_key)
            return (new.identity, new.profile_hash) == (old.identity, rotation.profile_hash)

        return self._write("rotate", (*vars(rotation).values(), signature), same)

    def commit_teacher(self, message: TeacherMessage, signature: bytes) -> Written:
        """Bind a node to a teacher that it keeps to itself."""
        return self._write("commitTeacher", (*vars(message).values(), signature))

    def register(self, record: StudentRecord, signature: bytes) -> Written:
        """Record one student."""
        return self._write("register", (list(vars(record).values()), signature))

    def revoke(self, message: Revocation, signature: bytes) -> Written:
        """Withdraw a record in its node's name."""
        return self._write("revokeFor", (*vars(message).values(), signature))

    # ------------------------------------------------------------------ the coordinator's call

    def commit_round(
        self, run_id: bytes, number: int, root: bytes, count: int, aggregate_hash: bytes
    ) -> Written:
        """Record the students of a round by the root of their Merkle tree.

        Raises:
            RegistryRefused: If the round has another root. It keeps that one for ever.
        """

        def same() -> bool:
            found = self.state.round(run_id, number)
            return (found.root, found.count) == (root, count)

        return self._write("commitRound", (run_id, number, root, count, aggregate_hash), same)

    # ------------------------------------------------------------------ waiting

    def await_record(
        self, record: StudentRecord, signature: bytes, *, patience: float = 1800.0
    ) -> Placement:
        """See to it that a student is recorded and confirmed, whatever happens on the way.

        Registers it if it is not there, and again if a reorganisation of the chain took it away.

        Args:
            record: The record.
            signature: The node's signature over its id.
            patience: Seconds to wait for the confirmation.

        Returns:
            Where it is.

        Raises:
            Stopped: If it is recorded but not confirmed within `patience`.
        """
        record_id = record.digest(self.domain)
        return self._await(
            lambda: self.state.is_registered(record_id, confirmed=True),
            lambda: self.state.is_registered(record_id, confirmed=False),
            lambda: self.register(record, signature),
            lambda: self.state.registration(record_id),
            patience,
        )

    def await_round(
        self,
        run_id: bytes,
        number: int,
        root: bytes,
        count: int,
        aggregate_hash: bytes,
        *,
        patience: float = 1800.0,
    ) -> Placement:
        """`await_record` for a round: committed and confirmed.

        Raises:
            RegistryRefused: If the round has another root.
            Stopped: If it is committed but not confirmed within `patience`.
        """

        def is_there(confirmed: bool) -> bool:
            return self.state.round(run_id, number, confirmed=confirmed).root == root

        return self._await(
            lambda: is_there(True),
            lambda: is_there(False),
            lambda: self.commit_round(run_id, number, root, count, aggregate_hash),
            lambda: self.state.round_placement(run_id, number),
            patience,
        )

    def _await(
        self,
        confirmed: Callable[[], bool],
        there: Callable[[], bool],
        write: Callable[[], Written],
        place: Callable[[], Placement],
        patience: float,
    ) -> Placement:
        trouble: RpcRefused | None = None
        for _ in pauses(patience):
            try:
                if not there():
                    write()
                if confirmed():
                    return place()
                trouble = None
            except RpcRefused as error:
                trouble = error  # while a chain reorganises, a block just named may be gone
        raise trouble or Stopped(
            f"it is on the chain, but not confirmed within {patience:g} s",
            hint="run the same command again later: it goes on from here",
        )

    # ------------------------------------------------------------------ sending

    def _write(
        self, function: str, arguments: tuple[object, ...], same: Callable[[], bool] | None = None
    ) -> Written:
        """Send a call; what it would write may be there already.

        Args:
            function: Its name in the ABI.
            arguments: Its arguments.
            same: Whether what is there is what the call would write; without it, it cannot differ.
        """
        self._require_contract()
        data = encode_call(function, *arguments)
        try:
            return self._account.send(data, to=self.domain.contract, max_gas=MAX_GAS_OF_CALL)
        except RpcRefused as error:
            name = error_name(error.data)
            if not error.data and "revert" not in str(error).lower():
                raise
            if name != "AlreadyThere":
                raise refusal(name) from error
            if same is not None and not same():
                raise RegistryRefused(
                    f"the registry holds something else where {function} would write",
                    hint="it keeps what it has; use a new key, run or round",
                    reason=name,
                ) from error
            return Written()

    def _require_contract(self) -> None:
        if not self._checked:
            fault = self.state.fault_of_contract()
            if fault is not None:
                raise CannotCheck(fault, hint="check the registry's address and its chain")
            self._checked = True
