"""The Secret that stores the CA; the first leader creates it, later leaders read it."""

from __future__ import annotations

import base64
from datetime import datetime

from megascale.errors import InputError
from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.errors import AlreadyExistsError, NotFoundError
from megascale_operator.kube.resources import SECRETS, Obj
from megascale_operator.reconcile import names
from megascale_operator.tls.authority import Authority


async def load_or_create(api: KubeApi, namespace: str, now: datetime) -> Authority:
    """Return the CA stored in the operator's namespace; create it if there is none.

    Raises:
        InputError: the Secret does not hold a usable CA.
    """
    try:
        return _read(await api.get(SECRETS, names.CA_SECRET, namespace))
    except NotFoundError:
        authority = Authority.create(now)
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names.CA_SECRET,
            "namespace": namespace,
            "labels": {names.MANAGED_BY: names.OPERATOR},
        },
        "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": authority.certificate_pem, "tls.key": authority.key_pem},
    }
    try:
        await api.create(SECRETS, body, namespace)
    except AlreadyExistsError:
        return _read(await api.get(SECRETS, names.CA_SECRET, namespace))
    return authority


def _read(secret: Obj) -> Authority:
    data = secret.get("data") or {}
    try:
        return Authority.load(base64.b64decode(data["tls.crt"]), base64.b64decode(data["tls.key"]))
    except KeyError as error:
        raise InputError(f"Secret {names.CA_SECRET} has no {error}; delete it to get a new CA") from error
