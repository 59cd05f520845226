"""The CA: certificates for drivers, refused requests, renewal."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from megascale_operator.tls.authority import Authority, RequestRefusedError

NOW = datetime.now(UTC)
NAME = "q.team.driver.megascale"
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def request(*names: str, key: Key | None = None) -> tuple[str, Key]:
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        san = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(san, critical=False)
    csr = builder.sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode(), key


def test_a_certificate_is_for_the_driver_alone_and_for_a_week() -> None:
    authority = Authority.create(NOW)
    csr, _ = request(NAME)
    certificate = x509.load_pem_x509_certificate(authority.sign(csr, NAME, NOW).encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NAME]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert certificate.not_valid_after_utc - NOW <= timedelta(days=7)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("other.team.driver.megascale",), "expected exactly"),
        ((NAME, "kubernetes.default.svc"), "expected exactly"),
        (("*.team.driver.megascale",), "expected exactly"),
        ((), "subjectAltName"),
    ],
)
def test_other_names_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestRefusedError, match=message):
        Authority.create(NOW).sign(request(*names)[0], NAME, NOW)


def test_weak_keys_and_garbage_are_refused() -> None:
    authority = Authority.create(NOW)
    weak, _ = request(NAME, key=rsa.generate_private_key(65537, 1024))
    for csr in (
        weak,
        "",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----",
        "x" * 20_000,
    ):
        with pytest.raises(RequestRefusedError):
            authority.sign(csr, NAME, NOW)


def test_certificates_are_renewed_in_time_and_for_a_new_key() -> None:
    authority = Authority.create(NOW)
    csr, _ = request(NAME)
    certificate = authority.sign(csr, NAME, NOW)
    assert authority.is_current(certificate, csr, NOW)
    assert not authority.is_current(certificate, csr, NOW + timedelta(days=5, minutes=1))
    assert not authority.is_current(certificate, request(NAME)[0], NOW), "the driver has a new key"
    assert not Authority.create(NOW).is_current(certificate, csr, NOW), "another CA signed it"
    assert not authority.is_current("", csr, NOW)


def test_a_stored_authority_is_loaded_unchanged() -> None:
    authority = Authority.create(NOW)
    kept = Authority.load(authority.certificate_pem.encode(), authority.key_pem.encode())
    csr, _ = request(NAME)
    assert authority.is_current(kept.sign(csr, NAME, NOW), csr, NOW)


def test_a_client_that_has_the_ca_trusts_the_driver_by_its_name(tmp_path: Path) -> None:
    authority = Authority.create(NOW)
    csr, key = request(NAME)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "both.pem").write_bytes(pem + authority.sign(csr, NAME, NOW).encode())
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "both.pem")
    client = ssl.create_default_context(cadata=authority.certificate_pem)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    near, far = socket.socketpair()

    def serve() -> None:
        try:
            with server.wrap_socket(far, server_side=True):
                pass
        except OSError:
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with client.wrap_socket(near, server_hostname=NAME) as connection:
        assert connection.version() == "TLSv1.3"
    thread.join(10)
