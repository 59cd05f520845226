"""Faults that the proxy injects: each has its effect, and only on its client."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from objects import config_map, fresh
from programs import proxy
from proxy.control import Faults
from rest import Cluster, Refused, Rest

pytestmark = pytest.mark.multiprocess
CONFIGMAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture(scope="module")
def faults(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    folder = tmp_path_factory.mktemp("proxy")
    program, url = proxy(folder, kubeconfig, "one", "two")
    with program:
        yield Faults(url, folder)


@pytest.fixture(autouse=True)
def _lift(faults: Faults) -> Iterator[None]:
    yield
    faults.clear()


@pytest.fixture
def one(faults: Faults, api: Rest) -> Rest:
    return client(faults, api, "one")


def client(faults: Faults, api: Rest, name: str, timeout_s: float = 5.0) -> Rest:
    cluster = Cluster(faults.urls()[name], faults.ca_pem, api.cluster.token)
    return Rest(cluster, agent=f"test-{name}", timeout_s=timeout_s)


def test_requests_pass_and_are_logged(faults: Faults, one: Rest) -> None:
    name = fresh()
    one.create(CONFIGMAPS, config_map(name, a="1"))
    assert one.get(f"{CONFIGMAPS}/{name}")["data"] == {"a": "1"}
    line = faults.trail()[-1]
    assert (line["client"], line["method"], line["code"], line["agent"]) == ("one", "GET", 200, "test-one")


def test_large_responses_pass_compressed_if_accepted(faults: Faults, one: Rest, api: Rest) -> None:
    name = fresh()
    one.create(CONFIGMAPS, config_map(name, a="1" * 200_000))
    url, context = faults.urls()["one"], ssl.create_default_context(cadata=faults.ca_pem)
    headers = {"Authorization": f"Bearer {api.cluster.token}"}
    sizes = {}
    with urllib3.PoolManager(ssl_context=context) as pool:
        for coding in ("gzip", "identity"):
            wanted = headers | {"Accept-Encoding": coding}
            answer = pool.request("GET", f"{url}{CONFIGMAPS}/{name}", headers=wanted, decode_content=False)
            assert answer.headers.get("Content-Encoding", "identity") == coding
            sizes[coding] = len(answer.data)
    assert sizes["gzip"] < 200_000 < sizes["identity"]


@pytest.mark.parametrize("code", [409, 410, 429, 500])
def test_the_proxy_responds_instead_of_the_server(faults: Faults, one: Rest, code: int) -> None:
    faults.add("answer", code=code, retry_after=2, method="GET", times=1)
    with pytest.raises(Refused) as caught:
        one.get(CONFIGMAPS)
    assert (caught.value.code, caught.value.status["code"]) == (code, code)
    assert one.get(CONFIGMAPS)["kind"] == "ConfigMapList"


def test_a_fault_affects_only_its_client(faults: Faults, one: Rest, api: Rest) -> None:
    faults.add("answer", code=500, client="^two$")
    assert one.get(CONFIGMAPS)
    with pytest.raises(Refused, match="500"):
        client(faults, api, "two").get(CONFIGMAPS)


def test_requests_hang_until_the_fault_is_removed(faults: Faults, one: Rest, api: Rest) -> None:
    version = one.get(CONFIGMAPS)["metadata"]["resourceVersion"]
    with client(faults, api, "one", timeout_s=1.0).watch(CONFIGMAPS, resourceVersion=version) as events:
        number = faults.add("hang")
        api.create(CONFIGMAPS, config_map(fresh()))
        begin = time.monotonic()
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            next(events)
        assert time.monotonic() - begin >= 0.9
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        client(faults, api, "one", timeout_s=0.5).get(CONFIGMAPS)
    faults.remove(number)
    assert one.get(CONFIGMAPS)


def test_a_response_lost_after_the_server_acted(faults: Faults, one: Rest, api: Rest) -> None:
    faults.add("lose", method="POST", times=1)
    name = fresh()
    with pytest.raises((urllib3.exceptions.ProtocolError, urllib3.exceptions.SSLError)):
        one.create(CONFIGMAPS, config_map(name))
    assert api.get(f"{CONFIGMAPS}/{name}")


def test_a_watch_is_cut_expired_and_resumed(faults: Faults, one: Rest, api: Rest) -> None:
    version = one.get(CONFIGMAPS)["metadata"]["resourceVersion"]
    faults.add("cut", path="watch=true", lines=1, times=1)
    for _ in range(2):
        api.create(CONFIGMAPS, config_map(fresh()))
    with one.watch(CONFIGMAPS, resourceVersion=version) as events:
        first = next(events)
        with pytest.raises((urllib3.exceptions.ProtocolError, urllib3.exceptions.SSLError)):
            next(events)
    faults.add("expire", path="watch=true", times=1)
    with one.watch(CONFIGMAPS, resourceVersion=version) as events:
        assert next(events)["object"]["code"] == 410
    with one.watch(CONFIGMAPS, resourceVersion=first["object"]["metadata"]["resourceVersion"]) as events:
        assert next(events)["type"] == "ADDED"
        faults.cut("one")
        with pytest.raises((urllib3.exceptions.ProtocolError, urllib3.exceptions.SSLError)):
            list(events)


def test_refused_connections_and_latency(faults: Faults, one: Rest) -> None:
    faults.close("one")
    with pytest.raises(urllib3.exceptions.HTTPError):
        one.get(CONFIGMAPS)
    faults.open("one")
    faults.add("delay", seconds=0.3, times=1)
    begin = time.monotonic()
    assert one.get(CONFIGMAPS)
    assert time.monotonic() - begin >= 0.3
