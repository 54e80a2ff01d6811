"""The routes of the admin endpoint over a generated subject, until the real one is there."""

import argparse
import asyncio
import json
import math
import threading
import time
from dataclasses import asdict, is_dataclass
from pathlib import Path

from aiohttp import web

from kvstore.errors import StoreError
from kvstore.reports import PrefixQuery
from tests.browser.generated import CHANGEABLE, Generated

PAGE = Path(__file__).resolve().parents[2] / "kvstore/admin/page"
CSP = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def plain(value):
    return asdict(value) if is_dataclass(value) else value


def reply(value, status=200, headers=None):
    return web.Response(text=json.dumps(value), status=status, headers=headers, content_type="application/json")


def problem(status, title, detail, errors=None):
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    if errors:
        body["errors"] = errors
    return web.Response(text=json.dumps(body), status=status, content_type="application/problem+json")


class Dev:
    def __init__(self, subject, token=None, read_token=None, show_text=True):
        self.subject, self.token, self.read_token, self.show_text = subject, token, read_token, show_text
        self.jobs = []

    @web.middleware
    async def guard(self, request, handler):
        role = "full"
        if request.path.startswith("/admin") and self.token:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            role = "full" if given == self.token else "read" if given and given == self.read_token else None
            if role is None:
                return problem(401, "Unauthorized", "a token is needed")
            if role == "read" and request.method != "GET" and not request.path.endswith("/explain"):
                return problem(403, "Forbidden", "the token may only read")
        request["role"] = role
        request["text"] = self.show_text and role == "full"
        if request.query.get("text") == "true" and not request["text"]:
            return problem(403, "Forbidden", "text is not shown")
        try:
            response = await handler(request)
        except ValueError as error:
            return problem(400, "Bad Request", str(error), [{"path": str(error).split()[0], "message": str(error)}])
        except KeyError as error:
            return problem(404, "Not Found", f"nothing has the key {error}")
        if not response.prepared:
            response.headers["Content-Security-Policy"] = CSP
            response.headers["Cache-Control"] = "no-store"
        return response

    def tiers(self):
        stats = self.subject.stats()
        at = self.subject._clock() - self.subject._born
        counts = self.subject._counts

        def rate(window, tier):
            a, b = counts(at - window), counts(at)
            return (b[tier] - a[tier]) / (b["prompt"] - a["prompt"])

        cache = stats["cache"]
        tiers = []
        size = cache["block_bytes"]
        for name in ("device", "host", "disk"):
            t = cache["tiers"][name]
            if name == "disk":
                row = dict(capacity_bytes=t["capacity_bytes"], used_bytes=t["bytes"], live_bytes=None, in_flight_bytes=9 * size,
                           capacity_blocks=None, used_blocks=t["blocks"], live_blocks=None, in_flight_blocks=9)
            else:
                live = t["private"] or 800
                used = t["slots"] - t["free"]
                row = dict(capacity_bytes=t["slots"] * size, used_bytes=used * size, live_bytes=live * size, in_flight_bytes=t["in_flight"] * size,
                           capacity_blocks=t["slots"], used_blocks=used, live_blocks=live, in_flight_blocks=t["in_flight"])
            tiers.append(dict(name=name, on=True, ready=True, **row, hit_rate={str(w): rate(w, name) for w in (60, 300, 3600)},
                              evicted_blocks=t["evicted"], dropped_blocks=t["dropped"]))
        ends = {"demote": ("device", "host"), "promote": ("host", "device"), "swap_out": ("device", "host"), "swap_in": ("host", "device"),
                "read": ("disk", "host"), "write": ("host", "disk")}
        transfers = [
            {"name": n, "from": ends[n][0], "to": ends[n][1], "bytes": t["bytes"], "blocks": t["blocks"], "failed_blocks": t["failed_blocks"],
             "in_flight_blocks": t["in_flight_blocks"],
             "bytes_per_s": {"60": t["bytes"] / at * (1 + 0.3 * math.sin(at / 5)), "300": t["bytes"] / at, "3600": t["bytes"] / at},
             "busy_share": {"60": t["busy_s"] / at, "300": t["busy_s"] / at, "3600": t["busy_s"] / at}}
            for n, t in cache["transfers"].items()
        ]
        now = time.time()
        history = []
        for i in range(719, -1, -1):
            end, start = at - 5 * i, at - 5 * i - 5
            if 300 < i < 312 or start < 0:
                continue
            a, b = counts(start), counts(end)
            asked = b["prompt"] - a["prompt"]
            history.append([now - 5 * i, *[(b[x] - a[x]) / asked for x in ("device", "host", "disk")], asked])
        store, disk = cache["store"], cache["tiers"]["disk"]
        return {
            "windows": [{"seconds": w, "prompt_tokens": counts(at)["prompt"] - counts(at - w)["prompt"],
                         "cached_tokens_by_tier": {x: counts(at)[x] - counts(at - w)[x] for x in ("device", "host", "disk")},
                         "hit_rate": sum(rate(w, x) for x in ("device", "host", "disk"))} for w in (60, 300, 3600)],
            "tiers": tiers, "transfers": transfers,
            "disk": {"compression_ratio": store["raw_bytes"] / store["stored_bytes"], "stored_bytes": store["stored_bytes"], "raw_bytes": store["raw_bytes"],
                     "written_bytes": disk["written_bytes"], "read_bytes": disk["read_bytes"], "written_by_read": disk["written_by_read"],
                     "damaged": store["damaged"], "other_namespaces_bytes": store["other_namespaces_bytes"]},
            "queue": {"waiting": stats["engine"]["waiting"], "running": stats["engine"]["running"]},
            "history": history, "missed_tokens": stats["engine"]["missed_tokens"], "gpu": stats["gpu"],
        }

    def job(self, kind, work):
        job = {"id": f"{kind}-{len(self.jobs) + 1}", "kind": kind, "state": "running", "started": time.monotonic(), "ended": None,
               "result": None, "error": None}
        self.jobs.insert(0, job)

        def run():
            time.sleep(0.7)
            try:
                job["result"] = plain(work())
                job["state"] = "done"
            except StoreError as error:
                job["error"], job["state"] = str(error), "failed"
            job["ended"] = time.monotonic()

        threading.Thread(target=run, daemon=True).start()
        return reply(self.told(job), 202, {"Location": f"/admin/v1/jobs/{job['id']}"})

    def told(self, job):
        now = time.monotonic()
        return {k: job[k] for k in ("id", "kind", "state", "result", "error")} | {
            "started_ago_s": now - job["started"], "ended_ago_s": None if job["ended"] is None else now - job["ended"]}

    async def events(self, request):
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await out.prepare(request)
        after = int(request.query.get("after", 0))
        while True:
            for event in self.subject.events(after):
                after = event.number
                await out.write(f"id: {after}\nevent: {event.kind}\ndata: {json.dumps(asdict(event))}\n\n".encode())
            await asyncio.sleep(0.5)

    def app(self):
        s = self.subject
        app = web.Application(middlewares=[self.guard])

        def get(path, fn):
            async def run(request):
                return reply(fn(request))
            app.router.add_get(path, run)

        def post(path, kind, fn):
            async def run(request):
                body = await request.json()
                return self.job(kind, lambda: fn(body))
            app.router.add_post("/admin/v1/" + path, run)

        def query(r):
            q = r.query
            return PrefixQuery(under=q.get("under") or None, flat=q.get("flat") == "true", order=q.get("order", "recent"), tier=q.get("tier") or None,
                               min_hits=int(q.get("min_hits", 0)), min_blocks=int(q.get("min_blocks", 0)),
                               private={"true": True, "false": False}.get(q.get("private")), offset=int(q.get("offset", 0)),
                               limit=int(q.get("limit", 50)), text=q.get("text") == "true")

        async def index(_):
            return web.FileResponse(PAGE / "index.html")

        app.router.add_get("/", index)
        app.router.add_static("/page", PAGE)
        get("/healthz", lambda r: {"status": "ok"})
        get("/readyz", lambda r: {"status": "ok", "reasons": []})
        get("/version", lambda r: {"name": "kvtide", "version": "0.1.0", "python": "3.12.4"})
        v = "/admin/v1/"
        get(v + "session", lambda r: {"role": r["role"], "text": r["text"], "can": [
            "explain", "warm", "demote", "flush", "drain", "resume", "verify", "namespaces", "settings", "change", "request", "requests", "advice", "prefixes", "events"]})
        get(v + "tiers", lambda r: self.tiers())
        get(v + "namespaces", lambda r: {"namespaces": [plain(n) for n in s.namespaces()]})
        get(v + "prefixes", lambda r: plain(s.prefixes(query(r))))
        get(v + "prefixes/{key}", lambda r: plain(s.prefix(r.match_info["key"], text=r.query.get("text") == "true")))
        get(v + "jobs", lambda r: {"jobs": [self.told(j) for j in self.jobs]})
        get(v + "jobs/{id}", lambda r: self.told(next(j for j in self.jobs if j["id"] == r.match_info["id"])))
        get(v + "requests", lambda r: {"requests": [plain(x) for x in s.requests(int(r.query.get("limit", 50)))]})
        get(v + "requests/{id}", lambda r: plain(s.request(int(r.match_info["id"]), text=r.query.get("text") == "true")))
        get(v + "advice", lambda r: {"advice": [plain(a) for a in s.advice(text=r["text"])]})
        get(v + "config", lambda r: {"settings": s.settings(), "changeable": list(CHANGEABLE)})

        async def remove(r):
            return reply(plain(s.remove_prefix(r.match_info["key"])))

        async def explain(r):
            body = await r.json()
            found = s.explain(body.get("text"), text=r["text"])
            return reply(plain(found) | {"cached_tokens": found.cached_tokens, "reasons": found.reasons})

        async def patch(r):
            return reply({"settings": s.change(await r.json()), "changeable": list(CHANGEABLE)})

        async def resume(r):
            s.resume()
            return reply({})

        app.router.add_delete(v + "prefixes/{key}", remove)
        app.router.add_post(v + "explain", explain)
        app.router.add_patch(v + "config", patch)
        app.router.add_post(v + "resume", resume)
        app.router.add_get(v + "events", self.events)
        post("warm", "warm", lambda b: s.warm(b))
        post("flush", "flush", lambda b: s.flush())
        post("verify", "verify", lambda b: s.verify())
        post("drain", "drain", lambda b: s.drain(b.get("timeout_s")))
        post("demote", "demote", lambda b: s.demote_prefix(b["key"], b["to"]) if b.get("key") else s.demote(b["to"]))
        return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8421)
    parser.add_argument("--token")
    parser.add_argument("--read-token")
    args = parser.parse_args()
    web.run_app(Dev(Generated(), args.token, args.read_token).app(), host="127.0.0.1", port=args.port, print=None)
