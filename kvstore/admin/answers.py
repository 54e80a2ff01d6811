"""What each route answers."""

import platform
from dataclasses import asdict, replace
from functools import partial
from http import HTTPStatus
from typing import Any, Literal

from aiohttp import web
from msgspec import UNSET, structs, to_builtins

from kvstore.admin import sent, shapes
from kvstore.admin.endpoint import Answer, Call, Endpoint
from kvstore.admin.guard import Role
from kvstore.admin.jobs import url_of
from kvstore.admin.metrics import CONTENT_TYPE, exposition, nameless
from kvstore.admin.problems import Problem, not_found
from kvstore.admin.subject import Subject
from kvstore.admin.tiers import not_ready, tiers_of
from kvstore.admin.version import own_version
from kvstore.reports import Explanation, PrefixDetail, PrefixQuery

CHANGEABLE = (
    "host_bytes",
    "disk_bytes",
    "disk_min_free_bytes",
    "disk_queue_bytes",
    "disk_deadline_s",
    "ttl_s",
    "host_clean_share",
    "min_prefix_tokens",
)
"""Settings that an engine changes while it runs."""

_METHODS = tuple(name for name in vars(Subject) if not name.startswith("_"))

_NO_RUN = "no cached run of blocks has this key"
_BY_TENANT = "tenant_quotas"
_FOR_FULL = "why is told to who may do everything"
_NO_QUOTA = "this tenant has no quota of its own"
_NO_CACHE = "there is no cache of this name, or it is over"
_NO_REQUEST = "no request has this id, or it was too long ago"

# --- whether it is there, and what it is ------------------------------------------------------------------------------


async def page(endpoint: Endpoint, call: Call) -> web.StreamResponse:
    return endpoint.assets.response("index.html", call.request)


async def page_file(endpoint: Endpoint, call: Call) -> web.StreamResponse:
    return endpoint.assets.response(call.request.match_info["name"], call.request)


async def healthz(endpoint: Endpoint, call: Call) -> Answer:
    return Answer(value=shapes.Health())


async def readyz(endpoint: Endpoint, call: Call) -> Answer:
    try:
        reasons = tuple(not_ready(await endpoint.figures.stats()))
    except Problem as problem:
        reasons = (problem.detail,)
    if reasons:
        return Answer(value=shapes.Readiness(status="not ready", reasons=reasons), status=503)
    return Answer(value=shapes.Readiness(status="ready"))


async def version_(endpoint: Endpoint, call: Call) -> Answer:
    return Answer(
        value=shapes.Version(name="kvtide", version=own_version(), python=platform.python_version())
    )


async def session(endpoint: Endpoint, call: Call) -> Answer:
    role: Literal["read", "full"] = "full" if call.role is Role.FULL else "read"
    can = tuple(name for name in _METHODS if hasattr(endpoint.subject, name))
    return Answer(value=shapes.Session(role=role, text=call.may_see_text, can=can))


async def openapi(endpoint: Endpoint, call: Call) -> web.StreamResponse:
    return web.Response(body=endpoint.document, content_type="application/json")


async def metrics(endpoint: Endpoint, call: Call) -> web.StreamResponse:
    stats = await endpoint.figures.stats()
    text = exposition(stats if call.may_see_tenants else nameless(stats), endpoint.http_figures)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


# --- what is cached -------------------------------------------------------------------------------------------------


async def tiers(endpoint: Endpoint, call: Call) -> Answer:
    stats = await endpoint.figures.stats()
    endpoint.figures.catch_up()
    return Answer(value=tiers_of(stats, endpoint.figures.windows))


async def namespaces(endpoint: Endpoint, call: Call) -> Answer:
    found = await endpoint.asking.ask("namespaces")
    return Answer(value=shapes.Namespaces(namespaces=tuple(found)))


async def prefixes(endpoint: Endpoint, call: Call) -> Answer:
    params: sent.PrefixParams = call.params
    _check_text(call, wanted=params.text or params.contains is not UNSET)
    given = {
        name: value for name in params.__struct_fields__ if (value := getattr(params, name)) is not UNSET
    }
    return Answer(value=await endpoint.asking.ask("prefixes", PrefixQuery(**given), missing=_NO_RUN))


async def prefix(endpoint: Endpoint, call: Call) -> Answer:
    _check_text(call, wanted=call.params.text)
    found: PrefixDetail = await endpoint.asking.ask(
        "prefix", _key_of(call), text=call.params.text, missing=_NO_RUN
    )
    # a tokenizer makes text of ids
    return Answer(value=found if call.may_see_text else replace(found, token_ids=None))


async def remove_prefix(endpoint: Endpoint, call: Call) -> Answer:
    return Answer(value=await endpoint.asking.ask("remove_prefix", _key_of(call), missing=_NO_RUN))


# --- why, and what to do about it -------------------------------------------------------------------------------------


async def explain(endpoint: Endpoint, call: Call) -> Answer:
    body: sent.Prompt = call.body
    endpoint.asking.method("explain")
    options = await _options(endpoint, body)
    found: Explanation = await endpoint.asking.ask("explain", body.prompt, options, text=call.may_see_text)
    return Answer(value=shapes.Explained.of(found if call.role is Role.FULL else found.by_blocks()))


async def requests(endpoint: Endpoint, call: Call) -> Answer:
    found = await endpoint.asking.ask("requests", call.params.limit)
    return Answer(value=shapes.Requests(requests=tuple(found)))


async def request(endpoint: Endpoint, call: Call) -> Answer:
    _check_text(call, wanted=call.params.text)
    id_ = call.request.match_info["id"]
    if not (id_.isascii() and id_.isdecimal() and len(id_) < 18):
        raise not_found(_NO_REQUEST)
    return Answer(
        value=await endpoint.asking.ask("request", int(id_), text=call.params.text, missing=_NO_REQUEST)
    )


async def advice(endpoint: Endpoint, call: Call) -> Answer:
    _check_text(call, wanted=call.params.text)
    found = await endpoint.asking.ask("advice", text=call.params.text)
    return Answer(value=shapes.Advices(advice=tuple(found)))


# --- steering -------------------------------------------------------------------------------------------------------


async def warm(endpoint: Endpoint, call: Call) -> Answer:
    body: sent.Warm = call.body
    run = endpoint.asking.method("warm")
    options = await _options(endpoint, body)
    return _begun(endpoint.jobs.start("warm", lambda: _warmed(run(body.prompt, options))))


def _warmed(result: Any) -> dict[str, Any]:
    """What of a request's result says how much was there already. Raises RuntimeError if the request failed."""
    if result.error is not None:
        raise RuntimeError(result.error)
    usage = result.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "cached_by_tier": usage.cached_by_tier,
        "prefilled_tokens": usage.prefilled_tokens,
        "finish_reason": result.finish_reason,
    }


async def caches(endpoint: Endpoint, call: Call) -> Answer:
    found = await endpoint.asking.ask("caches.list", _tenant(call))
    return Answer(value=shapes.Caches(caches=tuple(found)))


async def cache(endpoint: Endpoint, call: Call) -> Answer:
    name = call.request.match_info["cache"]
    return Answer(value=await endpoint.asking.ask("caches.get", name, _tenant(call), missing=_NO_CACHE))


async def create_cache(endpoint: Endpoint, call: Call) -> Answer:
    body: sent.Cache = call.body
    create = endpoint.asking.method("caches.create")
    options = await _options(endpoint, body)
    return _begun(
        endpoint.jobs.start("cache", lambda: asdict(create(body.name, body.prompt, body.ttl, options)))
    )


async def extend_cache(endpoint: Endpoint, call: Call) -> Answer:
    name, ttl = call.request.match_info["cache"], call.body.ttl
    return Answer(
        value=await endpoint.asking.ask("caches.extend", name, ttl, _tenant(call), missing=_NO_CACHE)
    )


async def delete_cache(endpoint: Endpoint, call: Call) -> Answer:
    await endpoint.asking.ask(
        "caches.delete", call.request.match_info["cache"], _tenant(call), missing=_NO_CACHE
    )
    return Answer(value=shapes.Deleted())


async def keep(endpoint: Endpoint, call: Call) -> Answer:
    body: sent.Kept = call.body
    run = endpoint.asking.method("keep")
    options = await _options(endpoint, body)
    return _begun(endpoint.jobs.start("keep", lambda: {"tokens": run(body.prompt, body.tier, options)}))


async def release(endpoint: Endpoint, call: Call) -> Answer:
    body: sent.Prompt = call.body
    options = await _options(endpoint, body)
    return Answer(value=shapes.Released(tokens=await endpoint.asking.ask("release", body.prompt, options)))


def _tenant(call: Call) -> str | None:
    return None if call.params.tenant is UNSET else call.params.tenant


async def demote(endpoint: Endpoint, call: Call) -> Answer:
    body: sent.Demote = call.body
    if body.key is UNSET:
        run = partial(endpoint.asking.method("demote"), body.to)
    else:
        run = partial(endpoint.asking.method("demote_prefix"), body.key, body.to)
    return _begun(endpoint.jobs.start("demote", run))


async def flush(endpoint: Endpoint, call: Call) -> Answer:
    return _begun(endpoint.jobs.start("flush", endpoint.asking.method("flush")))


async def drain(endpoint: Endpoint, call: Call) -> Answer:
    run, timeout_s = endpoint.asking.method("drain"), call.body.timeout_s
    limit_s = None if timeout_s is UNSET else timeout_s
    return _begun(endpoint.jobs.start("drain", lambda: {"drained": run(limit_s)}))


async def resume(endpoint: Endpoint, call: Call) -> Answer:
    await endpoint.asking.ask("resume")
    return Answer(value=shapes.Resumed())


async def verify(endpoint: Endpoint, call: Call) -> Answer:
    return _begun(endpoint.jobs.start("verify", endpoint.asking.method("verify")))


async def jobs(endpoint: Endpoint, call: Call) -> Answer:
    return Answer(value=shapes.Jobs(jobs=tuple(_seen(each, call) for each in endpoint.jobs.all())))


async def job(endpoint: Endpoint, call: Call) -> Answer:
    return Answer(value=_seen(endpoint.jobs.get(call.request.match_info["id"]), call))


def _seen(job: shapes.Job, call: Call) -> shapes.Job:
    """A named cache's job has its tenant's name in it, and the name that the tenant gave."""
    if job.kind != "cache" or call.may_see_tenants:
        return job
    return structs.replace(job, result=None, error=None if job.error is None else _FOR_FULL)


async def config(endpoint: Endpoint, call: Call) -> Answer:
    settings = await endpoint.asking.ask("settings")
    if not call.may_see_tenants:
        settings = {name: value for name, value in settings.items() if name != _BY_TENANT}
    return Answer(value=_settings(settings))


async def change(endpoint: Endpoint, call: Call) -> Answer:
    return Answer(value=_settings(await endpoint.asking.ask("change", call.body)))


async def tenants(endpoint: Endpoint, call: Call) -> Answer:
    return Answer(value=shapes.Tenants(tenants=tuple(await endpoint.asking.ask("tenants"))))


async def set_quota(endpoint: Endpoint, call: Call) -> Answer:
    tenant, quota = call.request.match_info["tenant"], to_builtins(call.body)
    await endpoint.asking.ask("set_quota", tenant, quota)
    return Answer(value=shapes.QuotaSet(tenant=tenant, quota=quota))


async def delete_quota(endpoint: Endpoint, call: Call) -> Answer:
    tenant = call.request.match_info["tenant"]
    await endpoint.asking.ask("delete_quota", tenant, missing=_NO_QUOTA)
    return Answer(value=shapes.QuotaSet(tenant=tenant, quota=None))


async def events(endpoint: Endpoint, call: Call) -> web.StreamResponse:
    after = None if call.params.after is UNSET else call.params.after
    seen = call.request.headers.get("Last-Event-ID", "")
    if seen.isascii() and seen.isdecimal() and len(seen) < 18:  # what a client says that comes again
        after = int(seen)
    return await endpoint.listeners.serve(call.request, after)


async def recording(endpoint: Endpoint, call: Call) -> web.StreamResponse:
    params: sent.RecordingParams = call.params
    for_s = None if params.for_s is UNSET else params.for_s
    max_bytes = None if params.max_bytes is UNSET else params.max_bytes
    return await endpoint.recordings.serve(call.request, for_s, max_bytes)


async def _options(endpoint: Endpoint, body: sent.Prompt) -> Any:
    return await endpoint.asking.ask("options", body.options) if body.options else None


def _settings(settings: dict[str, Any]) -> shapes.Settings:
    return shapes.Settings(
        settings=settings, changeable=tuple(name for name in CHANGEABLE if name in settings)
    )


def _begun(started: shapes.Job) -> Answer:
    return Answer(value=started, status=202, headers={"Location": url_of(started.id)})


def _key_of(call: Call) -> str:
    key = call.request.match_info["key"]
    if not (len(key) == 64 and set(key) <= set("0123456789abcdef")):
        raise not_found(_NO_RUN)
    return key


def _check_text(call: Call, *, wanted: bool) -> None:
    if wanted and not call.may_see_text:
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "text is shown only where show_text is set, and to who may do everything",
        )
