"""The admin endpoint over a bare cache, without an engine: its figures are told, and what only an engine has is not there."""

from collections.abc import Iterator

import pytest

from kvstore.admin import AdminConfig, AdminServer, serve
from kvstore.memory import MemoryStore
from tests.kvstore.admin.asking import ask
from tests.tiering.rig import DEVICE_SLOTS, DISK_BLOCKS, HOST_SLOTS, LAYOUT, NAMESPACE, Rig

V1 = "/admin/v1"


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(MemoryStore(NAMESPACE, LAYOUT, DISK_BLOCKS * LAYOUT.block_bytes))
    yield made
    made.cache.close(0.0)


@pytest.fixture
def server(rig) -> Iterator[AdminServer]:
    with serve(rig.cache, AdminConfig(port=0)) as served:
        yield served


def test_tiers_are_told(rig, server):
    rig.serve(1, 2, 3)
    rig.serve(1, 2, 4)
    with serve(rig.cache, AdminConfig(port=0)) as fresh:
        found = ask(fresh.url, f"{V1}/tiers").json
    device, host, disk = found["tiers"]
    indexed = rig.cache.stats()["tiers"]["device"]["indexed"]
    assert (device["capacity_blocks"], device["live_blocks"]) == (DEVICE_SLOTS, indexed)
    assert host["capacity_blocks"] == HOST_SLOTS
    assert (disk["on"], disk["ready"]) == (True, True)
    assert found["queue"] is None, "a cache has no queue"


def test_probes_and_metrics(rig, server):
    assert ask(server.url, "/readyz").status == 200
    assert "kvtide_" in ask(server.url, "/metrics").body.decode()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "explain", {"token_ids": [1]}),
        ("POST", "warm", {"token_ids": [1]}),
        ("POST", "flush", {}),
        ("POST", "drain", {}),
        ("POST", "resume", {}),
        ("POST", "verify", {}),
        ("POST", "demote", {"to": "host"}),
        ("GET", "namespaces", None),
        ("GET", "requests", None),
        ("GET", "requests/1", None),
        ("GET", "advice", None),
        ("GET", "config", None),
    ],
)
def test_what_only_an_engine_can_do_is_not_implemented(server, method, path, body):
    assert ask(server.url, f"{V1}/{path}", method, body).status == 501
