"""The sentences of README.md that have measured numbers in them, and where in a result each number stands."""

import re
from collections.abc import Callable
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
    pick: Callable[[list[Any]], Any] | None = None
    """Where several paths are named, with a space between them: which of their values it is."""

    def text(self, data: Any) -> str:
        """As the sentence has it."""
        values = [at(data, path) for path in self.path.split()]
        value = self.pick(values) if self.pick is not None else values[0]
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


_HIT = "rows[tier={}].ttft_s"
_MEMORY = f"{_HIT.format('device')} {_HIT.format('host')}"
_DISK = f"{_HIT.format('disk')} {_HIT.format('restart')}"

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
    Claim(
        "ttft",
        "([result]({report})) a cold prompt took {cold} s, and a hit {memory_low} to {memory_high} s from the device or "
        "host memory and {disk_low} to {disk_high} s from disk or after a restart",
        {
            "cold": Number(_HIT.format("cold"), "{:.1f}"),
            "memory_low": Number(_MEMORY, "{:.2f}", pick=min),
            "memory_high": Number(_MEMORY, "{:.2f}", pick=max),
            "disk_low": Number(_DISK, "{:.2f}", pick=min),
            "disk_high": Number(_DISK, "{:.2f}", pick=max),
        },
    ),
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
