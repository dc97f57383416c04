"""The certificate that routers in clouds serve HTTPS with, as the settings name it, and how their control plane knows it."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

from tandemn.errors import InvalidInput

if TYPE_CHECKING:
    from tandemn.settings import Settings

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    pem: bytes = field(repr=False)
    """The certificate, what it was signed by, and its key: a secret."""
    fingerprint: bytes
    """SHA-256 of the certificate itself."""


def read_certificate(settings: Settings) -> Certificate | None:
    """Read the certificate; None where the settings name none.

    Raises:
        InvalidInput: `invalid_certificate`: a file cannot be read, or certificate and key are not one pair.
    """
    if settings.router_cert is None:
        return None
    cert, key = settings.router_cert.expanduser(), settings.router_cert_key
    key = None if key is None else key.expanduser()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_no_password)
        pem = cert.read_bytes() if key is None else cert.read_bytes().rstrip() + b"\n" + key.read_bytes()
        text = cert.read_text(errors="replace")
        leaf = text[text.index(_BEGIN) : text.index(_END) + len(_END)]
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(leaf)).digest()
    except (OSError, ssl.SSLError, ValueError) as exc:
        raise InvalidInput(
            f"TANDEMN_ROUTER_CERT {cert}: {exc}",
            code="invalid_certificate",
            next_step="name a PEM file with certificate and key, or the key's file in TANDEMN_ROUTER_CERT_KEY",
        ) from exc
    return Certificate(pem=pem, fingerprint=digest)


def trusted(settings: Settings) -> aiohttp.Fingerprint | bool:
    """Say whom the control plane takes for its router: who has this very certificate, whatever name it is reached by.

    Raises:
        InvalidInput: as `read_certificate`.
    """
    certificate = read_certificate(settings)
    return True if certificate is None else aiohttp.Fingerprint(certificate.fingerprint)


def _no_password() -> str:
    raise ValueError("its key is protected by a password, which nobody could type in on the router's machine")
