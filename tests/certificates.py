"""Certificates that sign themselves, by OpenSSL."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def self_signed(
    folder: Path, *, subject: str = "localhost", alias: str = "DNS:localhost", file: str = "cert"
) -> tuple[Path, Path]:
    """Make one for two days; return its file and its key's."""
    certificate, key = folder / f"{file}.pem", folder / f"{file}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={subject}", "-addext", f"subjectAltName={alias}"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key
