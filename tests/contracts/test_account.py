"""What an endpoint that names prices, nonces and receipts can make an account do: nothing dear."""

from __future__ import annotations

from typing import Any

import pytest

from contracts.account import GWEI, Account, LocalSigner, pauses
from contracts.json_rpc import JsonRpc, RpcRefused
from genkd.errors import CannotCheck, KeyOrSignatureError, RefusedByPolicy, Stopped
from genkd.provenance.secp256k1 import N, address_of

Federation = Any  # conftest.Federation
TARGET = address_of(0x7A)


def account(federation: Federation, url: str, patience: float = 30.0) -> Account:
    return Account(
        JsonRpc(url, timeout=5),
        federation.domain.chain_id,
        LocalSigner(federation.stranger),
        patience=patience,
    )


def send(federation: Federation, lies: dict[str, Any], patience: float = 30.0) -> Any:
    """Send a plain transaction through an endpoint that lies about some methods."""

    def tamper(method: str, params: list[Any], result: Any) -> Any:
        lie = lies.get(method, result)
        return lie(result) if callable(lie) else lie

    with federation.lying(tamper) as url:
        return account(federation, url, patience).send(b"", to=TARGET, max_gas=100_000)


def test_plain_transaction_is_sent_and_mined(federation: Federation) -> None:
    written = send(federation, {})
    assert (written.gas, written.contract, written.already_there) == (21_000, None, False)
    assert written.block == federation.rpc.quantity("eth_blockNumber")


@pytest.mark.parametrize(
    "lies",
    [
        {"eth_estimateGas": hex(10**9)},
        {"eth_estimateGas": "0x1"},
        {"eth_maxPriorityFeePerGas": hex(2000 * GWEI)},
        {"eth_getBlockByNumber": lambda block: {**block, "baseFeePerGas": hex(600 * GWEI)}},
    ],
    ids=["gas", "no gas", "tip", "base fee"],
)
def test_absurd_price_is_refused_before_anything_is_signed(
    federation: Federation, lies: dict[str, Any]
) -> None:
    sender = address_of(federation.stranger)
    before = federation.rpc.quantity("eth_getTransactionCount", sender, "pending")
    with pytest.raises(RefusedByPolicy, match="honest"):
        send(federation, lies)
    assert federation.rpc.quantity("eth_getTransactionCount", sender, "pending") == before


@pytest.mark.parametrize(
    "lies",
    [
        {"eth_chainId": "0x1"},
        {"eth_estimateGas": None},
        {"eth_getBlockByNumber": None},
        {"eth_getBlockByNumber": []},
        {"eth_getTransactionCount": "many"},
        {"eth_getTransactionReceipt": "0x"},
        {"eth_getTransactionReceipt": {}},
        {"eth_getTransactionReceipt": lambda r: {**r, "transactionHash": "0x" + "00" * 32}},
        {"eth_getTransactionReceipt": lambda r: {**r, "blockNumber": None}},
        {"eth_getTransactionReceipt": lambda r: {**r, "status": "yes"}},
        {"eth_getTransactionReceipt": lambda r: {**r, "status": "0x0"}},
    ],
    ids=lambda lies: next(iter(lies)),
)
def test_nonsense_is_not_taken_for_a_transaction_that_went_through(
    federation: Federation, lies: dict[str, Any]
) -> None:
    with pytest.raises(CannotCheck):
        send(federation, lies)


def test_receipt_that_never_comes_stops_in_bounded_time(federation: Federation) -> None:
    with pytest.raises(Stopped, match="not mined"):
        send(federation, {"eth_getTransactionReceipt": None}, patience=0.3)


def test_missing_method_for_the_tip_is_no_obstacle(federation: Federation) -> None:
    def refuse(_: Any) -> Any:
        raise RpcRefused("the method does not exist", rpc_code=-32601, data=b"")

    assert send(federation, {"eth_maxPriorityFeePerGas": refuse}).gas == 21_000


def test_nonce_taken_by_another_process_is_asked_for_again(federation: Federation) -> None:
    stale = [True]

    def count(result: Any) -> Any:
        if stale.pop() if stale else False:
            return "0x0"
        return result

    send(federation, {})  # so that 0 is taken
    assert send(federation, {"eth_getTransactionCount": count}).gas == 21_000


def test_nonce_that_stays_taken_is_given_up(federation: Federation) -> None:
    send(federation, {})
    with pytest.raises(RpcRefused, match="nonce"):
        send(federation, {"eth_getTransactionCount": "0x0"})


@pytest.mark.parametrize("secret", [0, -1, N, N + 1])
def test_number_that_is_no_private_key_is_refused(secret: int) -> None:
    with pytest.raises(KeyOrSignatureError):
        LocalSigner(secret)


def test_pauses_grow_and_end() -> None:
    assert 2 <= sum(1 for _ in pauses(0.2)) <= 5
    assert sum(1 for _ in pauses(0)) == 1
