"""The API server accepts and refuses the same manifests of the corpus as `megascale job validate`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from objects import fresh
from rest import Json, Refused
from schema.corpus import Case, cases
from suite.manifests import API
from suite.site import Site

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]
_STRICT = {"fieldValidation": "Strict"}


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    kubeconfig = request.config.getoption("--kubeconfig", default=None)
    with Site(tmp_path_factory.mktemp("site"), kubeconfig, nodes=1) as site:
        yield site


def test_the_api_server_agrees_about_every_manifest(site: Site) -> None:
    namespace = site.namespace(fresh("e2e"))
    wrong = []
    for case in cases():
        folder = API + (
            f"/namespaces/{namespace}/trainingjobs" if case.kind == "TrainingJob" else "/nodechecks"
        )
        refusal = verdict(site, folder, case)
        fields = fields_of(refusal) if refusal else []
        agrees = any(case.blames(field) for field in fields) if case.refused else refusal is None
        if not agrees:
            wrong.append((case.name, case.refused, refusal))
    assert wrong == []


def verdict(site: Site, folder: str, case: Case) -> Json | None:
    """Return the server's refusal (Status), None if it accepts the case; the created object is deleted."""
    if case.update is None:
        return refusal_of(site, "POST", folder, case.manifest, dryRun="All")
    stored = site.api.create(folder, case.manifest, **_STRICT)
    path = f"{folder}/{case.name}"
    try:
        version = {
            "metadata": {**case.update["metadata"], "resourceVersion": stored["metadata"]["resourceVersion"]}
        }
        return refusal_of(site, "PUT", path, case.update | version, dryRun="All")
    finally:
        site.api.delete(path)


def refusal_of(site: Site, method: str, path: str, body: Json, **query: str) -> Json | None:
    try:
        site.api.request(method, path, body, **query, **_STRICT)
    except Refused as refused:
        return refused.status
    return None


def fields_of(status: Json) -> list[str]:
    """Return the fields that a Status names; it names unknown fields in its message only."""
    causes = (status.get("details") or {}).get("causes") or ()
    message = str(status.get("message", ""))
    unknown = [part.partition('"')[0] for part in message.split('unknown field "')[1:]]
    return [*unknown, *(str(cause.get("field", "")) for cause in causes)]
