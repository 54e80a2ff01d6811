"""A subject with 100,000 runs of blocks and figures that move: what the page shows when no engine is at hand."""

import hashlib
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from kvstore.errors import StoreFailed
from kvstore.reasons import MissReason
from kvstore.reports import (
    Advice,
    Difference,
    DifferenceKind,
    Event,
    Explanation,
    NamedCache,
    NamespaceInfo,
    Part,
    PrefixDetail,
    PrefixPage,
    PrefixQuery,
    PrefixRun,
    Removed,
    RequestReport,
    TenantReport,
    TierName,
    Verified,
)

BLOCK = 16
DOCUMENTS = 60
BLOCK_BYTES = 2 * 1024 * 1024
HOSTILE = "<img src=x onerror=\"window.hacked='text'\"><script>window.hacked='text'</script>"
HOSTILE_KEY = "00\"><img src=x onerror=window.hacked='key'>"
GIB = 1024**3
MIB = 1024**2

OPENINGS = (
    "You are a careful coding assistant. Read the repository before you answer, and",
    "System: You answer questions about the attached contract. Quote the clause that",
    "You are a support agent for an airline. Never promise a refund before you have",
    "Translate the following user manual from German into English and keep all",
    "# Tools\nYou may call one or more functions to assist with the user query.\n\nYou are",
    "Below are forty examples of sentences with their labels. Label the last one",
    "You are a medical scribe. Write the note in SOAP format from this transcript",
    "Given the schema of the warehouse, write one SQL query that answers",
)
TURNS = (
    "<|user|>Can you look at why the nightly job",
    "<|assistant|>I looked at the three files you",
    "<|user|>Summarise the second section for a",
    '<|tool|>{"status": "ok", "rows": 1482, "next":',
    "<|user|>And what happens if the tenant has",
    "<|assistant|>There are two ways to do that. The",
    "<|user|>Rewrite it so that the retry is bounded",
)
ASKED = "\nCurrent date: 2026-11-29T09:41:07Z. The user works at Example Ltd.\n\nYou may call one or more functions"
CACHED = "\nCurrent date: 2026-11-29T09:38:52Z. The user works at Example Ltd.\n\nYou may call one or more functions"


def make_traffic(seconds: int, seed: int) -> list[tuple[int, int, int, int]]:
    """Prompt tokens until each second, and those that each tier served: waves, with a restart's dip half an hour in."""
    draw = random.Random(seed)
    asked, served, result = 0.0, [0.0, 0.0, 0.0], []
    for at_s in range(seconds):
        cold = max(0.0, 1 - abs(at_s - 1900) / 500)
        rate = 2100 * (1 + 0.3 * math.sin(at_s / 410) + 0.2 * math.sin(at_s / 57)) * draw.uniform(0.6, 1.4)
        shares = (
            (0.44 + 0.07 * math.sin(at_s / 300) + 0.03 * math.sin(at_s / 37)) * (1 - 0.7 * cold),
            (0.19 + 0.06 * math.sin(at_s / 190 + 1)) * (1 - 0.55 * cold),
            0.06 + 0.02 * math.sin(at_s / 90) + 0.16 * cold,
        )
        asked += rate
        for tier, share in enumerate(shares):
            served[tier] += rate * share * draw.uniform(0.9, 1.1)
        result.append((int(asked), int(served[0]), int(served[1]), int(served[2])))
    return result


def key_of(number: int) -> str:
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=32).hexdigest()


def make_runs(num_runs: int, seed: int) -> tuple[list[PrefixRun], dict[str | None, list[int]]]:
    """A forest: openings, documents behind them, conversations behind these, and many prompts that were seen once."""
    draw = random.Random(seed)
    parent_of, blocks_of, depth_of = [-1] * num_runs, [0] * num_runs, [0] * num_runs
    children: dict[int, list[int]] = {}
    first_turn = len(OPENINGS) + DOCUMENTS
    for number in range(num_runs):
        parent, size = -1, 5
        if number < len(OPENINGS):
            size = 160
        elif number < first_turn:
            parent, size = int(len(OPENINGS) * draw.random() ** 1.6), 400
        elif (kind := draw.random()) < 0.4:
            parent = len(OPENINGS) + int(DOCUMENTS * draw.random() ** 3)
        elif kind < 0.78:
            parent = draw.randrange(max(first_turn, number - 6000), number) if number > first_turn else 0
        elif kind < 0.84:
            parent = draw.randrange(len(OPENINGS))
        if parent >= 0:
            parent_of[number], depth_of[number] = parent, depth_of[parent] + 1
        blocks_of[number] = 1 + int(draw.expovariate(1 / size))
        children.setdefault(parent_of[number], []).append(number)
    start, below, hits = [0] * num_runs, [0] * num_runs, [0] * num_runs
    for number in range(num_runs):
        parent = parent_of[number]
        start[number] = start[parent] + blocks_of[parent] * BLOCK if parent >= 0 else 0
    for number in range(num_runs - 1, -1, -1):
        hits[number] += int(draw.expovariate(0.8))
        if parent_of[number] >= 0:
            below[parent_of[number]] += below[number] + blocks_of[number]
            hits[parent_of[number]] += hits[number]
    runs = []
    for number in range(num_runs):
        count = blocks_of[number]
        warmth = draw.random() * (3 if hits[number] > 60 else 1)
        device = count if warmth > 1.4 else (draw.randrange(count + 1) if warmth > 0.93 else 0)
        host = count if warmth > 0.9 else (draw.randrange(count + 1) if warmth > 0.55 else 0)
        parent = parent_of[number]
        runs.append(
            PrefixRun(
                key=HOSTILE_KEY if number == 4 else key_of(number),
                parent=None if parent < 0 else HOSTILE_KEY if parent == 4 else key_of(parent),
                start_token=start[number],
                end_token=start[number] + count * BLOCK,
                blocks=count,
                blocks_by_tier={
                    "device": device,
                    "host": host,
                    "disk": count if warmth < 2.2 else count // 2,
                },
                hits=hits[number],
                last_used_ago_s=None
                if not hits[number]
                else draw.expovariate(1 / 40.0) * (1.2 - warmth / 3) ** 9 * 900,
                ttl_s=None if number % 3 else 86_400 * draw.random(),
                leases=int(number in {0, 2, 40}),
                private=depth_of[number] > 0 and number % 7 == 0,
                children=len(children.get(number, ())),
                blocks_below=below[number],
                text=HOSTILE
                if number in {3, 11}
                else OPENINGS[number]
                if number < len(OPENINGS)
                else TURNS[number % 7],
            )
        )
    index: dict[str | None, list[int]] = {
        (None if parent < 0 else runs[parent].key): numbers for parent, numbers in children.items()
    }
    return runs, index


ORDERS: dict[str, Callable[[PrefixRun], float]] = {
    "recent": lambda run: run.last_used_ago_s if run.last_used_ago_s is not None else math.inf,
    "oldest": lambda run: -(run.last_used_ago_s if run.last_used_ago_s is not None else math.inf),
    "hits": lambda run: -run.hits,
    "blocks": lambda run: -run.blocks,
    "size": lambda run: -(run.blocks + run.blocks_below),
}


class Generated:
    """A Subject without an engine. Figures are functions of the time since it was made, counted from an hour before."""

    def __init__(
        self, num_runs: int = 100_000, *, seed: int = 7, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._born = clock() - 3600
        self._runs, self._children = make_runs(num_runs, seed)
        self._traffic = make_traffic(4 * 3600, seed)
        self._by_key = {run.key: number for number, run in enumerate(self._runs)}
        self._sorted: dict[Any, list[int]] = {}
        self._gone: set[str] = set()
        self._settings: dict[str, Any] = {
            "device": "cuda", "dtype": "bfloat16", "kv_dtype": "bfloat16", "attention": "flashinfer", "block_tokens": BLOCK,
            "device_bytes": 24 * GIB, "device_memory_fraction": 0.9, "host_bytes": 64 * GIB, "host_clean_share": 0.5,
            "disk_path": "/var/cache/kvtide", "disk_bytes": 512 * GIB, "disk_min_free_bytes": 2 * GIB,
            "disk_durability": "relaxed", "disk_compression": "auto", "disk_key_file": None, "disk_read_threads": 2, "disk_queue_bytes": 32 * MIB,
            "disk_deadline_s": 10.0, "ttl_s": 86_400.0, "layer_groups": 4, "max_model_len": 131_072, "max_num_seqs": 64,
            "max_batch_tokens": 8192, "deterministic": False, "load": "always", "num_threads": None,
        }  # fmt: skip
        self._events: deque[Event] = deque(maxlen=2000)
        self._number = 0
        self._lock = threading.Lock()
        self.draining = False
        for age in range(60, 0, -1):
            self._happen(ago_s=age * 2.5)

    # --- figures ---

    def _counts(self, at_s: float) -> dict[str, int]:
        """Tokens so far: asked for, and served by each tier."""
        at = min(len(self._traffic) - 1, max(0, int(at_s)))
        return dict(zip(("prompt", "device", "host", "disk"), self._traffic[at], strict=True))

    def stats(self, *, ago_s: float = 0.0) -> dict[str, Any]:
        at_s = self._clock() - self._born - ago_s
        counts = self._counts(at_s)
        by_tier = {tier: counts[tier] for tier in ("device", "host", "disk")}
        missed = counts["prompt"] - sum(by_tier.values())
        shares = {"never_seen": 0.38, "differs": 0.24, "evicted": 0.15, "not_a_whole_block": 0.09, "expired": 0.06,
                  "other_identity": 0.05, "overdue": 0.02, "damaged_checksum": 0.01}  # fmt: skip
        histogram = {
            "bounds": [0.05, 0.1, 0.25, 0.5, 1, 2.5],
            "counts": [9, 40, 90, 41, 12, 3, 1],
            "sum": 61.2,
        }
        used = int(6000 + 900 * math.sin(at_s / 60))
        transfers = {
            name: {"moves": int(at_s * rate / 8), "blocks": int(at_s * rate), "bytes": int(at_s * rate * size),
                   "busy_s": at_s * busy, "failed_blocks": failed, "in_flight_blocks": int(4 + 3 * math.sin(at_s / 3 + rate))}
            for name, rate, size, busy, failed in (
                ("demote", 38, BLOCK_BYTES, 0.03, 0), ("promote", 26, BLOCK_BYTES, 0.02, 2), ("swap_out", 0.2, BLOCK_BYTES, 0.001, 0),
                ("swap_in", 0.2, BLOCK_BYTES, 0.001, 0), ("read", 11, BLOCK_BYTES * 0.63, 0.21, 5), ("write", 31, BLOCK_BYTES * 0.63, 0.38, 0))
        }  # fmt: skip
        raw, stored = 210 * GIB, 132 * GIB
        return {
            "engine": {
                "requests": int(at_s * 3), "running": 14, "waiting": int(3 + 3 * math.sin(at_s / 7)),
                "prompt_tokens": counts["prompt"], "cached_tokens": sum(by_tier.values()), "cached_tokens_by_tier": by_tier,
                "missed_tokens": {reason: int(missed * share) for reason, share in shares.items()},
                "ended": {"stop": int(at_s * 2.4), "length": int(at_s * 0.5), "cancelled": 4, "timeout": 2, "error": 1},
                "ttft_s": dict.fromkeys(("none", "device", "host", "disk"), histogram), "queue_s": histogram,
                "load_s": histogram, "draining": self.draining, "steps": int(at_s * 20), "prefilled_tokens": missed,
                "generated_tokens": int(at_s * 900), "forked_replies": 0, "early_prefills": 31, "void_prefills": 0,
            },
            "cache": {
                "block_bytes": BLOCK_BYTES, "block_tokens": BLOCK, "blocks": 180_000, "leases": 14, "events": self._number,
                "lookups": {"requests": int(at_s * 3), "blocks": counts["prompt"] // BLOCK,
                            "hit_blocks": {tier: n // BLOCK for tier, n in by_tier.items()}},
                "transfers": transfers, "removed": 12, "departed": 40_000, "expired": 911, "failed_loads": {"overdue": 5},
                "failed_deletes": 0, "failed_touches": 0,
                "tiers": {
                    "device": {"slots": 12_288, "free": 12_288 - used - 650 - 40, "private": 650, "indexed": used,
                               "in_flight": 40, "evicted": int(at_s * 38), "dropped": 0},
                    "host": {"slots": 32_768, "free": 1700, "private": 0, "indexed": 31_008, "in_flight": 60, "retired": 0,
                             "evicted": int(at_s * 24), "dropped": 310},
                    "disk": {"blocks": 104_200, "bytes": stored, "capacity_bytes": 410 * GIB, "ready": True,
                             "overdue_reads": 0, "failed_writes": 0, "writing_blocks": 9, "written_bytes": int(at_s * 31 * BLOCK_BYTES * 0.63),
                             "read_bytes": int(at_s * 11 * BLOCK_BYTES * 0.63), "written_by_read": 31 / 11, "evicted": 0, "dropped": 0},
                },
                "preempted": {"requests": 3, "swapped_out_blocks": 80, "swapped_in_blocks": 80},
                "store": {"blocks": 104_200, "stored_bytes": stored, "raw_bytes": raw, "capacity_bytes": 410 * GIB,
                          "other_namespaces_bytes": 18 * GIB, "damaged": {"damaged_checksum": 3}, "fresh_starts": 0},
            },
            "attention": "flashinfer", "flashinfer_off": None, "disk_off": None,
            "gpu": {"name": "NVIDIA H200", "driver": "580.65", "memory_used_bytes": 118 * GIB, "memory_total_bytes": 139 * GIB,
                    "utilization_percent": int(70 + 20 * math.sin(at_s / 9)), "power_w": 512.0, "power_limit_w": 700.0,
                    "temperature_c": 58, "pcie": {"generation": 5, "width": 16, "max_generation": 5, "max_width": 16,
                                                  "read_bytes_per_s": 61e6, "written_bytes_per_s": 88e6}},
        }  # fmt: skip

    def _happen(self, ago_s: float = 0.0) -> None:
        draw = random.Random(self._number)
        kind = draw.choice(
            ("demoted", "read", "written", "request", "request", "evicted", "expired", "promoted")
        )
        facts: dict[str, Any] = {
            "blocks": draw.randrange(1, 90),
            "bytes": draw.randrange(1, 90) * BLOCK_BYTES,
        }
        if kind == "request":
            facts = {"request": self._number, "prompt_tokens": draw.randrange(900, 9000), "state": "stop"}
        if self._number % 23 == 7:
            kind, facts = "read_failed", {"reason": HOSTILE}
        self._number += 1
        self._events.append(Event(number=self._number, at_s=time.time() - ago_s, kind=kind, facts=facts))

    def events(self, after: int) -> Sequence[Event]:
        with self._lock:
            due = int((self._clock() - self._born - 3600) * 1.5) + 60
            while self._number < due:
                self._happen()
            return [event for event in self._events if event.number > after]

    # --- prefixes ---

    def _order(self, query: PrefixQuery) -> list[int]:
        named = (
            query.under,
            query.flat,
            query.order,
            query.tier,
            query.min_hits,
            query.min_blocks,
            query.private,
        )
        if named not in self._sorted:
            numbers: list[int] = []
            level = list(self._children.get(query.under, ()))
            while level:
                numbers += level
                level = (
                    [child for one in level for child in self._children.get(self._runs[one].key, ())]
                    if query.flat
                    else []
                )
            met = [
                number
                for number in numbers
                if (run := self._runs[number]).hits >= query.min_hits
                and run.blocks >= query.min_blocks
                and (query.tier is None or run.blocks_by_tier[query.tier])
                and query.private in {None, run.private}
            ]
            self._sorted[named] = sorted(met, key=lambda number: ORDERS[query.order](self._runs[number]))
        return self._sorted[named]

    def _find(self, key: str) -> PrefixRun:
        found = (
            [self._by_key[key]]
            if key in self._by_key
            else [n for k, n in self._by_key.items() if k.startswith(key)]
        )
        if not found or self._runs[found[0]].key in self._gone:
            raise KeyError(key)
        return self._runs[found[0]]

    def prefixes(self, query: PrefixQuery) -> PrefixPage:
        if query.under is not None:
            self._find(query.under)
        with self._lock:
            found = [n for n in self._order(query) if self._runs[n].key not in self._gone]
        if query.contains is not None:
            found = [n for n in found if query.contains.casefold() in (self._runs[n].text or "").casefold()]
        rows = [self._runs[number] for number in found[query.offset : query.offset + query.limit]]
        return PrefixPage(
            rows=tuple(run if query.text else replace(run, text=None) for run in rows),
            total=len(found),
            taken_ago_s=0.4,
            blocks=None
            if query.flat
            else sum(self._runs[n].blocks + self._runs[n].blocks_below for n in found),
        )

    def prefix(self, key: str, *, text: bool = False) -> PrefixDetail:
        run = self._find(key)
        above = []
        parent = run.parent
        while parent is not None:
            above.append(self._runs[self._by_key[parent]])
            parent = above[-1].parent
        ids = tuple(random.Random(key).randrange(3, 128_000) for _ in range(min(run.blocks * BLOCK, 2048)))
        shown = [one if text else replace(one, text=None) for one in (run, *reversed(above))]
        return PrefixDetail(run=shown[0], above=tuple(shown[1:]), token_ids=ids)

    def demote_prefix(self, key: str, to: TierName) -> Removed:
        run = self._find(key)
        return Removed(blocks=run.blocks + run.blocks_below, in_use_blocks=run.leases)

    def remove_prefix(self, key: str) -> Removed:
        run = self._find(key)
        self._gone.add(run.key)
        return Removed(blocks=run.blocks + run.blocks_below, in_use_blocks=0)

    # --- asking why ---

    def options(self, values: Mapping[str, Any]) -> Any:
        return dict(values)

    def explain(self, prompt: Any, options: Any = None, *, text: bool = True) -> Explanation:
        if prompt == "never":
            parts = (Part(start_token=0, end_token=40, reason=MissReason.NEVER_SEEN),)
            return Explanation(prompt_tokens=40, block_tokens=BLOCK, parts=parts)
        parts = (
            Part(start_token=0, end_token=640, tier="device"),
            Part(start_token=640, end_token=1408, tier="host"),
            Part(start_token=1408, end_token=1824, tier="disk"),
            Part(start_token=1824, end_token=2048, tier="disk", reason=MissReason.EVICTED, ago_s=5130.0),
            Part(start_token=2048, end_token=2896, reason=MissReason.DIFFERS, detail="It leaves a prompt cached 3 minutes ago."),
            Part(start_token=2896, end_token=2905, reason=MissReason.NOT_A_WHOLE_BLOCK),
        )  # fmt: skip
        return Explanation(
            prompt_tokens=2905,
            block_tokens=BLOCK,
            parts=parts,
            difference=self._difference(text=text and prompt != "ids", ids=text),
            notes=("The chat template adds a generation prompt of 3 tokens.",),
        )

    def _difference(self, *, text: bool, ids: bool = False) -> Difference:
        """As an engine tells it; `ids` without text is what one without a tokenizer has."""
        found = self._found(text=text)
        return found if text or ids else found.without_text()

    def _found(self, *, text: bool) -> Difference:
        return Difference(
            at_token=2051,
            before_ids=(9125, 25, 220, 1774),
            asked_ids=(2026, 12, 806, 12, 1682, 51, 2545, 25, 3174, 25, 2589, 57),
            cached_ids=(2026, 12, 806, 12, 1682, 51, 2545, 25, 1987, 25, 4103, 57),
            before="You are a careful assistant of Example Ltd. Answer briefly." if text else None,
            asked=ASKED if text else None,
            cached=CACHED if text else None,
            kind=DifferenceKind.TIMESTAMP,
            advice="The prompt states the current time. Put it behind what does not change, or round it to the day.",
            section="system message",
        )

    def advice(self, *, text: bool = False) -> Sequence[Advice]:
        return (
            Advice(kind=DifferenceKind.BILLING_HEADER, at_token=6, requests=2210, lost_tokens=9_402_112, lost_s=781.0,
                   sentence="Claude Code writes a header line anew for each request. Set CLAUDE_CODE_ATTRIBUTION_HEADER=0."),
            Advice(kind=DifferenceKind.TIMESTAMP, at_token=2051, requests=412, lost_tokens=843_000, lost_s=70.4,
                   sentence="The prompt states the current time. Put it behind what does not change, or round it to the day.",
                   example=self._difference(text=text)),
            Advice(kind=DifferenceKind.REORDERED_KEYS, at_token=188, requests=96, lost_tokens=120_400, lost_s=9.7,
                   sentence="Tools are listed with their members in another order. Write JSON with sorted keys."),
        )  # fmt: skip

    # --- steering ---

    def warm(self, prompt: Any, options: Any = None) -> Any:
        usage = SimpleNamespace(
            prompt_tokens=2905,
            cached_by_tier={"device": 640, "host": 768, "disk": 416},
            prefilled_tokens=1081,
        )
        return SimpleNamespace(error=None, usage=usage, finish_reason="length")

    def demote(self, to: TierName) -> None:
        pass

    def flush(self) -> None:
        raise StoreFailed(f"write failed: {HOSTILE}")

    def drain(self, timeout_s: float | None = None) -> bool:
        self.draining = True
        return True

    def resume(self) -> None:
        self.draining = False

    def verify(self) -> Verified:
        return Verified(records=104_200, damaged={MissReason.DAMAGED_CHECKSUM: 2}, seconds=14.2)

    def namespaces(self) -> Sequence[NamespaceInfo]:
        facts = {
            "model": "Llama-3.1-8B-Instruct",
            "kv_dtype": "bfloat16",
            "block_tokens": "16",
            "note": HOSTILE,
        }
        return (
            NamespaceInfo(
                digest=key_of(1 << 40), own=True, facts=facts, blocks=104_200, stored_bytes=132 * GIB
            ),
            NamespaceInfo(
                digest=key_of(2 << 40), own=False, facts=None, blocks=13_001, stored_bytes=18 * GIB
            ),
        )

    @property
    def caches(self) -> SimpleNamespace:
        made = NamedCache(
            name=HOSTILE,
            tenant=None,
            tokens=4096,
            blocks=256,
            bytes=31 * 1024**2,
            created_s=time.time() - 7200,
            expires_s=None,
            tiers={"device": 200, "host": 0, "disk": 54},
            lost_blocks=2,
            held=True,
        )
        over = replace(made, name="handbook", lost_blocks=0, expires_s=time.time() + 290)
        return SimpleNamespace(list=lambda tenant=None: () if tenant else (made, over))

    def tenants(self) -> Sequence[TenantReport]:
        def report(tenant: str | None, share: float, quota: dict[str, Any] | None) -> TenantReport:
            sizes: dict[TierName, int] = {"device": 16 * GIB, "host": 64 * GIB, "disk": 512 * GIB}
            return TenantReport(
                tenant=tenant,
                owner=key_of(3 << 40)[:32],
                used_bytes={tier: int(share * size) for tier, size in sizes.items()},
                part_bytes={tier: size // 3 for tier, size in sizes.items()},
                quota=quota,
                evicted_copies=int(share * 10_000),
                evictions_asked=0,
            )

        return (
            report(HOSTILE, 0.4, {"host": 8 * GIB, "disk": 0.25, "weight": 2.0}),
            report(None, 0.2, {}),
            report("", 0.1, None),
        )

    def settings(self) -> dict[str, Any]:
        return dict(self._settings)

    def change(self, changes: dict[str, Any]) -> dict[str, Any]:
        changeable = CHANGEABLE
        for name, value in changes.items():
            if name not in changeable:
                raise ValueError(
                    f"{name} cannot be changed while the engine runs; changeable are {', '.join(changeable)}"
                )
            if name == "host_bytes" and value > 64 * GIB:
                raise ValueError(
                    f"host_bytes {value} is more than the {64 * GIB} that were mapped at the start"
                )
        self._settings.update(changes)
        return self.settings()

    def _report(self, number: int) -> RequestReport:
        draw = random.Random(number)
        prompt = draw.randrange(400, 30_000)
        device, host, disk = (
            int(prompt * draw.random() * share) // BLOCK * BLOCK for share in (0.6, 0.3, 0.1)
        )
        state = (
            "running"
            if number > 990
            else draw.choice(("stop", "stop", "stop", "length", "cancelled", "error"))
        )
        return RequestReport(
            number=number, state=state, submitted_ago_s=(1001 - number) * 1.7, prompt_tokens=prompt,
            cached_by_tier={"device": device, "host": host, "disk": disk}, prefilled_tokens=prompt - device - host - disk,
            completion_tokens=draw.randrange(600), queue_s=draw.random() / 9, load_s=draw.random() / 20,
            prefill_s=draw.random(), ttft_s=draw.random() + 0.1, private=number % 5 == 0,
            error=HOSTILE if state == "error" else None,
        )  # fmt: skip

    def request(self, number: int, *, text: bool = False) -> RequestReport:
        if not 900 < number <= 1000:
            raise KeyError(number)
        return replace(self._report(number), explanation=self.explain("", text=text))

    def requests(self, limit: int = 50) -> Sequence[RequestReport]:
        return [self._report(number) for number in range(1000, max(900, 1000 - limit), -1)]


CHANGEABLE = (
    "disk_bytes", "disk_deadline_s", "disk_min_free_bytes", "disk_queue_bytes", "host_bytes", "host_clean_share", "ttl_s"
)  # fmt: skip
