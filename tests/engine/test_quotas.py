"""Quotas, priorities and the shortest prefix in an engine and over HTTP."""

import json
import shutil
import urllib.error
import urllib.request

import pytest

from engine import EngineConfig, RequestOptions
from engine.kept_quotas import KeptQuotas
from engine.tenants import Tenants, checked_quotas, core_quotas
from kvstore.admin import AdminConfig, serve
from kvstore.errors import StoreFull
from tests.engine.engines import BLOCK_BYTES, bytes_of, engine_on, tokens, told
from tiering.quotas import Quota

ACME, OTHER = RequestOptions(tenant="acme"), RequestOptions(tenant="other")


def found(engine, prompt, options):
    return engine.warm(prompt, options).usage.cached_tokens


def flood(engine, options, num):
    for seed in range(100, 100 + num):
        engine.warm(tokens(seed, 160), options)


def test_a_tenants_flood_leaves_others_what_they_have(tiny_llama_dir):
    sizes = {"device_bytes": bytes_of(30), "host_bytes": 0}
    prompt = tokens(1, 100)
    with engine_on(
        tiny_llama_dir, tenant_quotas={"acme": {"host": 0.25, "device": "25%"}}, **sizes
    ) as engine:
        engine.warm(prompt, OTHER)
        flood(engine, ACME, 12)
        assert found(engine, prompt, OTHER) == 96
        acme = {report.tenant: report for report in engine.tenants()}["acme"]
        assert acme.quota == {"host": 0.25, "device": 0.25}
        assert acme.part_bytes["device"] == 7 * BLOCK_BYTES
        assert acme.evicted_copies > 0
        assert engine.stats()["engine"]["tenants"]["acme"]["used_bytes"]["device"] > 0
        lost = told(engine.explain(tokens(100, 160), ACME))
        assert "over_quota" in [reason for reason, _ in lost]
        engine.delete_quota("acme")
        with pytest.raises(KeyError):
            engine.delete_quota("acme")
        assert engine.settings()["tenant_quotas"] == {}
        flood(engine, ACME, 12)
        assert found(engine, prompt, OTHER) == 0, "without quotas who comes last has all"


def test_quotas_that_were_set_hold_after_a_restart_until_the_configuration_says_otherwise(
    tiny_llama_dir, tmp_path
):
    first = {"acme": {"host": 0.25}, "old": {"weight": 2.0}}
    with engine_on(tiny_llama_dir, tmp_path, tenant_quotas=first) as engine:
        engine.set_quota("new", {"disk": 0.5})
        engine.set_quota("acme", {"host": 0.5})
        engine.delete_quota("old")
        now = engine.settings()["tenant_quotas"]
        assert now == {"acme": {"host": 0.5}, "new": {"disk": 0.5}}
        shutil.copytree(tmp_path, killed := tmp_path.with_name("killed"))
    for path in (killed, tmp_path):
        with engine_on(tiny_llama_dir, path, tenant_quotas=first) as engine:
            assert engine.settings()["tenant_quotas"] == now
            assert {report.tenant: report.quota for report in engine.tenants()}["new"] == {"disk": 0.5}
            assert engine.config.tenant_quotas == first, "what it was given"
    later = {"acme": {"host": 0.75}, "old": {"weight": 2.0}}
    with engine_on(tiny_llama_dir, tmp_path, tenant_quotas=later) as engine:
        assert engine.settings()["tenant_quotas"] == {"acme": {"host": 0.75}, "new": {"disk": 0.5}}
    with engine_on(tiny_llama_dir, tmp_path, tenant_quotas=first) as engine:
        assert engine.settings()["tenant_quotas"] == {"acme": {"host": 0.25}, "new": {"disk": 0.5}}
        engine.change({"tenant_quotas": later})
    with engine_on(tiny_llama_dir, tmp_path, tenant_quotas=later) as engine:
        assert engine.settings()["tenant_quotas"] == later
        assert engine._tiers.store.settings() is None, "nothing is left of what was set"


def test_a_quota_that_the_disk_does_not_take_is_not_set(tiny_llama_dir, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise StoreFull("not a byte is left")

    with engine_on(tiny_llama_dir, tmp_path) as engine:
        monkeypatch.setattr(engine._tiers.store, "put_settings", fail)
        with pytest.raises(StoreFull):
            engine.set_quota("acme", {"host": 0.5})
        assert engine.settings()["tenant_quotas"] == {}
        engine.change({"ttl_s": 100.0})  # which has nothing to do with it


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"x": [null, {"tape": 1}]}', b"\xff"])
def test_kept_quotas_that_nobody_understands_hold_nobody_up(content, caplog):
    class Kept:
        """A store, as far as it is asked."""

        def __getattr__(self, name) -> object:
            return lambda *_: content

    configured = {"acme": {"weight": 2.0}}
    assert KeptQuotas(Kept(), configured).at_start == configured
    assert "those of the configuration hold" in caplog.text


def test_what_is_of_high_priority_stays(tiny_llama_dir):
    prompt, options = tokens(1, 100), RequestOptions(keep_priority="high")
    with engine_on(tiny_llama_dir, device_bytes=bytes_of(30), host_bytes=0) as engine:
        engine.warm(prompt, options)
        flood(engine, RequestOptions(), 6)
        assert found(engine, prompt, RequestOptions()) == 96


def test_a_short_prompt_is_not_cached(tiny_llama_dir):
    short, long = tokens(1, 40), tokens(2, 100)
    with engine_on(tiny_llama_dir, min_prefix_tokens=64) as engine:
        for prompt in (short, long):
            engine.warm(prompt)
        assert found(engine, long, None) == 96
        assert found(engine, short, None) == 0
        assert told(engine.explain(short)) == [("too_short", 32), ("not_a_whole_block", 8)]


def test_the_names_of_quotas_and_sizes_that_are_none():
    quotas = checked_quotas(
        {"*": {"host": "1MiB", "weight": 2}, "": {}, "acme": {"disk": 0.5, "device": 4096}}
    )
    core = core_quotas(quotas, 1024)
    assert core.default == Quota(host=1024, weight=2.0)
    assert core.nobodys == Quota()
    assert list(core.owners.values()) == [Quota(disk=0.5, device=4)]
    assert core_quotas({}, 1024) is None
    for wrong, sentence in (
        ([], "tenant_quotas must be quotas by tenant"),
        ({"a": 3}, "the quota of 'a' must be sizes by tier"),
        ({"a": {"tape": 1}}, "unknown 'tape' in the quota of 'a'"),
        ({"a": {"host": 1.5}}, "host of the quota of 'a' must be a number of at least 0 and at most 1"),
        ({"a": {"host": "x%"}}, "host of the quota of 'a' must be a size, or a share"),
        ({"a": {"weight": 0}}, "weight of the quota of 'a' must be a number above 0"),
        ({"a\n": {}}, "tenant must be a string of printable characters"),
        ({str(number): {} for number in range(1001)}, "may name 1000 tenants, got 1001"),
    ):
        with pytest.raises(ValueError, match=sentence):
            EngineConfig(tenant_quotas=wrong)


def test_names_are_remembered_of_those_that_asked_last(monkeypatch):
    monkeypatch.setattr("engine.tenants._MOST_NAMES", 2)
    tenants = Tenants()
    for name in ("a", "b", None, "a", "c"):
        tenants.saw(name)
    assert sorted(tenants._names.values()) == ["a", "c"]


def test_quotas_over_http(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        engine.warm(tokens(1, 100), RequestOptions(tenant="a/b"))
        with serve(engine, AdminConfig(port=0)) as server:
            _over_http(engine, server.url)


def _over_http(engine, url):

    def ask(method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(  # noqa: S310 - our own address
            f"{url}/admin/v1/{path}", data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(asked) as answer:  # noqa: S310 - likewise
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    quota = {"host": "1MiB", "device": 0.5}
    assert ask("PUT", "tenants/a%2Fb/quota", quota) == (200, {"tenant": "a/b", "quota": quota})
    status, answer = ask("GET", "tenants")
    [mine] = [row for row in answer["tenants"] if row["tenant"] == "a/b"]
    assert (status, mine["used_bytes"]["device"]) == (200, 6 * BLOCK_BYTES)
    assert mine["quota"] == {"host": 1 << 20, "device": 0.5}
    assert ask("PUT", "tenants/acme/quota", {"tape": 1})[0] == 400
    assert ask("PUT", "tenants/acme/quota", {"host": 2.0})[0] == 400
    assert ask("PUT", "tenants/*/quota", {"weight": 2})[0] == 200
    assert engine.settings()["tenant_quotas"]["*"] == {"weight": 2.0}
    assert ask("DELETE", "tenants/acme/quota")[0] == 404
    assert ask("DELETE", "tenants/*/quota") == (200, {"tenant": "*", "quota": None})
    page = urllib.request.urlopen(f"{url}/metrics").read().decode()  # noqa: S310 - our own address
    assert 'kvtide_tenant_used_bytes{tenant="",tier="device"}' in page
