"""Ask an Ethereum endpoint one question, without trusting it with our time or memory.

    rpc = JsonRpc("http://127.0.0.1:8545", timeout=5)
    chain_id = rpc.quantity("eth_chainId")

An endpoint may be silent, send a byte a second, send a hundred megabytes, or send what is no JSON:
every one of these ends in `CannotCheck` within the timeout. Redirects are not followed, and no
message shows more of the URL than its host, for hosted endpoints carry their key in the path.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Final

from genkd.errors import CannotCheck, ConfigurationError

# A block of a busy chain with all its transaction hashes has 100 kB; ten thousand logs have 10 MB.
MAX_RESPONSE_BYTES: Final = 16 * 1024 * 1024
CHUNK_BYTES = 64 * 1024
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_DEPTH: Final = 100
NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
QUANTITY = re.compile(r"0x(0|[1-9a-f][0-9a-f]{0,63})")
DATA = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
ENDPOINT_HINT = "check the endpoint's URL, or name another"


class RpcRefused(CannotCheck):
    """The endpoint understood the question and answered with an error.

    Attributes:
        rpc_code: The JSON-RPC error code.
        data: What a reverted call returned, empty if it is not said.
    """

    def __init__(self, message: str, *, rpc_code: int, data: bytes) -> None:
        super().__init__(message, hint=ENDPOINT_HINT)
        self.rpc_code = rpc_code
        self.data = data


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None  # makes urllib report the 3xx as the error it is here


class JsonRpc:
    """One endpoint.

    Args:
        url: `http://` or `https://`; a user and password in it are sent as basic authentication.
            The proxies of the environment are used, except for this machine itself.
        timeout: Seconds for one question, from looking up the host's name to the last byte.
        max_bytes: The longest answer to read.

    Attributes:
        name: The endpoint's scheme, host and port: what may be shown.

    Raises:
        ConfigurationError: If the URL is not one.
    """

    def __init__(
        self, url: str, *, timeout: float = 10.0, max_bytes: int = MAX_RESPONSE_BYTES
    ) -> None:
        parts, port = _split(url)
        host = parts.hostname or ""
        self.name = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}"
        self.name += f":{port}" if port else ""
        self._url = urllib.parse.urlunsplit(
            (parts.scheme, self.name.partition("://")[2], parts.path or "/", parts.query, "")
        )
        self._headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            # Hosted endpoints turn away the name that Python's library gives itself.
            "User-Agent": "genkd-node",
        }
        if parts.username is not None:
            pair = f"{urllib.parse.unquote(parts.username)}:"
            pair += urllib.parse.unquote(parts.password or "")
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        proxies = urllib.request.ProxyHandler({} if host in LOOPBACK else None)
        self._opener = urllib.request.build_opener(proxies, _NoRedirect)
        self.timeout = timeout
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"JsonRpc({self.name!r})"

    def ask(self, method: str, *params: object) -> Any:
        """The `result` of one call, as JSON gives it.

        Raises:
            RpcRefused: If the endpoint answered with an error.
            CannotCheck: If it did not answer properly, in time and in bounds.
        """
        question = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        answer = self._parse(self._post(json.dumps(question).encode()))
        if answer.get("error") is not None:
            raise self._refused(answer["error"])
        if "result" not in answer:
            raise self._nonsense("an answer with neither result nor error")
        return answer["result"]

    def quantity(self, method: str, *params: object) -> int:
        """The result of a call that answers with a number.

        Raises:
            CannotCheck: If it is none, or as `ask`.
        """
        return self.as_quantity(self.ask(method, *params))

    def data(self, method: str, *params: object) -> bytes:
        """The result of a call that answers with bytes.

        Raises:
            CannotCheck: If it is not, or as `ask`.
        """
        return self.as_data(self.ask(method, *params))

    def as_quantity(self, value: object) -> int:
        """A number of JSON-RPC: 0x, hexadecimal digits, no leading zero; at most 256 bits."""
        if not isinstance(value, str) or not QUANTITY.fullmatch(value):
            raise self._nonsense(f"{printable(value)} where a number belongs")
        return int(value, 16)

    def as_data(self, value: object) -> bytes:
        """Bytes of JSON-RPC: 0x and pairs of hexadecimal digits."""
        if not isinstance(value, str) or not DATA.fullmatch(value):
            raise self._nonsense(f"{printable(value)} where bytes belong")
        return bytes.fromhex(value[2:])

    # ------------------------------------------------------------------ transport

    def _post(self, body: bytes) -> bytes:
        """Send and read in a thread of its own: no timeout of a socket bounds the whole exchange.

        A look-up of a name cannot be interrupted, and each byte that trickles in starts a socket's
        timeout anew. A thread that hangs is left behind and dies with the process.
        """
        outcome: list[bytes | BaseException] = []
        deadline = time.monotonic() + self.timeout

        def work() -> None:
            try:
                outcome.append(self._exchange(body, deadline))
            except BaseException as error:  # handed to the caller, who raises it
                outcome.append(error)

        thread = threading.Thread(target=work, name="json-rpc", daemon=True)
        thread.start()
        thread.join(self.timeout)
        if not outcome:
            raise self._silent()
        if isinstance(outcome[0], BaseException):
            raise self._unreachable(outcome[0]) from outcome[0]
        return outcome[0]

    def _exchange(self, body: bytes, deadline: float) -> bytes:
        request = urllib.request.Request(self._url, body, self._headers, method="POST")  # noqa: S310 (http or https only, see _split)
        chunks: list[bytes] = []
        read = 0
        try:
            response = self._opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            error.close()  # it holds the connection
            raise
        with response:
            while chunk := response.read1(CHUNK_BYTES):
                chunks.append(chunk)
                read += len(chunk)
                if read > self._max_bytes:
                    raise self._nonsense(f"more than {self._max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError
        return b"".join(chunks)

    def _parse(self, body: bytes) -> dict[str, Any]:
        try:
            require_shallow(body)
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise self._nonsense("something that is not JSON") from error
        if not isinstance(answer, dict) or answer.get("id") != 1:
            raise self._nonsense("JSON that answers another question")
        return answer

    # ------------------------------------------------------------------ what went wrong

    def _refused(self, error: object) -> RpcRefused:
        fields = error if isinstance(error, dict) else {}
        code = fields.get("code")
        return RpcRefused(
            f"{self.name} refuses: {printable(fields.get('message', error))}",
            rpc_code=code if isinstance(code, int) else 0,
            data=_revert_data(fields.get("data")),
        )

    def _nonsense(self, what: str) -> CannotCheck:
        return CannotCheck(f"{self.name} answers with {what}", hint=ENDPOINT_HINT)

    def _silent(self) -> CannotCheck:
        return CannotCheck(
            f"{self.name} does not answer within {self.timeout:g} s",
            hint="check that the chain is running and can be reached from here, and try again",
        )

    def _unreachable(self, error: BaseException) -> BaseException:
        if isinstance(error, CannotCheck) or not isinstance(error, Exception):
            return error
        if isinstance(error, urllib.error.HTTPError):
            return self._nonsense(f"HTTP status {error.code}")
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            return self._silent()
        return CannotCheck(
            f"{self.name} cannot be reached: {printable(str(reason) or type(reason).__name__)}",
            hint="check that the chain is running and the endpoint's URL is right",
        )


def require_shallow(body: bytes) -> None:
    """Refuse JSON nested so deep that parsing it ends the process.

    Python's own limit raises an error in time, but some libraries lift it (web3 does): then the
    parser runs out of stack. Brackets within strings count too; honest answers have none there.

    Raises:
        ValueError: If it is nested deeper than `MAX_DEPTH`.
    """
    depth = 0
    for bracket in body.translate(None, NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _split(url: str) -> tuple[urllib.parse.SplitResult, int | None]:
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _bad_url() from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
        raise _bad_url()
    return parts, port


def _bad_url() -> ConfigurationError:
    # Not shown: it may hold a key.
    return ConfigurationError(
        "the endpoint is not given as a URL with http:// or https:// and a host",
        hint="for a chain on this machine: http://127.0.0.1:8545",
    )


def _revert_data(value: object) -> bytes:
    """What a reverted call returned: plain in most endpoints, one level deeper in some."""
    if isinstance(value, dict):
        value = value.get("data")
    if isinstance(value, str) and DATA.fullmatch(value):
        return bytes.fromhex(value[2:])
    return b""


def printable(value: object, limit: int = 160) -> str:
    """Text from outside, short and without control characters, which terminals would obey."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "..."
