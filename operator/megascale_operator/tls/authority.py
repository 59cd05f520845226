"""The certificate authority (P-256) that signs the drivers' TLS server certificates."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from megascale.errors import InputError, MegascaleError

CERTIFICATE_DAYS: Final = 7
RENEW_BEFORE: Final = timedelta(days=2)
_CA_DAYS: Final = 3650
_CLOCK_SKEW: Final = timedelta(minutes=5)
_CA_NAME: Final = "MegaScale drivers"
_MAX_PEM: Final = 16_384
_LEAST_RSA_BITS: Final = 2048


class RequestRefusedError(MegascaleError):
    """A certificate signing request was refused; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA's certificate and key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @classmethod
    def create(cls, now: datetime) -> Authority:
        """Return a new CA, valid for ten years."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _CA_NAME)])
        usage = _usage(signs_certificates=True)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + timedelta(days=_CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate_pem: bytes, key_pem: bytes) -> Authority:
        """Load a CA from the PEM data in its Secret.

        Raises:
            InputError: the data is not a certificate and the P-256 key that belongs to it.
        """
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            key = serialization.load_pem_private_key(key_pem, None)
        except ValueError as error:
            raise InputError(f"the CA cannot be read: {error}") from error
        if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise InputError("the CA's key does not belong to its certificate")
        return cls(certificate, key)

    @property
    def certificate_pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()

    def sign(self, csr_pem: str, server_name: str, now: datetime) -> str:
        """Sign a server certificate for exactly `server_name`, valid for 7 days; return it as PEM.

        Only the public key is taken from the request.

        Raises:
            RequestRefusedError: the request is malformed or for another name, or its key is too short.
        """
        request = _checked(csr_pem, server_name)
        key = request.public_key()
        usage = _usage(signs_certificates=False)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(server_name)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def is_current(self, certificate_pem: str, csr_pem: str, now: datetime) -> bool:
        """Return whether this CA issued the certificate for the CSR's key and it needs no renewal yet."""
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
            request = x509.load_pem_x509_csr(csr_pem.encode())
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        fresh = certificate.not_valid_after_utc - RENEW_BEFORE > now
        return fresh and certificate.public_key() == request.public_key()


def utc(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)


def _checked(csr_pem: str, server_name: str) -> x509.CertificateSigningRequest:
    if len(csr_pem) > _MAX_PEM:
        raise RequestRefusedError(f"the request has {len(csr_pem)} characters, expected at most {_MAX_PEM}")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        signed = request.is_signature_valid
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key = request.public_key()
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise RequestRefusedError(f"not a certificate request with a subjectAltName: {error}") from error
    if not signed:
        raise RequestRefusedError("the request is not signed by its own key")
    if [name.value for name in names] != [server_name] or not isinstance(next(iter(names)), x509.DNSName):
        found = ", ".join(str(name.value) for name in names)
        raise RequestRefusedError(f"the request is for {found}, expected exactly {server_name}")
    if getattr(key, "key_size", 256) < (
        256 if isinstance(key, ec.EllipticCurvePublicKey) else _LEAST_RSA_BITS
    ):
        raise RequestRefusedError("the key is too short, expected P-256 or RSA with 2,048 bits")
    return request


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
