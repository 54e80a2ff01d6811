"""The sentences of README.md that have measured numbers in them, and where in a result each number stands."""

import re
from dataclasses import dataclass
from typing import Any

from tools.results import at, newest


@dataclass(frozen=True)
class Number:
    """A number in a sentence: where it stands in the theme's result, and how it is written."""

    path: str
    shown: str = "{}"
    by: str = ""
    """Where what it is divided by stands; empty for nothing."""

    def text(self, data: Any) -> str:
        """As the sentence has it."""
        value = at(data, self.path)
        return self.shown.format(value / at(data, self.by) if self.by else value)


@dataclass(frozen=True)
class Claim:
    """A part of a sentence in README.md: `{name}` stands for a number, `{report}` for the result's page.

    It begins and ends with words: between them it is found, whatever the numbers are.
    """

    theme: str
    sentence: str
    numbers: dict[str, Number]

    def pattern(self) -> re.Pattern[str]:
        """Finds the sentence, whatever its numbers are and wherever its lines end."""
        parts = re.split(r"(\{\w+\})", self.sentence)
        found = [r"(\S+?)" if part.startswith("{") else _in_any_lines(part) for part in parts]
        return re.compile("".join(found))

    def values(self) -> list[str]:
        """What must stand at each place, in order."""
        result = newest(self.theme)
        texts = {name: number.text(result.data) for name, number in self.numbers.items()}
        texts["report"] = result.report
        return [texts[name] for name in re.findall(r"\{(\w+)\}", self.sentence)]


def _in_any_lines(text: str) -> str:
    return r"\s+".join(re.escape(word) for word in re.split(r"\s+", text))


_PEER = "rows[system={},row={}].ttft_s"
_OVER_LRU = "rows[trace=mooncake_conversation_h1,variant=as it is,blocks={}].ratio"

CLAIMS = (
    Claim(
        "faults-peers",
        "released systems, {tries} tries a row, at the store and without an engine ([how, and all rows]({report});",
        {"tries": Number("[0].tries")},
    ),
    Claim(
        "ttft",
        "kvtide bench ttft --model demo --prefix-tokens {prefix} --suffix-tokens {suffix} --repeats {repeats} "
        "--threads {threads} --json rows.json",
        {
            "prefix": Number("config.prefix_tokens"),
            "suffix": Number("config.suffix_tokens"),
            "repeats": Number("config.repeats"),
            "threads": Number("config.threads"),
        },
    ),
    Claim("ttft", "transformers' own forward over its own cache ([result]({report}),", {}),
    Claim(
        "ttft-peers",
        "With {prefix} tokens cached and {suffix} new ones, in one run on two cores, the first token took {memory} s from memory "
        "and {disk} s from disk, where vLLM's CPU build took {vllm} s from memory and llama.cpp {llamacpp} s from disk "
        "([all rows, and what is not equal]({report});",
        {
            "prefix": Number("config.prefix_tokens", "{:,}"),
            "suffix": Number("config.suffix_tokens"),
            "memory": Number(_PEER.format("kvtide", "memory"), "{:.2f}"),
            "disk": Number(_PEER.format("kvtide", "disk"), "{:.2f}"),
            "vllm": Number(_PEER.format("vllm", "memory"), "{:.2f}"),
            "llamacpp": Number(_PEER.format("llamacpp", "disk"), "{:.2f}"),
        },
    ),
    Claim(
        "keeping",
        "its default finds {small} times the hits of LRU in a cache of 1,000 blocks, and {larger} times in one of 3,000 "
        "([all sizes and traces]({report}),",
        {
            "small": Number(_OVER_LRU.format(1000), "{:.2f}"),
            "larger": Number(_OVER_LRU.format(3000), "{:.2f}"),
        },
    ),
    Claim("index-peers", "processor time ([all rows, and what each system does in them]({report});", {}),
    Claim(
        "serve",
        "--clients {clients} --requests {requests} --threads {threads} --json rows.json",
        {name: Number(f"config.{name}") for name in ("clients", "requests", "threads")},
    ),
    Claim(
        "serve",
        "Where they share {sharing} % of {tokens} tokens, two cores answered [{ratio} times as many]({report}) as where they "
        "share none",
        {
            "sharing": Number("config.sharing[2]"),
            "tokens": Number("config.prompt_tokens", "{:,}"),
            "ratio": Number(
                "rows[sharing=90,tiers=False].requests_per_s",
                "{:.1f}",
                by="rows[sharing=0,tiers=False].requests_per_s",
            ),
        },
    ),
)
