"""How two nodes come to know each other: keys, one-time codes, joining.

The inviting node shows a code that a person carries to the other node: where to connect, the
fingerprint of the certificate that must answer, and a secret that proves the right to pair.
Only a digest of the secret stays behind.  Afterwards both nodes have pinned each other's
certificate, and nothing else authenticates them.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hmac
import os
import secrets
import ssl
from pathlib import Path

import msgspec
from blake3 import blake3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nasfs.errors import ConfigError

from .connection import Connection, greeting
from .endpoint import PeerIdentity
from .errors import NotAuthenticated, RemoteProtocolError
from .session import Side
from .transport import TIMEOUT_S, Credentials, connect, parse_address
from .wire import Pair, Paired

INVITATION_S = 3600
"""How long a code is good for (seconds)."""

_PREFIX = "nasfs1-"  # the number is the version of the code's layout
_SECRET_BYTES = 16
_FINGERPRINT_BYTES = 32
_CHECKSUM_BYTES = 4
_AGAIN = "get a new one on the other node: nasfs pair invite"
_COPY = "copy it again, all of it, from where 'nasfs pair invite' printed it"


# keys


def create_credentials(directory: Path, node_name: str) -> Credentials:
    """A new key and self-signed certificate in *directory*; the key is for its owner only.

    The certificate holds from 2000 to 9999, so that no clock and no date ends a pair.

    Raises:
        FileExistsError: there is a key already; it is never replaced.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_name[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    credentials = Credentials(certificate=directory / "node.crt", key=directory / "node.key")
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write_new(credentials.key, private, 0o600)
    _write_new(credentials.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return credentials


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def fingerprint(certificate: str) -> bytes:
    """SHA-256 of a certificate (PEM).  Raises ConfigError if it is none."""
    try:
        loaded = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as exc:
        raise ConfigError("not a certificate in PEM form") from exc
    return loaded.fingerprint(hashes.SHA256())


def check_identity(candidate: PeerIdentity) -> PeerIdentity:
    """What a stranger says of itself, with its certificate in canonical PEM form.

    Raises:
        RemoteProtocolError: no certificate, or no address.
    """
    try:
        loaded = x509.load_pem_x509_certificate(candidate.certificate.encode())
        parse_address(candidate.address)
    except (ValueError, ConfigError) as exc:
        raise RemoteProtocolError(f"not the identity of a node: {exc}") from exc
    pem = loaded.public_bytes(serialization.Encoding.PEM).decode()
    return msgspec.structs.replace(candidate, certificate=pem)


# codes


class Code(msgspec.Struct, frozen=True):
    """What a code says."""

    address: str
    fingerprint: bytes
    secret: str
    """128 bits, as hexadecimal text."""

    def __str__(self) -> str:
        address = self.address.encode()
        body = self.fingerprint + bytes.fromhex(self.secret) + address
        text = base64.b32encode(body + _checksum(body)).decode().rstrip("=").lower()
        return _PREFIX + text


class Invitation(msgspec.Struct, frozen=True):
    """What the inviting node keeps: enough to know the code again, not enough to make it."""

    secret_digest: bytes
    expires_ns: int


def invite(address: str, certificate: str, now_ns: int) -> tuple[Code, Invitation]:
    """A new one-time code for the node that listens at *address* with that certificate (PEM).

    Raises:
        ConfigError: not an address that another node can connect to.
    """
    parse_address(address)
    secret = secrets.token_hex(_SECRET_BYTES)
    expires_ns = now_ns + INVITATION_S * 1_000_000_000
    return Code(address, fingerprint(certificate), secret), Invitation(_digest(secret), expires_ns)


def check_secret(invitation: Invitation | None, secret: str, now_ns: int) -> None:
    """Raises NotAuthenticated if the secret is not the one of the invitation, or too late."""
    if invitation is None:
        raise NotAuthenticated("the pairing code is not, or no longer, valid", _AGAIN)
    if not hmac.compare_digest(invitation.secret_digest, _digest(secret)):
        raise NotAuthenticated("the pairing code is wrong", _AGAIN)
    if now_ns > invitation.expires_ns:
        raise NotAuthenticated("the pairing code is too old", _AGAIN)


def parse_code(text: str) -> Code:
    """The code in pasted text; white space and upper case do not matter.

    Raises:
        ConfigError: not a code, or with a typo in it.
    """
    text = "".join(text.split()).lower()
    if not text.startswith(_PREFIX):
        raise ConfigError("this is not a pairing code", hint=f"it begins with {_PREFIX}; {_COPY}")
    letters = text.removeprefix(_PREFIX).upper()
    try:
        raw = base64.b32decode(letters + "=" * (-len(letters) % 8))
        body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
        # Encoding it again catches a changed last letter, part of which carries no bits.
        if checksum != _checksum(body) or base64.b32encode(raw).decode().rstrip("=") != letters:
            raise ValueError
        secret_end = _FINGERPRINT_BYTES + _SECRET_BYTES
        secret = body[_FINGERPRINT_BYTES:secret_end].hex()
        code = Code(body[secret_end:].decode(), body[:_FINGERPRINT_BYTES], secret)
    except (ValueError, binascii.Error) as exc:
        raise ConfigError("the pairing code has a typo or is incomplete", hint=_COPY) from exc
    parse_address(code.address)
    return code


def _checksum(body: bytes) -> bytes:
    return blake3(b"nasfs pairing code" + body).digest(_CHECKSUM_BYTES)


def _digest(secret: str) -> bytes:
    return blake3(b"nasfs pairing secret" + secret.encode()).digest()


# joining


def join(text: str, identity: PeerIdentity, *, timeout: float = TIMEOUT_S) -> PeerIdentity:
    """Introduce this node to the one that made the code *text*; its identity, to be pinned.

    The other node has durably become our partner when this returns, and may have if it raises
    PeerUnreachable.

    Raises:
        ConfigError: not a code, or with a typo in it; nothing was contacted.
        NotAuthenticated: another node answers there, or the code is wrong, used up or too old.
        RefusedByPeer: it has another partner.
        PeerUnreachable: nobody there.
    """
    code = parse_code(text)
    stream = connect(code.address, None, None, timeout=timeout)
    shown = stream.certificate
    if shown is None or not hmac.compare_digest(_sha256(shown), code.fingerprint):
        stream.close()
        raise NotAuthenticated(
            f"the node at {code.address} is not the one that made the pairing code", _AGAIN
        )
    with Connection(stream, Side.CLIENT) as connection:
        connection.greet(greeting(identity))
        connection.send(Pair(code.secret, identity))
        peer = check_identity(connection.expect(Paired).identity)
    if ssl.PEM_cert_to_DER_cert(peer.certificate) != shown:
        raise RemoteProtocolError("its identity has another certificate than its connection")
    # We reached it there; what it calls itself may be an address that only it knows.
    return msgspec.structs.replace(peer, address=code.address)


def _sha256(data: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize()
