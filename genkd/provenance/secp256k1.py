"""Ethereum signatures: sign a 32-byte digest, and find the address that signed it.

    signature = sign_digest(secret, digest)
    recover_address(digest, signature) == address_of(secret)

Signing is OpenSSL's (constant time, RFC 6979 nonces, so the same message gives the same signature).
Recovery is done here with plain integers (SEC 1, section 4.1.6): it handles public values only, so
its timing tells nothing, and it spares a verifier the quarter of a second that importing an
Ethereum key library takes.
"""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature

from genkd.errors import KeyOrSignatureError
from genkd.provenance.typed_data import keccak256, to_address

# SEC 2, section 2.4.1: y^2 = x^3 + 7 over the integers modulo P, N points, generator (GX, GY).
P = 2**256 - 2**32 - 977
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
GX = 0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798
GY = 0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8

SIGNATURE_LENGTH = 65  # r, s, v
# (X, Y, Z) stands for the affine point (X / Z^2, Y / Z^3), so that adding needs no division;
# Z = 0 is the point at infinity.
Point = tuple[int, int, int]
INFINITY: Point = (1, 1, 0)


def _double(p: Point) -> Point:
    """2p (Hankerson, Menezes, Vanstone 2004, section 3.2.2, for a curve with a = 0)."""
    x, y, z = p
    y_squared = y * y % P
    s = 4 * x * y_squared % P
    m = 3 * x * x % P
    x2 = (m * m - 2 * s) % P
    return x2, (m * (s - x2) - 8 * y_squared * y_squared) % P, 2 * y * z % P


def _add(p: Point, q: Point) -> Point:
    """The sum of two points, both in Jacobian coordinates."""
    if not p[2] or not q[2]:
        return p if p[2] else q
    z1, z2 = p[2] * p[2] % P, q[2] * q[2] % P
    u1, u2 = p[0] * z2 % P, q[0] * z1 % P
    s1, s2 = p[1] * z2 * q[2] % P, q[1] * z1 * p[2] % P
    if u1 == u2:
        return _double(p) if s1 == s2 else INFINITY
    h, r = u2 - u1, s2 - s1
    h2 = h * h % P
    h3, v = h2 * h % P, u1 * h2 % P
    x = (r * r - h3 - 2 * v) % P
    return x, (r * (v - x) - s1 * h3) % P, h * p[2] * q[2] % P


def _sum_of_multiples(u: int, a: Point, w: int, b: Point) -> Point:
    """u*a + w*b, reading both factors bit by bit at once (Shamir's trick)."""
    choices = (INFINITY, a, b, _add(a, b))
    total = INFINITY
    for bit in range(max(u.bit_length(), w.bit_length()) - 1, -1, -1):
        total = _add(_double(total), choices[(u >> bit & 1) | (w >> bit & 1) << 1])
    return total


def _address_of_point(x: int, y: int) -> str:
    return to_address(keccak256(x.to_bytes(32, "big") + y.to_bytes(32, "big"))[12:])


def _recover(digest: bytes, r: int, s: int, parity: int) -> str | None:
    y_squared = (pow(r, 3, P) + 7) % P
    y = pow(y_squared, (P + 1) // 4, P)
    if y * y % P != y_squared:
        return None  # r is no x coordinate of the curve
    if y % 2 != parity:
        y = P - y
    inverse = pow(r, -1, N)
    z = int.from_bytes(digest, "big")
    point = _sum_of_multiples(-z * inverse % N, (GX, GY, 1), s * inverse % N, (r, y, 1))
    if not point[2]:
        return None
    z_inverse = pow(point[2], -1, P)
    return _address_of_point(point[0] * z_inverse**2 % P, point[1] * z_inverse**3 % P)


def recover_address(digest: bytes, signature: bytes) -> str:
    """The address whose key signed `digest`.

    Any well-formed signature recovers to *some* address, so the caller must compare. Only the low-s
    form is accepted: of each signature there is a twin with s' = N - s, and OpenZeppelin's ECDSA
    refuses it too.

    Args:
        digest: 32 bytes, for example an EIP-712 digest.
        signature: r, s, v, 65 bytes, v being 27 or 28.

    Raises:
        KeyOrSignatureError: If the signature is malformed, high-s, or no point of the curve.
    """
    if len(digest) != 32:
        raise ValueError("a digest has 32 bytes")
    if len(signature) != SIGNATURE_LENGTH:
        raise _malformed(f"it has {len(signature)} bytes, not {SIGNATURE_LENGTH}")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    if signature[64] not in (27, 28):
        raise _malformed(f"v is {signature[64]}, not 27 or 28")
    if not 0 < r < N or not 0 < s < N:
        raise _malformed("r or s is out of range")
    if s > N // 2:
        raise _malformed("it is the high-s twin of another signature")
    address = _recover(digest, r, s, signature[64] - 27)
    if address is None:
        raise _malformed("it is no point of the curve")
    return address


def _malformed(reason: str) -> KeyOrSignatureError:
    return KeyOrSignatureError(
        f"the Ethereum signature is malformed: {reason}",
        hint="the signature was damaged or forged; ask for the original",
    )


def address_of(secret: int) -> str:
    """The address of a private key.

    Raises:
        KeyOrSignatureError: If the number is no private key of this curve.
    """
    numbers = _private_key(secret).public_key().public_numbers()
    return _address_of_point(numbers.x, numbers.y)


def _private_key(secret: int) -> ec.EllipticCurvePrivateKey:
    if not 0 < secret < N:
        raise KeyOrSignatureError(
            "this is no private key of Ethereum's curve",
            hint="restore the key file from a backup",
        )
    return ec.derive_private_key(secret, ec.SECP256K1())


def sign_digest(secret: int, digest: bytes) -> bytes:
    """Sign 32 bytes, deterministically, in low-s form.

    Args:
        secret: The private key, 1 to N - 1.
        digest: 32 bytes.

    Returns:
        r, s, v, 65 bytes, v being 27 or 28.

    Raises:
        KeyOrSignatureError: If the number is no private key.
    """
    if len(digest) != 32:
        raise ValueError("a digest has 32 bytes")
    algorithm = ec.ECDSA(Prehashed(hashes.SHA256()), deterministic_signing=True)
    r, s = decode_dss_signature(_private_key(secret).sign(digest, algorithm))
    s = min(s, N - s)
    address = address_of(secret)
    # OpenSSL does not say which of the two points with this x it used.
    parity = 0 if _recover(digest, r, s, 0) == address else 1
    return r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([27 + parity])
