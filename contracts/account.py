"""An account that sends transactions: what they cost, in what order, and until they are mined.

    account = Account(JsonRpc(url), chain_id=1, signer=LocalSigner(secret))
    written = account.send(call_data, to="0x...", max_gas=500_000)

An endpoint names the price and the nonce. One that lies could burn what the account holds, so both
price and amount of gas are bounded, and the chain id is asked for before anything is signed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from contracts.json_rpc import JsonRpc, RpcRefused
from genkd.errors import CannotCheck, KeyOrSignatureError, RefusedByPolicy, Stopped
from genkd.provenance.secp256k1 import address_of, sign_digest
from genkd.provenance.typed_data import keccak256, parse_address

GWEI: Final = 10**9
MAX_FEE_PER_GAS: Final = 1000 * GWEI
MIN_GAS: Final = 21_000  # the price of any transaction
USUAL_TIP: Final = 1 * GWEI
DYNAMIC_FEE_TRANSACTION: Final = b"\x02"  # EIP-1559
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 4.0  # seconds; hosted endpoints count questions
SEND_ATTEMPTS = 5
# What endpoints say when another transaction of this account took the nonce in the meantime.
NONCE_TAKEN = ("nonce", "already known", "already imported", "underpriced")

RlpItem = bytes | int | Sequence["RlpItem"]


class TransactionSigner(Protocol):
    """Who sends transactions and pays for them; the private key stays inside."""

    @property
    def address(self) -> str:
        """The account, checksum form."""
        ...

    def sign_digest(self, digest: bytes) -> bytes:
        """r, s, v (27 or 28) over 32 bytes, low-s: 65 bytes."""
        ...


class LocalSigner:
    """A private key in this process's memory. Prints as its address.

    Args:
        secret: The private key, 1 to the curve's order less one.

    Raises:
        KeyOrSignatureError: If it is no private key.
    """

    def __init__(self, secret: int) -> None:
        self._secret = secret
        self._address = address_of(secret)

    @property
    def address(self) -> str:
        """The account, checksum form."""
        return self._address

    def sign_digest(self, digest: bytes) -> bytes:
        """r, s, v over 32 bytes."""
        return sign_digest(self._secret, digest)

    def __repr__(self) -> str:
        return f"LocalSigner({self._address})"


@dataclass(frozen=True)
class Written:
    """What a call left on the chain.

    Attributes:
        transaction: The hash of the transaction that was sent, 32 bytes; None if there was no need.
        block: Its block's number, None without a transaction.
        gas: Gas it used, 0 without a transaction.
        contract: The address it made, if it deployed a contract.
    """

    transaction: bytes | None = None
    block: int | None = None
    gas: int = 0
    contract: str | None = None

    @property
    def already_there(self) -> bool:
        """Whether the chain held it before."""
        return self.transaction is None


@dataclass(frozen=True)
class Transaction:
    """A transaction of EIP-1559, unsigned.

    Attributes:
        chain_id: The chain it is for.
        nonce: How many the account sent before.
        max_priority_fee: Wei for a unit of gas, to whoever mines it.
        max_fee: Wei for a unit of gas, at most, in all.
        gas: Units of gas, at most.
        to: The contract to call; None to create one.
        data: The call, or the creation code.
    """

    chain_id: int
    nonce: int
    max_priority_fee: int
    max_fee: int
    gas: int
    to: str | None
    data: bytes

    def _fields(self) -> list[RlpItem]:
        to = b"" if self.to is None else bytes.fromhex(self.to[2:])
        prices = [self.max_priority_fee, self.max_fee, self.gas]
        return [self.chain_id, self.nonce, *prices, to, 0, self.data, []]

    def digest(self) -> bytes:
        """What the sender signs, 32 bytes."""
        return keccak256(DYNAMIC_FEE_TRANSACTION + rlp(self._fields()))

    def signed(self, signature: bytes) -> bytes:
        """What is sent: the fields and r, s, v of a signature over `digest`."""
        r, s = (int.from_bytes(signature[i : i + 32], "big") for i in (0, 32))
        fields = [*self._fields(), signature[64] - 27, r, s]
        return DYNAMIC_FEE_TRANSACTION + rlp(fields)


def rlp(item: RlpItem) -> bytes:
    """Recursive length prefix (Ethereum's yellow paper, appendix B), shortest form of numbers."""
    if isinstance(item, int):
        item = item.to_bytes((item.bit_length() + 7) // 8, "big")
    if isinstance(item, bytes):
        if len(item) == 1 and item[0] < 0x80:
            return item
        return _length(len(item), 0x80) + item
    content = b"".join(rlp(one) for one in item)
    return _length(len(content), 0xC0) + content


def _length(length: int, offset: int) -> bytes:
    if length < 56:
        return bytes([offset + length])
    digits = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([offset + 55 + len(digits)]) + digits


def pauses(patience: float) -> Iterator[None]:
    """Once at once, then after longer and longer pauses, until `patience` seconds have passed."""
    deadline = time.monotonic() + patience
    pause = FIRST_PAUSE
    yield
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, LONGEST_PAUSE)
        yield


class Account:
    """One account on one chain, as seen through one endpoint.

    Args:
        rpc: The endpoint.
        chain_id: The chain that the caller means.
        signer: Who sends and pays.
        patience: Seconds to wait for a transaction to be mined.
    """

    def __init__(
        self, rpc: JsonRpc, chain_id: int, signer: TransactionSigner, *, patience: float = 120.0
    ) -> None:
        self._rpc = rpc
        self._chain_id = chain_id
        self._signer = signer
        self._patience = patience
        self._on_right_chain = False

    def send(self, data: bytes, *, to: str | None, max_gas: int) -> Written:
        """Send one transaction and wait until it is in a block.

        Args:
            data: The call, or a contract's creation code.
            to: The contract; None creates one.
            max_gas: The most units of gas to pay for.

        Raises:
            RpcRefused: If the call reverts; its `data` tells with what.
            CannotCheck: If the endpoint is of no use, or serves another chain.
            KeyOrSignatureError: If the account cannot pay.
            RefusedByPolicy: If it would cost more than any honest chain asks.
            Stopped: If it was sent but is not mined yet.
        """
        self._require_chain()
        call = {"from": self._signer.address, "data": "0x" + data.hex()}
        if to is not None:
            call["to"] = to
        gas = self._rpc.quantity("eth_estimateGas", call)
        # What a call needs may grow until it is mined. 63/64 of it goes to calls within (EIP-150).
        gas += gas // 5
        if not MIN_GAS <= gas <= max_gas:
            raise _too_dear(f"{gas} units of gas for one call")
        tip, highest = self._fees()
        unsent = Transaction(self._chain_id, 0, tip, highest, gas, to, data)
        return self._await_mined(self._send_signed(unsent), call)

    def _require_chain(self) -> None:
        if self._on_right_chain:
            return
        found = self._rpc.quantity("eth_chainId")
        if found != self._chain_id:
            raise CannotCheck(
                f"{self._rpc.name} serves chain {found}, not {self._chain_id}",
                hint="name an endpoint of the federation's chain",
            )
        self._on_right_chain = True

    def _fees(self) -> tuple[int, int]:
        """Tip and highest price (EIP-1559): twice the base fee outlasts five full blocks."""
        block = self._rpc.ask("eth_getBlockByNumber", "latest", False)
        base = self._rpc.as_quantity(
            block.get("baseFeePerGas") if isinstance(block, dict) else None
        )
        try:
            tip = self._rpc.quantity("eth_maxPriorityFeePerGas")
        except RpcRefused:
            tip = USUAL_TIP  # not every endpoint knows the method
        highest = 2 * base + tip
        if highest > MAX_FEE_PER_GAS:
            raise _too_dear(f"{highest / GWEI:g} gwei for a unit of gas")
        return tip, highest

    def _send_signed(self, unsent: Transaction) -> bytes:
        """Sign it with the next nonce and send it; returns its hash."""
        for attempt in range(1, SEND_ATTEMPTS + 1):
            address = self._signer.address
            nonce = self._rpc.quantity("eth_getTransactionCount", address, "pending")
            transaction = replace(unsent, nonce=nonce)
            raw = transaction.signed(self._signer.sign_digest(transaction.digest()))
            try:
                self._rpc.ask("eth_sendRawTransaction", "0x" + raw.hex())
                break
            except RpcRefused as error:
                said = str(error).lower()
                if "insufficient funds" in said:
                    raise KeyOrSignatureError(
                        f"the account {address} cannot pay for the transaction",
                        hint="send it some ether, or send with an account that has some",
                    ) from error
                if attempt == SEND_ATTEMPTS or not any(words in said for words in NONCE_TAKEN):
                    raise
            time.sleep(FIRST_PAUSE)
        # Ours to compute: what the endpoint calls it does not matter.
        return keccak256(raw)

    def _await_mined(self, sent: bytes, call: dict[str, str]) -> Written:
        name = "0x" + sent.hex()
        for _ in pauses(self._patience):
            receipt = self._rpc.ask("eth_getTransactionReceipt", name)
            if receipt is not None:
                return self._outcome(sent, receipt, call)
        raise Stopped(
            f"transaction {name} is sent, but not mined within {self._patience:g} s",
            hint="run the same command again: what is there by then is not sent twice",
        )

    def _outcome(self, sent: bytes, receipt: object, call: dict[str, str]) -> Written:
        name = "0x" + sent.hex()
        if not isinstance(receipt, dict) or receipt.get("transactionHash") != name:
            raise CannotCheck(
                f"{self._rpc.name} answers with another transaction's receipt",
                hint="it is broken or lies; use another endpoint",
            )
        block = self._rpc.as_quantity(receipt.get("blockNumber"))
        if self._rpc.as_quantity(receipt.get("status")) != 1:
            # Something came between the estimate and the block: this tells what, by reverting.
            self._rpc.ask("eth_call", call, hex(block))
            raise CannotCheck(
                f"transaction {name} failed, though it should not have",
                hint="run the same command again",
            )
        made = receipt.get("contractAddress")
        contract = None if made is None else parse_address(made)
        return Written(sent, block, self._rpc.as_quantity(receipt.get("gasUsed")), contract)


def _too_dear(what: str) -> RefusedByPolicy:
    return RefusedByPolicy(
        f"the endpoint asks for {what}, more than any honest chain does",
        hint="use another endpoint, or wait until the chain is less busy",
    )
