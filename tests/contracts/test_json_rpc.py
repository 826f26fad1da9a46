"""An endpoint may hang, trickle, flood or lie: it costs seconds and is never believed."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from contracts.json_rpc import JsonRpc, RpcRefused, printable
from genkd.errors import CannotCheck, ConfigurationError

Handler = Callable[[socket.socket], None]
TIMEOUT = 0.4


def receive(connection: socket.socket) -> bytes:
    """The request, headers and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if b"content-length" in line.lower()
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def answer(body: bytes, status: str = "200 OK", headers: str = "") -> Handler:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode()

    def handle(connection: socket.socket) -> None:
        receive(connection)
        connection.sendall(head + body)

    return handle


def result(value: object) -> Handler:
    return answer(json.dumps({"jsonrpc": "2.0", "id": 1, "result": value}).encode())


@contextlib.contextmanager
def serving(handler: Handler) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=one, args=(connection,), daemon=True).start()

        def one(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                handler(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def silence(connection: socket.socket) -> None:
    time.sleep(5)


def trickling_headers(connection: socket.socket) -> None:
    receive(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for _ in range(50):
        connection.sendall(b"x")
        time.sleep(0.1)


def trickling_body(connection: socket.socket) -> None:
    receive(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(50):
        connection.sendall(b" ")
        time.sleep(0.1)


def hundred_megabytes(connection: socket.socket) -> None:
    receive(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    for _ in range(100):
        connection.sendall(b" " * 1_000_000)


def hundred_megabytes_announced(connection: socket.socket) -> None:
    receive(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
    for _ in range(100):
        connection.sendall(b" " * 1_000_000)


def endless_header(connection: socket.socket) -> None:
    receive(connection)
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(b"x" * 65536)


def hang_up(connection: socket.socket) -> None:
    receive(connection)


HOSTILE = {
    "silent": silence,
    "header a byte at a time": trickling_headers,
    "body a byte at a time": trickling_body,
    "100 MB": hundred_megabytes,
    "100 MB announced": hundred_megabytes_announced,
    "endless header": endless_header,
    "hangs up": hang_up,
    "not HTTP": lambda c: c.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "empty": answer(b""),
    "not JSON": answer(b"<html>"),
    "half a JSON": answer(b'{"jsonrpc": "2.0", "id": 1, "res'),
    "a list": answer(b'[{"id": 1, "result": "0x1"}]'),
    "a number": answer(b"1"),
    "nested a million deep": answer(b"[" * 1_000_000),
    "a number of a million digits": answer(b'{"id": 1, "result": ' + b"9" * 1_000_000 + b"}"),
    "another question's": answer(b'{"jsonrpc": "2.0", "id": 2, "result": "0x1"}'),
    "neither result nor error": answer(b'{"jsonrpc": "2.0", "id": 1}'),
    "an error that is none": answer(b'{"jsonrpc": "2.0", "id": 1, "error": "no"}'),
    "invalid UTF-8": answer(b'{"jsonrpc": "2.0", "id": 1, "result": "\xff"}'),
    "not found": answer(b"no", "404 Not Found"),
    "too many questions": answer(b"no", "429 Too Many Requests"),
    "broken": answer(b"no", "500 Internal Server Error"),
    "redirects": answer(b"", "307 Temporary Redirect", "Location: http://127.0.0.1:1/\r\n"),
    "compressed": answer(b"\x1f\x8b\x08\x00", headers="Content-Encoding: gzip\r\n"),
}


@pytest.mark.parametrize("handler", HOSTILE.values(), ids=HOSTILE)
def test_hostile_endpoint_cannot_be_checked_and_that_soon(handler: Handler) -> None:
    with serving(handler) as url:
        began = time.monotonic()
        with pytest.raises(CannotCheck) as caught:
            JsonRpc(url, timeout=TIMEOUT, max_bytes=4_000_000).quantity("eth_chainId")
        assert time.monotonic() - began < TIMEOUT + 4
    assert caught.value.exit_code == 6
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_deeply_nested_answer_is_refused_whatever_the_recursion_limit() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)  # as importing web3 does
    try:
        with serving(answer(b'{"a": ' * 1_000_000)) as url, pytest.raises(CannotCheck):
            JsonRpc(url, timeout=5).ask("eth_chainId")
    finally:
        sys.setrecursionlimit(before)


NO_QUANTITY = [None, True, 1, 1.5, "", "0x", "1", "0x01", "0X1", "0xg", "0x" + "f" * 65, "-0x1"]
NO_QUANTITY += [["0x1"], {"a": 1}]


@pytest.mark.parametrize("value", NO_QUANTITY, ids=repr)
def test_what_is_no_number_is_not_taken_for_one(value: object) -> None:
    with serving(result(value)) as url, pytest.raises(CannotCheck, match="number"):
        JsonRpc(url, timeout=5).quantity("eth_chainId")


@pytest.mark.parametrize("value", [None, 1, "", "0", "0x0", "0xzz", "abcd", []], ids=repr)
def test_what_are_no_bytes_is_not_taken_for_them(value: object) -> None:
    with serving(result(value)) as url, pytest.raises(CannotCheck, match="bytes"):
        JsonRpc(url, timeout=5).data("eth_getCode")


def test_numbers_and_bytes_are_read() -> None:
    with serving(result("0x7a69")) as url:
        assert JsonRpc(url).quantity("eth_chainId") == 31337
    with serving(result("0xABcd")) as url:
        assert JsonRpc(url).data("eth_getCode") == b"\xab\xcd"
    with serving(result(None)) as url:
        assert JsonRpc(url).ask("eth_getTransactionReceipt") is None


@pytest.mark.parametrize(
    "data", ['"0x12345678"', '{"data": "0x12345678"}'], ids=["plain", "one level deeper"]
)
def test_reverted_call_says_with_what(data: str) -> None:
    error = '{"code": 3, "message": "execution reverted", "data": %s}' % data  # noqa: UP031
    with serving(answer(b'{"id": 1, "error": %s}' % error.encode())) as url:
        with pytest.raises(RpcRefused, match="execution reverted") as caught:
            JsonRpc(url).ask("eth_call")
        assert (caught.value.rpc_code, caught.value.data) == (3, bytes.fromhex("12345678"))


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(CannotCheck, match="cannot be reached"):
        JsonRpc(url).ask("eth_chainId")


def test_message_from_outside_cannot_command_the_terminal() -> None:
    text = json.dumps({"id": 1, "error": {"code": 1, "message": "\x1b[2Jhello\r\n" + "x" * 9999}})
    with serving(answer(text.encode())) as url, pytest.raises(RpcRefused) as caught:
        JsonRpc(url).ask("eth_chainId")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    assert printable("a\x07b") == "a?b"


SECRET = "s3cret"
NO_URL = {
    "no scheme": f"127.0.0.1:8545/{SECRET}",
    "a file": f"file:///etc/{SECRET}",
    "a web socket": f"ws://127.0.0.1/{SECRET}",
    "no host": f"http:///{SECRET}",
    "a port that is none": f"http://127.0.0.1:http/{SECRET}",
    "a port out of range": f"http://127.0.0.1:99999/{SECRET}",
    "a line break": f"http://127.0.0.1/\r\nX-Injected: {SECRET}",
    "half a bracket": f"http://[::1/{SECRET}",
    "empty": "",
}


@pytest.mark.parametrize("url", NO_URL.values(), ids=NO_URL)
def test_what_is_no_endpoint_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        JsonRpc(url)
    assert SECRET not in str(caught.value) + caught.value.hint


def test_key_in_the_url_is_sent_and_never_shown() -> None:
    seen: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        seen.append(receive(connection))
        body = b"no"
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n" + body)

    with serving(handle) as url:
        rpc = JsonRpc(url.replace("://", f"://user:{SECRET}@") + f"/v3/{SECRET}?key={SECRET}")
        with pytest.raises(CannotCheck) as caught:
            rpc.ask("eth_chainId")
    assert f"POST /v3/{SECRET}?key={SECRET} HTTP/1.1".encode() in seen[0]
    assert b"Authorization: Basic dXNlcjpzM2NyZXQ=" in seen[0]
    assert b"Python-urllib" not in seen[0]
    assert SECRET not in str(caught.value) + caught.value.hint + repr(rpc)


def test_proxy_of_the_environment_is_not_asked_about_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with serving(result("0x1")) as url:
        assert JsonRpc(url).quantity("eth_chainId") == 1
    with pytest.raises(CannotCheck, match="cannot be reached"):
        JsonRpc("http://registry.invalid", timeout=5).ask("eth_chainId")
