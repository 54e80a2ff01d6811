"""An engine says why a prompt missed: each reason by making it happen."""

import gc
import json
import threading
from copy import deepcopy
from dataclasses import asdict, replace

import pytest

from engine import RequestOptions, SamplingParams
from kvstore import ErrorBefore, FalseMiss, FaultStore, Gate, Hang
from kvstore.metas import metas_of
from kvstore.reasons import MissReason
from kvstore.reports import DifferenceKind, PrefixQuery
from tests.engine.engines import BLOCK, bytes_of, engine_on, tokens, told, until
from tests.tiering.judges import NOT_TO_DISK, REJECTING
from tiering.observation import Observed

SHORT = SamplingParams(max_tokens=2, ignore_eos=True)
TEXT = (
    "You are a careful assistant. It is {when}. Answer from the handbook alone, and say so where it is silent. "
    * 3
)


def reasons(explanation):
    return {reason.value: num for reason, num in explanation.reasons.items()}


@pytest.mark.parametrize(
    "prompt",
    [
        [1] * 65,
        "a lighthouse keeper " * 100,
        [{"role": "user", "content": ""}] * 65,
        [{"role": "user", "content": "a lighthouse keeper " * 100}],
    ],
    ids=["ids", "text", "many messages", "one long message"],
)
def test_a_prompt_that_can_never_run_is_not_explained(tiny_text_dir, prompt):
    with engine_on(tiny_text_dir, max_model_len=64) as engine:
        assert engine.explain([1] * 64).prompt_tokens == 64
        with pytest.raises(ValueError, match="prompt and reply may have 64"):
            engine.explain(prompt)


# --- nothing wrong ----------------------------------------------------------------------------------------------------


def test_never_seen_and_then_served(tiny_llama_dir):
    prompt = tokens(1, 3 * BLOCK + 5)
    with engine_on(tiny_llama_dir) as engine:
        assert told(engine.explain(prompt)) == [("never_seen", 48), ("not_a_whole_block", 5)]
        first = engine.generate(prompt, SHORT)
        assert told(first.cache_report) == [("never_seen", 48), ("not_a_whole_block", 5)], (
            "as it was admitted"
        )
        assert told(engine.generate(prompt, SHORT).cache_report) == [("device", 48), ("not_a_whole_block", 5)]
        assert told(engine.explain(prompt)) == [("device", 48), ("not_a_whole_block", 5)]
        assert told(first.cache_report) == [("never_seen", 48), ("not_a_whole_block", 5)]
        missed = engine.stats()["engine"]["missed_tokens"]
        assert missed["never_seen"] == 48
        assert missed["not_a_whole_block"] == 10


def test_what_a_report_is_made_of_is_let_go_of_when_it_is_there(tiny_llama_dir):
    """It holds the prompt, what is cached in its place, and what went: a handle that somebody keeps must not."""

    def num_observed():
        gc.collect()
        return sum(type(each) is Observed for each in gc.get_objects())

    before = num_observed()
    with engine_on(tiny_llama_dir) as engine:
        handle = engine.submit(tokens(1, 3 * BLOCK + 5), SHORT)
        result = handle.result(60)
        engine.stats()  # by then the accounts have looked at it
        assert num_observed() == before + 1
        assert result.cache_report is not None
        assert num_observed() == before
        assert handle.done


def test_a_result_is_plain_values_all_the_same(tiny_llama_dir):
    """What explains it is worked out later, and is in nobody's way who stores results."""
    with engine_on(tiny_llama_dir) as engine:
        result = engine.generate(tokens(1, 3 * BLOCK + 5), SHORT)
        assert json.loads(json.dumps(asdict(result)))["usage"]["prompt_tokens"] == 53
        copied = deepcopy(result)
        assert copied == result
        assert copied.cache_report is None
        assert result.cache_report is not None


def test_too_short_to_be_cached(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        result = engine.generate(tokens(1, BLOCK), SHORT)
        assert told(result.cache_report) == [("not_a_whole_block", 16)]
        assert told(engine.generate(tokens(1, BLOCK), SHORT).cache_report) == [("not_a_whole_block", 16)]
        assert "more tokens than a block, 16" in result.cache_report.parts[0].detail
        longer = engine.generate(tokens(1, BLOCK + 1), SHORT).cache_report
        assert longer.parts[-1].detail is None


def test_a_request_that_ends_before_it_is_computed_has_no_report(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        result = engine.generate(tokens(1, 5 * BLOCK), SHORT, RequestOptions(timeout_s=1e-9))
        assert result.finish_reason == "timeout"
        assert result.cache_report is None


def test_from_which_tier_it_came(tiny_llama_dir, tmp_path):
    prompt = tokens(1, 3 * BLOCK + 5)
    with engine_on(tiny_llama_dir, tmp_path / "kv") as engine:
        engine.generate(prompt, SHORT)
        for tier in ("host", "disk"):
            engine.demote(tier)
            assert told(engine.explain(prompt)) == [(tier, 48), ("not_a_whole_block", 5)]
            assert told(engine.generate(prompt, SHORT).cache_report)[0] == (tier, 48)


# --- differences ------------------------------------------------------------------------------------------------------


def test_a_difference_in_text(tiny_text_dir):
    with engine_on(tiny_text_dir) as engine:
        engine.generate(TEXT.format(when="2026-11-29 08:15:00"), SHORT)
        result = engine.generate(TEXT.format(when="2026-11-29 08:15:09"), SHORT)
        difference = result.cache_report.difference
        assert difference.kind is DifferenceKind.TIMESTAMP
        assert "08:15:09" in difference.before[-12:] + difference.asked
        assert "08:15:00" in difference.before[-12:] + difference.cached
        assert difference.advice
        text = TEXT.format(when="2026-11-29 08:15:09")
        assert difference.at_token == text.index("9. Answer")  # a token is a byte, with this tokenizer
        assert reasons(result.cache_report).keys() == {"differs", "not_a_whole_block"}
        kept = engine.explain(TEXT.format(when="2026-11-29 08:15:07"), text=False).difference
        assert (kept.before, kept.asked, kept.cached) == (None, None, None)
        assert (kept.before_ids, kept.asked_ids, kept.cached_ids) == ((), (), ())


def test_a_difference_in_a_chat_names_the_message(tiny_text_dir):
    def chat(when):
        return [
            {"role": "system", "content": "Answer from the handbook alone. " * 3},
            {"role": "user", "content": f"It is {when}. " + "What does the handbook say about keys? " * 3},
        ]

    with engine_on(tiny_text_dir) as engine:
        engine.generate(chat("08:15:00"), SHORT)
        difference = engine.generate(chat("09:30:41"), SHORT).cache_report.difference
        assert difference.section == "message 2 (user)"
        assert difference.kind is DifferenceKind.TIMESTAMP


def test_the_costliest_divergence_comes_first(tiny_text_dir, monkeypatch):
    monkeypatch.setattr("engine.accounts._DESCRIBING_SHARE", 1e9)
    with engine_on(tiny_text_dir) as engine:
        for second in range(6):
            engine.generate(TEXT.format(when=f"2026-11-29 08:15:0{second}"), SHORT)
        [advice, *_] = engine.advice(text=True)
        assert advice.kind is DifferenceKind.TIMESTAMP
        assert advice.requests == 5
        assert advice.lost_tokens > 5 * 100, (
            "what follows is the same each time, up to where the time comes again"
        )
        assert advice.lost_s > 0
        assert "08:15" in advice.example.before + advice.example.asked
        assert engine.advice()[0].example.asked is None


def test_what_is_warmed_counts_as_well(tiny_text_dir, monkeypatch):
    """Where nobody generates, as under `kvtide serve`, prompts that are warmed are all the traffic there is."""
    monkeypatch.setattr("engine.accounts._DESCRIBING_SHARE", 1e9)
    with engine_on(tiny_text_dir) as engine:
        for second in range(3):
            timings = engine.warm(TEXT.format(when=f"2026-11-29 08:15:0{second}")).timings
            assert timings.prefill_s > 0
            assert timings.ttft_s == 0
        [advice] = engine.advice()
        assert (advice.kind, advice.requests) == (DifferenceKind.TIMESTAMP, 2)
        assert advice.lost_s > 0


def test_little_time_goes_into_what_differences_look_like(tiny_text_dir, monkeypatch):
    """One is looked at; the next would be after ages. Reasons are counted for all, and each can be asked about."""
    monkeypatch.setattr("engine.accounts._DESCRIBING_SHARE", 1e-9)
    with engine_on(tiny_text_dir) as engine:
        handles = [engine.submit(TEXT.format(when=f"08:15:0{second}"), SHORT) for second in range(4)]
        missed = [handle.result(60).cache_report.reasons for handle in handles]
        assert [advice.requests for advice in engine.advice()] == [1]
        differs = sum(reasons.get(MissReason.DIFFERS, 0) for reasons in missed)
        assert engine.stats()["engine"]["missed_tokens"]["differs"] == differs > 0
        assert engine.request(handles[3].id).explanation.difference.kind is DifferenceKind.TIMESTAMP


def test_of_long_prompts_that_ended_long_ago_the_outline_is_left(tiny_text_dir, monkeypatch):
    monkeypatch.setattr("engine.accounts._MOST_HELD_TOKENS", 800)
    monkeypatch.setattr("engine.accounts._DESCRIBING_SHARE", 1e-9)
    with engine_on(tiny_text_dir) as engine:
        handles = [engine.submit(TEXT.format(when=f"08:15:0{second}"), SHORT) for second in range(6)]
        for handle in handles:
            handle.result(60)
        old, new = (engine.request(handle.id).explanation for handle in (handles[2], handles[-1]))
        assert old.difference.at_token == new.difference.at_token
        assert (old.difference.kind, new.difference.kind) == (None, DifferenceKind.TIMESTAMP)
        assert reasons(old) == reasons(new)


def test_no_tokenizer_no_text(tiny_llama_dir):
    prompt = tokens(1, 3 * BLOCK + 5)
    other = [*prompt[:20], prompt[20] + 1, *prompt[21:]]
    with engine_on(tiny_llama_dir) as engine:
        engine.generate(prompt, SHORT)
        difference = engine.explain(other).difference
        assert difference.at_token == 20
        assert difference.asked_ids[0] == other[20]
        assert difference.cached_ids[0] == prompt[20]
        assert difference.asked is None


# --- what went --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_evicted(tiny_llama_dir, tmp_path, tier):
    disk = tmp_path / "kv" if tier == "disk" else None
    sizes = {
        "device_bytes": bytes_of(8),
        "host_bytes": 0 if tier == "device" else bytes_of(8),
        "disk_bytes": "2MiB",
    }
    prompt = tokens(1, 4 * BLOCK + 5)
    with engine_on(tiny_llama_dir, disk, **sizes) as engine:
        engine.generate(prompt, SHORT)
        for number in range(60):
            engine.generate(tokens(100 + number, 4 * BLOCK + 5), SHORT)
            if tier == "disk":
                engine.demote("disk")
        report = engine.generate(prompt, SHORT).cache_report
        assert reasons(report) == {"evicted": 64, "not_a_whole_block": 5}
        assert report.parts[0].tier == tier
        assert 0 <= report.parts[0].ago_s < 600
        assert engine.stats()["engine"]["missed_tokens"]["evicted"] == 64


@pytest.mark.parametrize("tier", ["device", "host"])
def test_not_admitted(tiny_llama_dir, tmp_path, tier):
    """With an admission that lets nothing into host memory, or nothing onto the disk."""
    disk, judge = (None, REJECTING) if tier == "device" else (tmp_path / "kv", NOT_TO_DISK)
    sizes = {"device_bytes": bytes_of(8), "host_bytes": bytes_of(16), "host_clean_share": 1.0}
    prompt = tokens(1, 4 * BLOCK + 5)
    with engine_on(tiny_llama_dir, disk, admission=judge, **sizes) as engine:
        for number in range(1, 6):
            engine.generate(tokens(number, 4 * BLOCK + 5), SHORT)
        report = engine.generate(prompt, SHORT).cache_report
        assert reasons(report) == {"not_admitted": 64, "not_a_whole_block": 5}
        assert report.parts[0].tier == tier
        stats = engine.stats()["cache"]
        assert stats["tiers"][tier]["not_admitted"] > 0
        entered = "host" if tier == "device" else "disk"
        assert stats["admission"][entered]["verdicts"]["reject"] > 0
        engine.flush()
        engine.demote("host")
        assert engine.lookup(prompt)["host"] == 64, "what is asked for by hand is not asked about"


def test_expired(tiny_llama_dir):
    prompt = tokens(1, 3 * BLOCK + 5)
    with engine_on(tiny_llama_dir, ttl_s=0.3) as engine:
        engine.generate(prompt, SHORT)
        until(lambda: "expired" in reasons(engine.explain(prompt)))
        until(lambda: engine.stats()["cache"]["blocks"] == 0)
        assert told(engine.generate(prompt, SHORT).cache_report) == [
            ("expired", 48),
            ("not_a_whole_block", 5),
        ]


def test_removed(tiny_llama_dir):
    prompt = tokens(1, 3 * BLOCK + 5)
    with engine_on(tiny_llama_dir) as engine:
        engine.generate(prompt, SHORT)
        engine.clear()
        assert told(engine.generate(prompt, SHORT).cache_report)[0] == ("removed", 48)


def test_of_a_tenant_that_was_erased_nothing_is_remembered(tiny_llama_dir):
    prompt, theirs = tokens(1, 3 * BLOCK + 5), RequestOptions(tenant="acme")
    with engine_on(tiny_llama_dir) as engine:
        engine.generate(prompt, SHORT, theirs)
        assert engine.erase("acme")
        assert told(engine.explain(prompt, theirs))[0] == ("never_seen", 48)


def test_a_reply_in_the_deterministic_mode(tiny_llama_dir):
    prompt = tokens(1, 2 * BLOCK)
    with engine_on(tiny_llama_dir, deterministic=True) as engine:
        reply = engine.generate(prompt, SamplingParams(max_tokens=2 * BLOCK + 4, ignore_eos=True)).token_ids
        next_turn = [*prompt, *reply, *tokens(2, 5)]
        assert told(engine.generate(next_turn, SHORT).cache_report) == [
            ("device", 32),
            ("reply_not_indexed", 32),
            ("not_a_whole_block", 9),
        ]
    with engine_on(tiny_llama_dir) as engine:
        reply = engine.generate(prompt, SamplingParams(max_tokens=2 * BLOCK + 4, ignore_eos=True)).token_ids
        assert told(engine.explain([*prompt, *reply, *tokens(2, 5)]))[0] == ("device", 64)


# --- who asks ---------------------------------------------------------------------------------------------------------


def test_another_tenant_or_salt(tiny_llama_dir):
    prompt = tokens(1, 3 * BLOCK + 5)
    with engine_on(tiny_llama_dir) as engine:
        engine.generate(prompt, SHORT, RequestOptions(tenant="acme", salt_offset=BLOCK))
        for options in (
            None,
            RequestOptions(tenant="other", salt_offset=BLOCK),
            RequestOptions(cache_salt="x", salt_offset=BLOCK),
        ):
            report = engine.explain(prompt, options)
            assert told(report) == [("device", 16), ("other_identity", 32), ("not_a_whole_block", 5)]
            assert "tenant" in report.parts[1].detail


def test_another_identity_on_the_same_disk(tiny_llama_dir, tmp_path):
    prompt = tokens(1, 3 * BLOCK + 5)
    with engine_on(tiny_llama_dir, tmp_path / "kv", kv_dtype="bfloat16") as engine:
        engine.generate(prompt, SHORT)
    with engine_on(tiny_llama_dir, tmp_path / "kv", kv_dtype="float16") as engine:
        report = engine.generate(prompt, SHORT).cache_report
        assert told(report) == [("other_identity", 48), ("not_a_whole_block", 5)]
        assert "kv_dtype: bfloat16 there, float16 here" in report.parts[0].detail


def test_the_cache_was_not_to_be_used(tiny_llama_dir):
    prompt = tokens(1, 3 * BLOCK + 5)
    with engine_on(tiny_llama_dir) as engine:
        engine.generate(prompt, SHORT)
        off = RequestOptions(cache="off")
        assert told(engine.generate(prompt, SHORT, off).cache_report)[0] == ("cache_off", 48)
        assert told(engine.explain(prompt, off))[0] == ("cache_off", 48)
        assert told(engine.generate(prompt, SHORT, replace(off, cache="read")).cache_report)[0] == (
            "device",
            48,
        )


# --- loads ------------------------------------------------------------------------------------------------------------


def test_loads_are_off(tiny_llama_dir):
    prompt = tokens(1, 3 * BLOCK + 5)
    with engine_on(tiny_llama_dir, load="never") as engine:
        engine.generate(prompt, SHORT)
        engine.demote("host")
        assert told(engine.generate(prompt, SHORT).cache_report)[0] == ("loads_off", 48)


def test_a_record_that_is_damaged_and_what_follows_it(tiny_llama_dir, tmp_path):
    """Bytes are turned in the files: of a block in the middle the record fails a check."""
    prompt = tokens(1, 3 * BLOCK + 5)
    raw = []

    def below(store):
        raw.append(store)
        return store

    with engine_on(tiny_llama_dir, tmp_path / "kv", wrap_store=below) as engine:
        engine.generate(prompt, SHORT)
        engine.demote("disk")
        metas = {meta.key: meta for meta in metas_of(raw[0])}
        middle = next(
            meta
            for meta in metas.values()
            if meta.parent_key in metas and any(other.parent_key == meta.key for other in metas.values())
        )
        raw[0].raw().corrupt(middle.key)
        result = engine.generate(prompt, SHORT)
        assert told(result.cache_report) == [
            ("disk", 16),
            ("damaged_checksum", 16),
            ("disk", 16),
            ("not_a_whole_block", 5),
        ]
        assert engine.stats()["engine"]["missed_tokens"]["damaged_checksum"] == 16


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(FalseMiss(on="read"), MissReason.ABSENT), (ErrorBefore(on="read"), MissReason.READ_FAILED)],
    ids=["gone", "failed"],
)
def test_a_read_that_fails(tiny_llama_dir, tmp_path, fault, reason):
    prompt = tokens(1, 3 * BLOCK + 5)
    layers = []

    def layer(store):
        layers.append(FaultStore(store))
        return layers[0]

    with engine_on(tiny_llama_dir, tmp_path / "kv", wrap_store=layer) as engine:
        engine.generate(prompt, SHORT)
        engine.demote("disk")
        layers[0].faults = [fault]
        report = engine.generate(prompt, SHORT).cache_report
        assert reasons(report)[reason.value] >= 16


def test_a_read_that_takes_too_long_and_a_disk_that_is_left_alone(tiny_llama_dir, tmp_path):
    gate = Gate()
    layers = []

    def layer(store):
        layers.append(FaultStore(store))
        return layers[0]

    prompts = [tokens(number, 3 * BLOCK + 5) for number in (1, 2)]
    settings = {"disk_deadline_s": 0.2, "disk_read_threads": 1, "wrap_store": layer}
    with engine_on(tiny_llama_dir, tmp_path / "kv", **settings) as engine:
        engine.generate(prompts, SHORT)
        engine.demote("disk")
        layers[0].faults = [Hang(on="read", gate=gate)]
        assert told(engine.generate(prompts[0], SHORT).cache_report)[0] == ("overdue", 48)
        assert told(engine.generate(prompts[1], SHORT).cache_report)[0] == ("tier_off", 48)
        gate.open()


# --- requests ---------------------------------------------------------------------------------------------------------


def test_requests_are_remembered_one_by_one(tiny_text_dir):
    with engine_on(tiny_text_dir) as engine:
        handles = [engine.submit(TEXT.format(when=when), SHORT) for when in ("today", "tonight")]
        results = [handle.result(60) for handle in handles]
        reports = engine.requests()
        assert [report.number for report in reports] == [handles[1].id, handles[0].id]
        assert all(report.explanation is None for report in reports)
        report = engine.request(handles[1].id)
        assert report.state == "length"
        assert report.cached_by_tier == results[1].usage.cached_by_tier
        assert report.ttft_s == results[1].timings.ttft_s
        assert report.explanation == results[1].cache_report
        assert engine.request(handles[1].id, text=False).explanation.difference.asked is None
        with pytest.raises(KeyError, match="99"):
            engine.request(99)
        assert len(engine.requests(1)) == 1


def test_a_request_that_runs_is_seen(tiny_llama_dir):
    seen = threading.Event()
    with engine_on(tiny_llama_dir) as engine:
        handle = engine.submit(
            tokens(1, BLOCK), SamplingParams(max_tokens=2000, ignore_eos=True), on_delta=lambda _: seen.set()
        )
        assert seen.wait(60)
        report = engine.request(handle.id)
        assert report.state == "running"
        assert report.ttft_s is not None
        handle.cancel()
        handle.result(60)
        assert engine.request(handle.id).state == "cancelled"


def test_figures_of_requests(tiny_llama_dir):
    prompt = tokens(1, 3 * BLOCK + 5)
    with engine_on(tiny_llama_dir) as engine:
        for _ in range(2):
            engine.generate(prompt, SHORT)
        engine.warm(prompt)
        engine.generate(tokens(9, 5 * BLOCK), SHORT, RequestOptions(timeout_s=1e-9))
        figures = engine.stats()["engine"]
        assert figures["ended"] == {"stop": 0, "length": 3, "cancelled": 0, "timeout": 1, "error": 0}
        assert figures["prompt_tokens"] == 53 + 53 + 48
        assert figures["cached_tokens_by_tier"] == {"device": 96, "host": 0, "disk": 0}
        assert sum(figures["ttft_s"]["none"]["counts"]) == 1
        assert sum(figures["ttft_s"]["device"]["counts"]) == 1, "warming has no first token"
        assert figures["ttft_s"]["device"]["sum"] > 0
        assert sum(figures["queue_s"]["counts"]) == 3, "one was never admitted"


def test_options_from_plain_values(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        assert engine.options({"tenant": "acme", "salt_offset": 16}) == RequestOptions(
            tenant="acme", salt_offset=16
        )
        with pytest.raises(ValueError, match="colour"):
            engine.options({"colour": "red"})


def test_what_cannot_be_explained_is_counted_all_the_same(tiny_text_dir, monkeypatch):
    """A tokenizer is not ours: whatever it raises reaches who asks for the report, and nobody else."""

    def broken(*_args: object, **_options: object):
        raise RuntimeError("no such token")

    with engine_on(tiny_text_dir) as engine:
        engine.generate(TEXT.format(when="08:15:00"), SHORT)
        with monkeypatch.context() as patch:
            patch.setattr("engine.explainer.difference", broken)
            result = engine.generate(TEXT.format(when="08:15:01"), SHORT)
            assert engine.stats()["engine"]["ended"]["length"] == 2
            with pytest.raises(RuntimeError, match="no such token"):
                _ = result.cache_report
        assert [report.state for report in engine.requests()] == ["length", "length"]
        assert result.cache_report.difference.kind is DifferenceKind.TIMESTAMP, "it is tried again"


class LostInTheDisk(FaultStore):
    """A store that does not say what other models have before it is let go on."""

    def __init__(self, store) -> None:
        super().__init__(store)
        self.asked, self.go_on = threading.Event(), threading.Event()

    def others_with(self, tokens):
        self.asked.set()
        assert self.go_on.wait(60)
        return super().others_with(tokens)


def test_a_disk_that_hangs_while_a_miss_is_explained_holds_up_nobody(tiny_llama_dir, tmp_path, monkeypatch):
    """Requests come and are served, and who asks for figures waits once; in the end all of them are counted."""
    monkeypatch.setattr("engine.accounts._SETTLE_S", 0.05)
    layers = []

    def layer(store):
        layers.append(LostInTheDisk(store))
        return layers[0]

    with engine_on(tiny_llama_dir, tmp_path / "kv", wrap_store=layer) as engine:
        handles = [engine.submit(tokens(1, 3 * BLOCK + 5), SHORT)]
        assert layers[0].asked.wait(60)
        handles.append(engine.submit(tokens(2, 3 * BLOCK + 5), SHORT))
        assert [handle.result(60).finish_reason for handle in handles] == ["length"] * 2
        assert engine.stats()["engine"]["ended"]["length"] == 0
        assert {report.state for report in engine.requests()} == {"length"}
        layers[0].go_on.set()
        until(lambda: engine.stats()["engine"]["ended"]["length"] == 2)


def test_of_a_tenant_that_was_erased_requests_show_no_text(tiny_text_dir, monkeypatch):
    monkeypatch.setattr("engine.accounts._DESCRIBING_SHARE", 1e9)
    acme = RequestOptions(tenant="acme")
    with engine_on(tiny_text_dir) as engine:
        for second in range(2):
            theirs = engine.submit(TEXT.format(when=f"2026-11-29 08:15:0{second}"), SHORT, acme)
            mine = engine.submit(TEXT.format(when=f"2026-11-29 09:15:0{second}"), SHORT)
            theirs.result(60), mine.result(60)
        assert engine.request(theirs.id).explanation.difference.asked is not None
        assert engine.erase("acme")
        difference = engine.request(theirs.id).explanation.difference
        assert (difference.asked, difference.asked_ids, difference.cached_ids) == (None, (), ())
        assert engine.request(mine.id).explanation.difference.asked is not None
        assert [advice.example.asked for advice in engine.advice(text=True)] == [None] * len(engine.advice())
        assert engine.advice(), "what it costs is known all the same"


# --- what is cached ---------------------------------------------------------------------------------------------------


def test_prefixes_have_text_and_the_tokens_that_were_asked(tiny_text_dir):
    theirs = RequestOptions(tenant="acme")
    with engine_on(tiny_text_dir) as engine:
        engine.generate("A public sentence, long enough for some blocks. " * 2, SHORT)
        engine.generate("A tenant's own sentence, of some blocks as well. " * 2, SHORT, theirs)
        [mine, *_] = engine.prefixes(PrefixQuery(private=True, text=True)).rows
        assert mine.text.startswith("A tenant's own")
        assert mine.private
        [row, *_] = engine.prefixes(PrefixQuery(private=False)).rows
        assert row.text is None
        detail = engine.prefix(mine.key, text=True)
        assert engine.model.tokenizer.decode(detail.token_ids).startswith("A tenant's own")
        assert engine.prefix(mine.key).token_ids is None
