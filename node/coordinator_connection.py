"""One coordinator, asked over HTTPS without trusting it with our time or memory.

    server = CoordinatorConnection("federation.example:9092", timeout=20)
    server.trust(server.authority(fingerprint))
    data = server.get("/genkd/federation.json", limit)

A coordinator, or who pretends to be one, may be silent, send a byte a second, or send for ever:
each exchange is bounded in time and in size. Redirects are not followed, proxies not used, and what
the machine trusts otherwise does not count.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from typing import Final

from cryptography import x509

from contracts.authority import (
    MAX_AUTHORITY_BYTES,
    authority_pem,
    fingerprint_of,
    read_authority,
)
from contracts.enrolment import AUTHORITY_PATH
from genkd.canonical import parse_json
from genkd.errors import (
    CoordinatorUnreachable,
    KeyOrSignatureError,
    RefusedByPolicy,
    UsageError,
)

MAX_REASON_CHARACTERS = 200
# OpenSSL's X509_V_ERR_...
NOT_YET_VALID, EXPIRED, WRONG_NAME, WRONG_ADDRESS = 9, 10, 62, 64
AGAIN: Final = "check that the coordinator is up and can be reached from here, and try again"


class NotFound(CoordinatorUnreachable):
    """HTTP status 404."""


def parse_coordinator(text: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 address stands in brackets.

    Raises:
        UsageError: If it is anything else.
    """
    host, colon, port = text.strip().removeprefix("https://").removesuffix("/").rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if bracketed else host
    plain = name.isascii() and name.isprintable() and not set(name) & set(" /@?#[]\\")
    if (
        not colon
        or not name
        or not plain
        or (":" in name) != bracketed
        or not (port.isascii() and port.isdecimal() and len(port) <= 5)
        or not 0 < int(port) < 65536
    ):
        raise UsageError(
            f"{text[:100]!a} is no address of a coordinator",
            hint="give host:port, as 'genkd-coordinator serve' shows it",
        )
    return name, int(port)


class CoordinatorConnection:
    """One coordinator, asked over a connection of its own each time.

    Args:
        coordinator: `host:port`.
        timeout: Seconds for an exchange, from looking up the name to the last byte.
    """

    def __init__(self, coordinator: str, timeout: float) -> None:
        self.host, self.port = parse_coordinator(coordinator)
        self.name = f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
        self._timeout = timeout
        self._trusted: ssl.SSLContext | None = None

    def authority(self, fingerprint: str) -> x509.Certificate:
        """The authority's certificate, from whoever answers, if it has this fingerprint."""
        anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anybody.check_hostname = False
        anybody.verify_mode = ssl.CERT_NONE
        pem = self._ask(anybody, "GET", AUTHORITY_PATH, b"", MAX_AUTHORITY_BYTES)
        authority = read_authority(pem)
        if fingerprint_of(authority) != fingerprint:
            raise KeyOrSignatureError(
                f"{self.name} is not the coordinator meant: the fingerprint of its authority is "
                f"{fingerprint_of(authority)}",
                hint="ask the coordinator for its fingerprint by another way, by telephone; "
                "if it is the one you gave, somebody stands between. Nothing was sent",
            )
        return authority

    def trust(self, authority: x509.Certificate) -> None:
        """Believe this authority from now on, and no other."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=authority_pem(authority).decode("ascii"))
        self._trusted = context

    def get(self, path: str, limit: int) -> bytes:
        """The answer to a question, at most `limit` bytes."""
        return self._ask(self._trusted, "GET", path, b"", limit)

    def post(self, path: str, body: bytes, limit: int) -> bytes:
        """The answer to a document, at most `limit` bytes."""
        return self._ask(self._trusted, "POST", path, body, limit)

    def _ask(
        self, context: ssl.SSLContext | None, method: str, path: str, body: bytes, limit: int
    ) -> bytes:
        if context is None:
            raise ValueError("trust an authority first")
        status, answer = self._in_time(_Exchange(self, context, method, path, body, limit))
        if status == 200 and len(answer) <= limit:
            return answer
        if status == 200:
            raise self._stranger(f"answers with more than {limit} bytes")
        reason = _reason(answer)
        if status in (400, 403, 413):
            raise RefusedByPolicy(
                f"the coordinator refuses the request: {reason}",
                hint="ask its operator; both sides need the same version of this program",
            )
        if status in (408, 429, 503):
            raise CoordinatorUnreachable(f"{self.name} is busy: {reason}", hint="try again later")
        message = f"{self.name} answers {path} with HTTP status {status}: {reason}"
        kind = NotFound if status == 404 else CoordinatorUnreachable
        raise kind(message, hint="check that this is the coordinator's address")

    def _in_time(self, exchange: _Exchange) -> tuple[int, bytes]:
        """The outcome of an exchange that runs in a thread: sockets bound no whole exchange.

        A look-up of a name cannot be interrupted, and each byte that trickles in starts a socket's
        timeout anew.
        """
        thread = threading.Thread(target=exchange.run, name="enrolment", daemon=True)
        thread.start()
        thread.join(self._timeout)
        if exchange.outcome is None:
            exchange.abandon()
            raise CoordinatorUnreachable(
                f"{self.name} does not answer within {self._timeout:g} s", hint=AGAIN
            )
        if isinstance(exchange.outcome, BaseException):
            raise self._failure(exchange.outcome) from exchange.outcome
        return exchange.outcome

    @property
    def timeout(self) -> float:
        """Seconds for an exchange."""
        return self._timeout

    # ------------------------------------------------------------------ what went wrong

    def _failure(self, error: BaseException) -> BaseException:
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._distrusted(error)
        if isinstance(error, ssl.SSLError):
            return self._stranger(f"does not speak TLS as it should ({error.reason or 'broken'})")
        if isinstance(error, http.client.HTTPException) and not isinstance(error, ConnectionError):
            return self._stranger("answers with something that is not HTTP")
        if isinstance(error, TimeoutError):
            return CoordinatorUnreachable(f"{self.name} does not answer", hint=AGAIN)
        if isinstance(error, OSError | UnicodeError):
            reason = getattr(error, "strerror", None) or type(error).__name__
            return CoordinatorUnreachable(f"{self.name} cannot be reached: {reason}", hint=AGAIN)
        return error

    def _distrusted(self, error: ssl.SSLCertVerificationError) -> KeyOrSignatureError:
        if error.verify_code in (WRONG_NAME, WRONG_ADDRESS):
            return KeyOrSignatureError(
                f"the coordinator's certificate is not for {self.host}",
                hint="use a name that it is for, or have the coordinator add this one: "
                f"genkd-coordinator init --host {self.host}",
            )
        if error.verify_code in (NOT_YET_VALID, EXPIRED):
            state = "has expired" if error.verify_code == EXPIRED else "is not valid yet"
            return KeyOrSignatureError(
                f"the certificate of {self.name} {state} by this machine's clock",
                hint="check this machine's clock; if it is right, the coordinator renews its "
                "certificate when 'serve' is started again",
            )
        return KeyOrSignatureError(
            f"{self.name} does not prove itself by the authority with this fingerprint",
            hint="check the address; if it is right, somebody stands between. Nothing was sent",
        )

    def _stranger(self, what: str) -> CoordinatorUnreachable:
        return CoordinatorUnreachable(
            f"{self.name} {what}", hint="check that this is the coordinator's address"
        )


class _Exchange:
    """One question and its answer, asked in a thread of its own.

    Attributes:
        outcome: Status and body, at most a byte more than the limit; or what went wrong; None
            while it goes on.
    """

    def __init__(
        self,
        server: CoordinatorConnection,
        context: ssl.SSLContext,
        method: str,
        path: str,
        body: bytes,
        limit: int,
    ) -> None:
        self.outcome: tuple[int, bytes] | BaseException | None = None
        self._connection = http.client.HTTPSConnection(
            server.host, server.port, timeout=server.timeout, context=context
        )
        self._method, self._path, self._body, self._limit = method, path, body, limit

    def run(self) -> None:
        """Ask, and leave the outcome."""
        headers = {"User-Agent": "genkd-node", "Accept-Encoding": "identity", "Connection": "close"}
        if self._body:
            headers["Content-Type"] = "application/json"
        try:
            with contextlib.closing(self._connection) as connection:
                connection.request(self._method, self._path, self._body or None, headers)
                with connection.getresponse() as response:
                    self.outcome = response.status, response.read(self._limit + 1)
        except BaseException as error:  # handed to the caller, who raises it
            self.outcome = error

    def abandon(self) -> None:
        """Wake the thread, if it waits for the other side, so that it ends."""
        connected = self._connection.sock
        if connected is not None:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)


def _reason(answer: bytes) -> str:
    """What an answer says went wrong, short and printable."""
    try:
        value = parse_json(answer)
        text = value.get("error") if isinstance(value, dict) else None
    except ValueError:
        text = None
    if not isinstance(text, str) or not text:
        return "it does not say why"
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_REASON_CHARACTERS])
