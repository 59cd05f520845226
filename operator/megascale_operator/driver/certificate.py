"""The driver's key: made here, never written anywhere; the operator signs the request for it."""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_ENCODING: Final = serialization.Encoding.PEM


class ServerKey:
    """A P-256 key and the request to certify it for one name."""

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
        """Whether the certificate is for this key; a predecessor's is not."""
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        except ValueError:
            return False
        return certificate.public_key() == self._key.public_key()
