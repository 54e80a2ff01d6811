"""FlashInfer's calls, computed by a stand-in on the CPU, give what SDPA gives; what does not is refused at start."""

import gc
import inspect
import logging
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import Engine, EngineConfig, Result, SamplingParams
from engine.attention import attend
from engine.batch import build_batch
from engine.chunk import Chunk
from engine.flashinfer import FlashInfer, FlashInferCall, load_wrapper, workspace_bytes
from engine.kernels import TOLERANCE_EPS, Disagrees, check_agreement
from engine.lanes import has_lanes
from engine.model import Model, random_model
from engine.pool import DevicePool
from kvstore.block import BlockLayout
from tests.engine.engines import open_engine
from tests.engine.families import CASES
from tests.engine.naive import tokens
from tests.engine.paged_attention import PagedAttention

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = [
    "llama",
    "mistral, window",
    "gemma3_text, window in some layers",
    "granite",  # has a scaling of its own
    "gpt_neox",  # a KV head for each head
]
WARM = SamplingParams(max_tokens=1, ignore_eos=True)
ASKED = SamplingParams(max_tokens=8, ignore_eos=True, logprobs=10)


def model_of(name: str, dtype: str) -> Model:
    sizes = {"hidden_size": 256} if name == "gpt_neox" else {"head_dim": 64}
    return random_model(CASES[name].config(tie_word_embeddings=False, **sizes), seed=3, dtype=dtype)


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def windowed() -> Model:
    """Layers with a window of 40 tokens, and layers without one."""
    return model_of("gemma3_text, window in some layers", "bfloat16")


def settings(dtype: str, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "kv_dtype": dtype, "load_flashinfer": lambda: PagedAttention, **more}


def chunk(prompt: np.ndarray, start: int, end: int, slots: np.ndarray, *, decode: bool = False) -> Chunk:
    return Chunk(tokens=prompt[start:end], start=start, slots=slots, wants_logits=True, decode=decode)


# --- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_tokens", [16, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mixed_batches_give_the_logits_of_sdpa(name, dtype, block_tokens):
    """Cold prompts, one behind a prefix that ends within a block, decodes of different lengths, in shuffled slots of which
    more are given than needed, and which held NaN."""
    model = model_of(name, dtype)
    prompts = [tokens(seed, 420) for seed in range(4)]
    tables = np.random.default_rng(0).permutation(4 * 32).reshape(4, 32).astype(np.intp)

    def run(load) -> list[torch.Tensor]:
        pool = DevicePool(model.layout(dtype, block_tokens), 128)
        for layer in range(model.num_layers):
            pool.layer_view(layer)[:128] = float("nan")
        kernels = load and FlashInfer(
            load, pool, num_heads=model.shape.num_heads, dtype=model.dtype, windows=model.windows
        )
        steps = [
            [(0, 0, 150, False), (1, 0, 7, False), (2, 0, 200, False)],
            [(0, 150, 151, True), (3, 0, 40, False), (1, 7, 300, False), (2, 200, 201, True)],
            [(2, 201, 202, True), (3, 40, 41, True), (0, 151, 152, True), (1, 300, 301, True)],
        ]
        found = []
        for step in steps:
            chunks = [chunk(prompts[i], a, b, tables[i], decode=decode) for i, a, b, decode in step]
            batch = model.batch(chunks, pool, kernels=kernels)
            batch.check(pool)
            found.append(model.forward(batch, pool))
        return found

    for ours, theirs in zip(run(PagedAttention), run(None), strict=True):
        assert ours.isfinite().all()
        assert (ours - theirs).norm() < 0.05 * theirs.norm()


@pytest.mark.parametrize("block_tokens", [16, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_hit_from_every_tier(name, dtype, block_tokens, tmp_path: Path):
    model = model_of(name, dtype)
    prompt = tokens(1, 300).tolist()
    with open_engine(model, dtype=dtype, kv_dtype=dtype, attention="sdpa") as engine:
        expected = engine.generate(prompt, ASKED)
        assert (engine.stats()["attention"], engine.stats()["flashinfer_off"]) == ("sdpa", None)
    with open_engine(model, tmp_path, **settings(dtype, block_tokens=block_tokens)) as engine:
        assert (engine.stats()["attention"], engine.stats()["flashinfer_off"]) == ("flashinfer", None)
        for tier in ("device", "host", "disk"):
            assert engine.clear()
            engine.generate(prompt[:200], WARM)
            if tier != "device":
                engine.demote(tier)
            found, *others = engine.generate([prompt, prompt[:150], prompt[:170] + [5] * 30], ASKED)
            assert found.usage.cached_by_tier[tier] == 192
            assert all(other.finish_reason == "length" for other in others)
            assert_near(found, expected)
        engine.check()


def assert_near(found: Result, expected: Result) -> None:
    """The best tokens to follow the prompt are as probable, but for rounding."""
    ours, theirs = (dict(result.logprobs[0].top) for result in (found, expected))
    both = ours.keys() & theirs.keys()
    assert len(both) >= len(theirs) // 2
    assert max(abs(ours[token] - theirs[token]) for token in both) < 0.2


def test_one_plan_for_each_batch_and_window_and_one_run_for_each_layer():
    made: list[PagedAttention] = []

    def counted(*facts: Any) -> PagedAttention:
        made.append(PagedAttention(*facts))
        return made[-1]

    model = model_of("gemma3_text, window in some layers", "bfloat16")
    pool = DevicePool(model.layout("bfloat16", 16), 32)
    kernels = FlashInfer(
        counted, pool, num_heads=model.shape.num_heads, dtype=model.dtype, windows=model.windows
    )
    prompt = tokens(1, 90)
    for start in (0, 30, 60):
        chunks = [chunk(prompt, start, start + 30, np.arange(32, dtype=np.intp))]
        model.forward(model.batch(chunks, pool, kernels=kernels), pool)
    assert [wrapper.plans for wrapper in made] == [3, 3]
    assert sum(wrapper.runs for wrapper in made) == 3 * model.num_layers


def test_a_closed_engine_keeps_no_workspace(windowed):
    made: list[weakref.ref[torch.Tensor]] = []

    class Watched(PagedAttention):
        def __init__(self, workspace, layout) -> None:
            super().__init__(workspace, layout)
            self.workspace = workspace
            made.append(weakref.ref(workspace))

    engine = open_engine(windowed, **settings("bfloat16", load_flashinfer=lambda: Watched))
    engine.generate(tokens(1, 50).tolist(), WARM)
    assert all(workspace() is not None for workspace in made)
    engine.close()
    gc.collect()
    assert [workspace() for workspace in made] == [None, None]


def test_layers_of_one_window_may_scale_differently():
    layout = BlockLayout(num_layers=1, num_kv_heads=2, head_dim=64, dtype="bfloat16")
    pool = DevicePool(layout, 8)
    layer = pool.layer_view(0)
    layer.copy_(torch.randn(layer.shape, generator=torch.Generator().manual_seed(0)))
    kernels = FlashInfer(PagedAttention, pool, num_heads=4, dtype=torch.bfloat16, windows=[None])
    chunks = [chunk(tokens(1, 100), 0, 100, np.arange(8, dtype=np.intp))]
    query = torch.randn(1, 4, 100, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    ours, theirs = (build_batch(chunks, pool, dtype=torch.bfloat16, kernels=each) for each in (kernels, None))
    for scaling in (0.5, 0.1, None):
        found, expected = (attend(query, layer, batch, None, scaling) for batch in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_what_a_batch_is_described_by():
    layout = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=64, dtype="float16")
    pool = DevicePool(layout, 64)
    kernels = FlashInfer(PagedAttention, pool, num_heads=4, dtype=torch.float16, windows=[None, 40])
    prompt = tokens(1, 100)
    chunks = [
        chunk(prompt, 32, 33, np.array([9, 8, 7, 6], dtype=np.intp), decode=True),
        chunk(prompt, 5, 32, np.array([5, 4, 3], dtype=np.intp)),
        chunk(prompt, 0, 1, np.array([1], dtype=np.intp), decode=True),
    ]
    calls = build_batch(chunks, pool, dtype=torch.float16, kernels=kernels).calls
    assert set(calls) == {None, 40}
    assert calls[None].pages is calls[40].pages
    pages = calls[None].pages
    assert pages.rows.tolist() == [0, 27, 28, 29]
    assert pages.blocks.tolist() == [0, 2, 5, 6]
    assert pages.slots.tolist() == [5, 4, 9, 8, 7, 1]
    assert pages.last_tokens.tolist() == [16, 1, 1]
    assert isinstance(calls[40], FlashInferCall)
    with pytest.raises(AssertionError, match="depend on the batch"):
        build_batch(chunks, pool, deterministic=True, kernels=kernels)


def test_the_workspace_holds_what_may_be_split():
    """64 heads over 8 KV heads on 132 processors: 33 tiles of 128 rows."""
    assert workspace_bytes(64, 8, 128, 132) > 64 * 33 * 128 * (128 + 1) * 4 > 128 << 20
    assert workspace_bytes(32, 32, 64, 0) == 128 << 20


# --- what is refused --------------------------------------------------------------------------------------------------


class TooMuchWindow(PagedAttention):
    def plan(self, *args: Any, window_left=-1, **more):
        super().plan(*args, window_left=window_left + (window_left >= 0), **more)


class TooLittleWindow(PagedAttention):
    def plan(self, *args: Any, window_left=-1, **more):
        super().plan(*args, window_left=window_left - (window_left > 0), **more)


class NoWindow(PagedAttention):
    def plan(self, *args: Any, window_left=-1, **more):
        super().plan(*args, window_left=-1, **more)


class NotScaled(PagedAttention):
    def plan(self, *args: Any, sm_scale=None, **more):
        super().plan(*args, **more)


class SeesTheNextToken(PagedAttention):
    def seen(self, num_rows, num_tokens):
        positions = torch.arange(num_tokens - num_rows, num_tokens)[:, None]
        return super().seen(num_rows, num_tokens) | (torch.arange(num_tokens)[None] == positions + 1)


class UpperLeft(PagedAttention):
    """Rows are the first tokens of a sequence, as in torch's own causal masks."""

    def seen(self, num_rows, num_tokens):
        return torch.ones(num_rows, num_tokens, dtype=torch.bool).tril()


class WholePages(PagedAttention):
    def gathered(self, paged_kv_cache, pages, last):
        return super().gathered(paged_kv_cache, pages, self._page_size)


class StaleCounts(PagedAttention):
    """Multiplies what lies behind a sequence's end by 0, which makes NaN of NaN."""

    def gathered(self, paged_kv_cache, pages, last):
        key, value = super().gathered(paged_kv_cache, pages, last)
        behind = paged_kv_cache[pages[-1], 1, last:]
        value[-1] += 0 * behind.sum(0)
        return key, value


class Contiguous(PagedAttention):
    """Takes it that pages follow each other without a gap."""

    def gathered(self, paged_kv_cache, pages, last):
        shape = paged_kv_cache.shape
        flat = paged_kv_cache.as_strided(shape, torch.empty(shape, device="meta").stride())
        return super().gathered(flat, pages, last)


class HeadsInterleaved(PagedAttention):
    def attention(self, q, key, value):
        return super().attention(q, key.flip(1), value.flip(1))


class RowsReversed(PagedAttention):
    def run(self, q, paged_kv_cache):
        return super().run(q, paged_kv_cache).flip(0)


class NotANumber(PagedAttention):
    def run(self, q, paged_kv_cache):
        out = super().run(q, paged_kv_cache)
        out[-1, -1, -1] = float("nan")
        return out


class OtherDtype(PagedAttention):
    def run(self, q, paged_kv_cache):
        return super().run(q, paged_kv_cache).float()


class CannotBeMade(PagedAttention):
    def __init__(self, *args: Any) -> None:
        raise RuntimeError("no memory for a workspace")


class CannotPlan(PagedAttention):
    def plan(self, *args: Any, **more):
        raise RuntimeError("ninja: build stopped\n" + "nvcc says more\n" * 1000)


class CannotRun(PagedAttention):
    def run(self, q, paged_kv_cache):
        raise NotImplementedError("no kernel for this GPU")


WRONG = {
    "one token too many in the window": (TooMuchWindow, "sliding window of 40 tokens it is"),
    "one too few": (TooLittleWindow, "sliding window of 40 tokens it is"),
    "no window": (NoWindow, "sliding window of 40 tokens it is"),
    "ignores the scale": (NotScaled, "roundings away"),
    "sees the next token": (SeesTheNextToken, "roundings away"),
    "aligned to the upper left": (UpperLeft, "roundings away"),
    "ignores the last page's length": (WholePages, "reads beyond a sequence's end"),
    "lets stale bytes count": (StaleCounts, "reads beyond a sequence's end"),
    "ignores the page stride": (Contiguous, ""),
    "transposes heads": (HeadsInterleaved, "roundings away"),
    "reverses rows": (RowsReversed, "roundings away"),
    "gives NaN": (NotANumber, "no number"),
    "gives another dtype": (OtherDtype, "float32"),
    "cannot be made": (CannotBeMade, "no memory"),
    "cannot plan": (CannotPlan, "build stopped"),
    "cannot run": (CannotRun, "no kernel"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_refused_with_a_warning_and_sdpa_computes(windowed, wrong, caplog):
    wrapper, words = WRONG[wrong]
    prompt = tokens(1, 100).tolist()
    with open_engine(windowed, **settings("bfloat16", attention="sdpa")) as engine:
        expected = engine.generate(prompt, ASKED).token_ids
    with open_engine(windowed, **settings("bfloat16", load_flashinfer=lambda: wrapper)) as engine:
        stats = engine.stats()
        assert stats["attention"] == "sdpa"
        assert words in stats["flashinfer_off"]
        assert len(stats["flashinfer_off"]) <= 300
        assert engine.generate(prompt, ASKED).token_ids == expected
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert stats["flashinfer_off"] in warning.getMessage()


def test_what_cannot_be_imported_is_refused_with_a_warning(windowed, caplog):
    def load():
        raise ImportError("libcudart.so: cannot open shared object file")

    with open_engine(windowed, **settings("bfloat16", load_flashinfer=load)) as engine:
        assert "libcudart" in engine.stats()["flashinfer_off"]
    assert "libcudart" in caplog.text


def test_what_was_asked_for_and_is_wrong_keeps_the_engine_from_starting(windowed):
    facts = settings("bfloat16", attention="flashinfer", load_flashinfer=lambda: NoWindow)
    with pytest.raises(ValueError, match=r"attention is 'flashinfer', which cannot be used: .*window of 40"):
        open_engine(windowed, **facts)


def test_what_is_right_keeps_far_below_the_tolerance_and_what_is_wrong_above(monkeypatch):
    """A margin of four on either side, for windows short and long."""
    for window, num_slots in ((None, 300), (1, 60), (40, 100), (1000, 1000)):
        for wrapper in (PagedAttention, TooMuchWindow):
            layout = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=64, dtype="bfloat16")
            pool = DevicePool(layout, num_slots)
            kernels = FlashInfer(wrapper, pool, num_heads=4, dtype=torch.bfloat16, windows=[window])
            wrong = wrapper is TooMuchWindow and window is not None
            monkeypatch.setattr("engine.kernels.TOLERANCE_EPS", TOLERANCE_EPS * (4 if wrong else 0.25))
            facts = {"num_heads": 4, "dtype": torch.bfloat16, "window": window, "layer": 1}
            if wrong:
                with pytest.raises(Disagrees):
                    check_agreement(kernels, pool, **facts)
            else:
                check_agreement(kernels, pool, **facts)


@pytest.mark.parametrize("wrapper", [PagedAttention, NoWindow, CannotRun])
def test_the_trial_leaves_zeros_in_the_pool(wrapper):
    layout = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=64, dtype="bfloat16")
    pool = DevicePool(layout, 100)
    kernels = FlashInfer(wrapper, pool, num_heads=4, dtype=torch.bfloat16, windows=[40])
    facts = {"num_heads": 4, "dtype": torch.bfloat16, "window": 40, "layer": 1}
    if wrapper is PagedAttention:
        check_agreement(kernels, pool, **facts)
    else:
        with pytest.raises((Disagrees, NotImplementedError)):
            check_agreement(kernels, pool, **facts)
    assert not any(pool.view(slot).any() for slot in range(100))
    assert not pool.layer_view(1)[pool.scratch].any()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"load_flashinfer": None}, "needs a CUDA device"),
        ({"deterministic": True}, "in deterministic mode"),
        ({"kv_dtype": "float16"}, "not in bfloat16 with KV in float16"),
        ({"device_bytes": "64KiB"}, "too small to try it"),
    ],
)
def test_what_it_is_not_used_for(windowed, facts, words, caplog):
    with open_engine(windowed, **{**settings("bfloat16"), **facts}) as engine:
        assert engine.stats()["attention"] == "sdpa"
        assert words in engine.stats()["flashinfer_off"]
    if "too small" not in words:
        assert not caplog.records


def test_a_head_it_does_not_know_is_not_tried():
    model = random_model(CASES["llama"].config(), dtype="bfloat16")
    with open_engine(model, **settings("bfloat16")) as engine:
        assert "heads of 64, 128, 256 numbers, not of 16" in engine.stats()["flashinfer_off"]


def test_start_says_which_attention_computes(windowed):
    facts: list[str] = []
    config = EngineConfig(dtype="bfloat16", kv_dtype="bfloat16", device_bytes="16MiB", host_bytes=0)
    Engine(windowed, config, announce=facts.append, load_flashinfer=lambda: PagedAttention).close()
    Engine(windowed, config, announce=facts.append, load_flashinfer=lambda: NoWindow).close()
    assert "attention by flashinfer\n" in facts[0]
    assert "attention by sdpa, not flashinfer: " in facts[1]


@pytest.mark.parametrize("head_dim", [16, 20])
def test_start_says_whether_prompts_attend_by_a_kernel_of_our_own(head_dim):
    facts: list[str] = []
    model = random_model(CASES["llama"].config(head_dim=head_dim))
    Engine(model, EngineConfig(device_bytes="16MiB", host_bytes=0), announce=facts.append).close()
    is_own = has_lanes(torch.device("cpu"), torch.bfloat16, torch.float32, head_dim)
    assert ("attention by sdpa; of prompts by a kernel of our own\n" in facts[0]) == is_own
    assert ("attention by sdpa\n" in facts[0]) != is_own


# --- the real one -----------------------------------------------------------------------------------------------------


def test_our_calls_fit_the_real_signatures():
    pytest.importorskip("flashinfer", reason="flashinfer is not installed")
    real = load_wrapper()
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    class Recorded(PagedAttention):
        def __init__(self, *args: Any, **more) -> None:
            calls.append(("__init__", args, more))
            super().__init__(*args, **more)

        def plan(self, *args: Any, **more):
            calls.append(("plan", args, more))
            super().plan(*args, **more)

        def run(self, *args: Any, **more):
            calls.append(("run", args, more))
            return super().run(*args, **more)

    layout = BlockLayout(num_layers=1, num_kv_heads=2, head_dim=64, dtype="bfloat16")
    pool = DevicePool(layout, 60)
    kernels = FlashInfer(Recorded, pool, num_heads=4, dtype=torch.bfloat16, windows=[40])
    check_agreement(kernels, pool, num_heads=4, dtype=torch.bfloat16, window=40, layer=0)
    assert [name for name, _, _ in calls] == ["__init__", "plan", "run"]
    for name, args, more in calls:
        inspect.signature(getattr(real, name)).bind(None, *args, **more)
