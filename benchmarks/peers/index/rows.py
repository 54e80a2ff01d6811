"""What is timed: the same calls on the same prompts, asked of every index."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from benchmarks.workloads_index import (
    LENGTHS_TOKENS,
    NODE_TOKENS,
    OWN_TOKENS,
    PROMPT_TOKENS,
    Tokens,
    chat,
    extension,
    prefixes,
    run,
    turns,
)

Call = Callable[[], int]
"""What is called under the clock. Answers a number of tokens, by which its work is checked."""

TREE_PREFIXES = 1000
LEAVES = (1000, 10_000, 100_000)
NUM_RUNS = 16
"""Different prompts of 128 k that are looked up in turn: 8 MiB of tokens, more than stay near the processor."""


class Index(Protocol):
    """A system's index. What is not timed, such as a prompt in the system's own form, is done before a Call is given."""

    def insert(self, tokens: Tokens) -> None:
        """Enter all blocks of a prompt."""
        ...

    def matching(self, tokens: Tokens) -> Call:
        """Find the longest known prefix, and count it as used where the system does so then. Answers its length."""
        ...

    def known(self, tokens: Tokens) -> Call:
        """The same for a prompt that was looked up before: hashes of its blocks, where there are some, are at hand."""
        ...

    def inserting(self, tokens: Tokens) -> Call:
        """Enter a prompt's blocks. Answers how many of its tokens were there already."""
        ...

    def holding(self, tokens: Tokens) -> Call:
        """Protect a path from eviction, and let go of it. Answers its length."""
        ...

    def serving(self, tokens: Tokens) -> Call:
        """All that a request begins and ends with: look up, hold, a place to compute in, let go. Answers the match."""
        ...

    def evicting(self, num_tokens: int) -> Call:
        """Make room for so many tokens. Answers how many went."""
        ...

    def settle(self) -> None:
        """After the clock has stopped: give back what the calls have left behind."""
        ...


class Offload(Protocol):
    """A system's index of what is in host memory."""

    def looking_up(self, tokens: Tokens) -> Call:
        """How much of a prompt is there."""
        ...

    def storing(self, tokens: Tokens) -> Call:
        """Give all blocks of a new prompt a place, in place of others if need be. Answers how many tokens have one."""
        ...

    def settle(self) -> None:
        """The copies have arrived."""
        ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the report."""

    name: str
    call: Callable[[Any, int], Call]
    """Prepares the call with this number, which is another one each time."""
    least_tokens: int
    most_tokens: int
    """What a call must answer to be right."""
    num_calls: int = 4
    """Under the clock in one sample, after one that brings back to the processor's caches what the others have pushed out."""
    cold: bool = False
    """Whether the processor's caches are filled with something else before each call instead, as a step of a model does."""
    makes_room: bool = False
    """Whether what went must be put back, so that the next sample finds as many leaves."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows that are asked of one and the same index."""

    num_blocks: int
    """Room that the index needs."""
    kind: str = "index"
    fill: Callable[[Any], None]
    rows: tuple[Row, ...]
    refill: Callable[[Any, int], None] | None = None
    """Inserts one more prefix, the one with this number."""


def cases(seed: int) -> dict[str, Case]:
    """All cases by name, in the order in which they run."""
    some = {"paths": _paths(seed)}
    some |= {f"leaves {number}": leaves(number, seed) for number in LEAVES}
    some |= {"host with room": _host(seed, full=False), "host full": _host(seed, full=True)}
    return some


def _exactly(name: str, call: Callable[[Any, int], Call], tokens: int, num_calls: int = 4) -> Row:
    return Row(name=name, call=call, least_tokens=tokens, most_tokens=tokens, num_calls=num_calls)


def _on(path: Tokens, call: Callable[[Any, int, Tokens], Call]) -> Callable[[Any, int], Call]:
    return lambda index, number: call(index, number, path)


def _match(index: Any, _: int, path: Tokens) -> Call:
    answer: Call = index.matching(path)
    return answer


def _paths(seed: int) -> Case:
    """Long paths beside a tree of 1,000 prefixes."""
    runs = {length: run(length, seed) for length in LENGTHS_TOKENS}
    chats = {length: chat(length, seed) for length in LENGTHS_TOKENS}
    some_runs = [run(PROMPT_TOKENS, seed, number) for number in range(1, NUM_RUNS + 1)]

    def fill(index: Index) -> None:
        for prompt in prefixes(TREE_PREFIXES, seed):
            index.insert(prompt)
        for prompt in (*runs.values(), *some_runs):
            index.insert(prompt)
        for length in LENGTHS_TOKENS:
            for prompt in turns(length, seed):
                index.insert(prompt)

    rows = []
    for shape, paths in (("one run", runs), ("nodes of 512", chats)):
        for length, path in paths.items():
            rows.append(
                _exactly(
                    f"match {length // 1024} k, {shape}",
                    _on(path, _match),
                    length,
                    num_calls=max(4, 32_768 // length),
                )
            )
    longest = {"one run": runs[PROMPT_TOKENS], "nodes of 512": chats[PROMPT_TOKENS]}
    for shape, path in longest.items():
        row = _exactly(
            f"match 128 k, {shape}, cold caches",
            _on(path, _match),
            PROMPT_TOKENS,
        )
        rows.append(replace(row, cold=True))
    rows.append(
        _exactly(
            f"match 128 k, {NUM_RUNS} runs in turn",
            lambda index, number: index.matching(some_runs[number % NUM_RUNS]),
            PROMPT_TOKENS,
            num_calls=NUM_RUNS,
        )
    )
    calls: tuple[tuple[str, Callable[[Any, int, Tokens], Call]], ...] = (
        ("match 128 k once more", lambda index, _, path: index.known(path)),
        ("hold and let go 128 k", lambda index, _, path: index.holding(path)),
        ("begin and end a request of 128 k", lambda index, _, path: index.serving(path)),
        ("insert 512 below 128 k", lambda index, n, path: index.inserting(extension(path, seed, n))),
    )
    for title, call in calls:
        for shape, path in longest.items():
            rows.append(_exactly(f"{title}, {shape}", _on(path, call), PROMPT_TOKENS))
    blocks = TREE_PREFIXES * 34 + (NUM_RUNS + 2) * 8192 + 3 * 8192  # and some room for what is inserted below
    return Case(num_blocks=blocks, fill=fill, rows=tuple(rows))


def leaves(num_leaves: int, seed: int) -> Case:
    """Trees that are nothing but prefixes."""

    def fill(index: Index) -> None:
        for prompt in prefixes(num_leaves, seed):
            index.insert(prompt)

    def refill(index: Index, number: int) -> None:
        index.insert(next(prefixes(1, seed, first=num_leaves + number)))

    rows = (
        Row(
            name=f"evict the least there is, {num_leaves:,} leaves",
            call=lambda index, _: index.evicting(16),
            least_tokens=16,
            most_tokens=OWN_TOKENS,
            num_calls=8,
            makes_room=True,
        ),
        Row(
            name=f"evict 512 tokens, {num_leaves:,} leaves",
            call=lambda index, _: index.evicting(OWN_TOKENS),
            least_tokens=OWN_TOKENS,
            most_tokens=OWN_TOKENS,
            num_calls=4,
            makes_room=True,
        ),
    )
    return Case(num_blocks=16 * 64 + 32 * num_leaves, fill=fill, rows=rows, refill=refill)


def _host(seed: int, *, full: bool) -> Case:
    """The offload index: prompts of 128 k, which nothing precedes."""
    first = [run(PROMPT_TOKENS, seed, number) for number in range(2)]

    def fill(offload: Offload) -> None:
        for prompt in first:
            offload.storing(prompt)()
            offload.settle()

    def store(offload: Offload, number: int) -> Call:
        return offload.storing(run(PROMPT_TOKENS, seed, 1000 + number))

    name = "find a place in host memory for 128 k"
    rows: tuple[Row, ...]
    if full:
        rows = (_exactly(f"{name}, all full", store, PROMPT_TOKENS, num_calls=1),)
        return Case(num_blocks=2 * 8192, kind="offload", fill=fill, rows=rows)
    rows = (
        _exactly(
            "look up 128 k in host memory", lambda offload, _: offload.looking_up(first[0]), PROMPT_TOKENS
        ),
        _exactly(f"{name}, with room", store, PROMPT_TOKENS, num_calls=1),
    )
    return Case(num_blocks=64 * 8192, kind="offload", fill=fill, rows=rows)


assert NODE_TOKENS == OWN_TOKENS  # both are called 512 in the rows' names
