"""The driver's TLS key, which exists only in memory, and the request that the operator signs."""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_ENCODING: Final = serialization.Encoding.PEM


class ServerKey:
    """A new P-256 key and a certificate signing request for it.

    Args:
        server_name: DNS name that the certificate is requested for.

    Attributes:
        request_pem: the certificate signing request.
    """

    def __init__(self, server_name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(server_name)]), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.request_pem = request.public_bytes(_ENCODING).decode()

    @property
    def private_pem(self) -> bytes:
        return self._key.private_bytes(
            _ENCODING, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def is_certified_by(self, certificate_pem: str) -> bool:
        """Return whether the certificate is for this key; the certificate of an earlier driver is not."""
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        except ValueError:
            return False
        return certificate.public_key() == self._key.public_key()
