"""`kvtide demo`: a real model, a long document, and every place where its KV may rest."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from engine import Engine, EngineConfig, Result, SamplingParams
from engine.convert import default_cache_dir
from engine.demo_model import demo_model_dir
from engine.model import Model, load_model
from engine.sizes import format_bytes
from tiering.cli.texts import handbook, questions, traffic

Messages = list[dict[str, str]]

_PLACES = ("device", "host", "disk", "after restart")
_REPLY = SamplingParams(max_tokens=24)
_TRAFFIC_REPLY = SamplingParams(max_tokens=4, ignore_eos=True)
_BLOCK_TOKENS = 16
_SPARE_HOST_BLOCKS = 64
_MAX_TRAFFIC = 100


@dataclass(frozen=True, slots=True)
class _Answer:
    place: str
    question: str
    result: Result
    cold: Result


class Demo:
    """The steps of the demonstration, in order, on one disk directory."""

    def __init__(self, console: Console, disk_path: Path, threads: int | None) -> None:
        self._console = console
        self._model: Model = load_model("demo")
        self._questions = questions()[: len(_PLACES)]
        self._block_bytes = block_bytes = self._model.layout("bfloat16", _BLOCK_TOKENS).block_bytes
        longest = max(len(self._tokens(self._about_handbook(q))) for q in self._questions)
        blocks = -(-(longest + _REPLY.max_tokens) // _BLOCK_TOKENS) + 2
        # Just room for the document and one question on the device, and for a little more in host memory: other
        # traffic has to push it out of both.
        self.config = EngineConfig(
            block_tokens=_BLOCK_TOKENS,
            device_bytes=blocks * block_bytes,
            host_bytes=(blocks + _SPARE_HOST_BLOCKS) * block_bytes,
            disk_path=disk_path,
            disk_bytes="1GiB",
            disk_min_free_bytes="256MiB",
            load="always",  # which tier an answer comes from is what is shown
            num_threads=threads,
        )
        self._traffic = traffic()
        self._num_traffic = 0

    def run(self) -> None:
        """Ask, push out, restart, ask again; then show what it came to."""
        answers = []
        with Engine(self._model, self.config, announce=self._console.print) as engine:
            cold = self._cold_answers(engine)
            for place, question in zip(_PLACES[:-1], self._questions, strict=False):
                if place != "device":
                    self._push_out(engine, until_in=place)
                answers.append(self._ask(engine, place, question, cold[question]))
            before = engine.stats()["cache"]
            with self._step("the engine closes, and writes what the disk does not have yet"):
                engine.close()
        with self._step("a new engine starts on the same directory"):
            engine = Engine(self._model, self.config, announce=self._console.print)
        with engine:
            question = self._questions[-1]
            answers.append(self._ask(engine, _PLACES[-1], question, cold[question]))
        self._show(answers, before)

    # --- prompts --------------------------------------------------------------------------------------------------

    def _about_handbook(self, question: str) -> Messages:
        return [{"role": "system", "content": handbook()}, {"role": "user", "content": question}]

    def _tokens(self, messages: Messages) -> list[int]:
        from engine.chat import encode

        tokens: list[int] = encode(messages, self._model.tokenizer, self._model.vocab_size).tolist()
        return tokens

    def _other_traffic(self) -> Iterator[Messages]:
        """Prompts that were never seen: the texts, each time under another heading."""
        while self._num_traffic < _MAX_TRAFFIC:
            text = self._traffic[self._num_traffic % len(self._traffic)]
            self._num_traffic += 1
            yield [{"role": "user", "content": f"Reading {self._num_traffic}.\n\n{text}"}]

    # --- steps ----------------------------------------------------------------------------------------------------

    def _cold_answers(self, engine: Engine) -> dict[str, Result]:
        """Every question with an empty cache: the answers and times to compare with. The last one leaves it filled."""
        cold = {}
        for number, question in enumerate(self._questions, start=1):
            engine.clear()
            with self._step(f"cold {number} of {len(self._questions)}: {question}"):
                cold[question] = engine.generate(self._about_handbook(question), _REPLY)
        return cold

    def _push_out(self, engine: Engine, *, until_in: str) -> None:
        """Run other prompts until the document has left the tiers above `until_in`."""
        with self._step(f"other prompts push the document down to {until_in}"):
            for prompt in self._other_traffic():
                engine.generate(prompt, _TRAFFIC_REPLY)
                if self._document_is_in(engine, until_in):
                    return
            raise RuntimeError(f"{_MAX_TRAFFIC} prompts did not push the document down to {until_in}")

    def _document_is_in(self, engine: Engine, place: str) -> bool:
        found = engine.lookup(self._about_handbook(self._questions[0]))
        return sum(found.values()) > 0 and found[place] == sum(found.values())

    def _ask(self, engine: Engine, place: str, question: str, cold: Result) -> _Answer:
        with self._step(f"{place}: {question}"):
            return _Answer(place, question, engine.generate(self._about_handbook(question), _REPLY), cold)

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        start_s = time.monotonic()
        with self._console.status(what):
            yield
        self._console.print(f"{time.monotonic() - start_s:6.1f} s  {what}", highlight=False, style="dim")

    # --- output ---------------------------------------------------------------------------------------------------

    def _show(self, answers: list[_Answer], before: dict[str, Any]) -> None:
        table = Table(title="The same document, from each place", title_justify="left")
        for name in (
            "found in",
            "TTFT",
            "cold TTFT",
            "speed-up",
            "cached tokens by tier",
            "computed",
            "same answer",
        ):
            table.add_column(
                name, justify="left" if name in ("found in", "cached tokens by tier") else "right"
            )
        for answer in answers:
            result, cold = answer.result, answer.cold
            tiers = {tier: n for tier, n in result.usage.cached_by_tier.items() if n}
            table.add_row(
                answer.place,
                f"{result.timings.ttft_s * 1e3:,.0f} ms",
                f"{cold.timings.ttft_s * 1e3:,.0f} ms",
                f"{cold.timings.ttft_s / result.timings.ttft_s:.1f}x",
                ", ".join(f"{tier} {n}" for tier, n in tiers.items()) or "none",
                str(result.usage.prefilled_tokens),
                "yes" if result.token_ids == cold.token_ids else "NO",
            )
        self._console.print(table)
        for answer in answers:
            self._console.print(
                f"[bold]{answer.question}[/bold]  {answer.result.text.strip()}", highlight=False
            )
        self._show_bytes(before)

    def _show_bytes(self, stats: dict[str, Any]) -> None:
        store, tiers = stats["store"], stats["tiers"]
        for tier in ("device", "host"):
            used = tiers[tier]["indexed"] * self._block_bytes
            self._console.print(
                f"{tier}: {format_bytes(used)} of {format_bytes(tiers[tier]['slots'] * self._block_bytes)} in use"
            )
        if store["stored_bytes"]:
            ratio = store["raw_bytes"] / store["stored_bytes"]
            self._console.print(
                f"disk: {format_bytes(store['raw_bytes'])} of KV in {format_bytes(store['stored_bytes'])}: {ratio:.2f}x smaller, "
                "every byte checked when read"
            )


def run_demo(*, threads: int | None, keep: Path | None) -> None:
    """Run the demonstration; the disk tier lies in `keep`, or in a directory that is removed at the end."""
    console = Console()
    model_dir = demo_model_dir(progress=console.print)
    if keep is not None:
        Demo(console, keep, threads).run()
    else:
        with tempfile.TemporaryDirectory(prefix="kvtide-demo-") as scratch:
            Demo(console, Path(scratch), threads).run()
    kept = f"the cache in {keep}" if keep is not None else "nothing of the cache (--keep DIR would)"
    console.print(f"\nLeft on this machine: the converted model in {model_dir}, and {kept}.")
    console.print(
        f"To remove: rm -r {default_cache_dir()}{f' {keep}' if keep is not None else ''}", highlight=False
    )
