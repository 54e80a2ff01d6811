"""`kvtide explain`: how much of one recorded request could be reused after another, and what breaks it, without a model.

Exit codes: 0 nothing breaks it, 1 something does, 2 the input cannot be used.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from tiering.cli.explain_page import Page
from tiering.cli.explain_url import ask, token_from
from tiering.cli.tokenizer import load_tokenizer
from tiering.diagnosis.comparison import Comparison, Reuse, compare, most_alike
from tiering.diagnosis.recorded import Recorded, read_requests
from tiering.diagnosis.renderings import rendered

WHOLLY, BROKEN = 0, 1
"""Exit statuses."""


def run(
    earlier: Path,
    later: Path | None,
    tokenizer: str | None,
    block_tokens: int,
    url: str | None,
    token_env: str | None,
    *,
    as_json: bool,
) -> int:
    """Explain with a tokenizer, or by a running kvtide, and return the exit status. Raises ValueError with a sentence."""
    if url is None:
        if token_env is not None:
            raise ValueError("--token-env goes with --url")
        if tokenizer is None:
            raise ValueError("explaining needs --tokenizer, or --url of a kvtide that runs")
        return run_offline(earlier, later, tokenizer, block_tokens, as_json=as_json)
    if later is not None or tokenizer is not None:
        raise ValueError(
            "with --url there is one file and no --tokenizer: what is cached there is compared with it"
        )
    return run_url(earlier, url, token_from(token_env), as_json=as_json)


def run_offline(
    earlier: Path, later: Path | None, tokenizer_place: str, block_tokens: int, *, as_json: bool
) -> int:
    """Compare the last request of `later` with that of `earlier` which is most like it; without `later`, within one file.

    Raises ValueError with a sentence for what cannot be used.
    """
    before, asked = _requests(earlier, later)
    tokenizer = load_tokenizer(tokenizer_place)
    made, why_plain = rendered([asked, *before], tokenizer)
    cached = most_alike(made[0], made[1:])
    found = compare(made[0], cached, tokenizer, block_tokens=block_tokens)
    names = (later or earlier).name, earlier.name
    if names[0] == names[1]:
        names = ("later", "earlier")
    if as_json:
        print(json.dumps(_as_json(found, names, why_plain), indent=1, ensure_ascii=False))
    else:
        _show(found, names, why_plain, block_tokens)
    return WHOLLY if found.difference is None else BROKEN


def run_url(recorded: Path, url: str, token: str | None, *, as_json: bool) -> int:
    """Ask a running kvtide about the last request of the file, and print its answer. Raises ValueError with a sentence."""
    request = read_requests(recorded)[-1]
    body, notes = _question(request)
    answer = ask(url, token, body)
    if as_json:
        print(json.dumps(answer, indent=1, ensure_ascii=False))
    else:
        page = Page(_console())
        page.explanation(answer, recorded.name)
        page.notes([*answer.get("notes", ()), *notes])
    broken = answer.get("difference") or any(reason != "not_a_whole_block" for reason in answer["reasons"])
    return BROKEN if broken else WHOLLY


def _requests(earlier: Path, later: Path | None) -> tuple[Sequence[Recorded], Recorded]:
    before = read_requests(earlier)
    if later is not None:
        return before, read_requests(later)[-1]
    if len(before) < 2:
        raise ValueError(f"{earlier} has one request: give a second file to compare it with, or --url")
    return before[:-1], before[-1]


def _question(request: Recorded) -> tuple[dict[str, Any], list[str]]:
    """What the endpoint is asked, and what of the request it cannot be asked."""
    if request.shape == "text":
        return {"text": request.turns[0].content}, []
    left_out = [
        words
        for words, present in (
            ("tools", request.tools),
            ("calls of tools", any(turn.tool_calls for turn in request.turns)),
            ("reasoning", any(turn.reasoning for turn in request.turns)),
            ("response_format", request.response_format is not None),
        )
        if present
    ]
    notes = (
        [f"the engine takes roles and text only: it was asked without {', '.join(left_out)}"]
        if left_out
        else []
    )
    return {"messages": [{"role": turn.role, "content": turn.content} for turn in request.joined()]}, notes


# --- what is told ---------------------------------------------------------------------------------------------------


def _as_json(found: Comparison, names: tuple[str, str], why_plain: str | None) -> dict[str, Any]:
    return {
        "asked": names[0],
        "cached": names[1],
        "layout": "chat template" if why_plain is None else "plain",
        "why_plain": why_plain,
        "prompt_tokens": found.prompt_tokens,
        "block_tokens": found.shared.block_tokens,
        "shared": _reuse_as_json(found.shared, found),
        "without_first": _reuse_as_json(found.without_first, found),
        "without_any": _reuse_as_json(found.without_any, found),
        "difference": None if found.difference is None else dataclasses.asdict(found.difference),
        "further": [dataclasses.asdict(each) for each in found.further],
        "num_further": found.num_further,
        "by_order": found.by_order,
        "breakpoints": [
            {"section": name, "end_token": end, "reached": reached}
            for name, end, reached in found.breakpoints
        ],
        "notes": list(found.notes),
    }


def _reuse_as_json(reuse: Reuse, found: Comparison) -> dict[str, Any]:
    share = reuse.whole_tokens / found.prompt_tokens if found.prompt_tokens else 0.0
    return {"tokens": reuse.tokens, "blocks": reuse.blocks, "share": round(share, 4)}


def _show(found: Comparison, names: tuple[str, str], why_plain: str | None, block_tokens: int) -> None:
    console = _console()
    page = Page(console)
    console.print(
        Text.assemble(
            f"{names[0]} after {names[1]}: ",
            (_told(found.shared, found.prompt_tokens), "bold"),
            f" can be reused, in {_blocks(found.shared, 'whole block')} of {block_tokens}.",
        )
    )
    if found.difference is None:
        console.print("Nothing breaks it: one of the prompts is the beginning of the other.")
    else:
        page.difference(dataclasses.asdict(found.difference), names)
        mended = "With these in the same order" if found.by_order else "With that part at the end"
        _show_gain(console, mended, found.without_first, found)
    if found.further:
        places = "one more place" if found.num_further == 1 else f"{found.num_further:,} more places"
        console.print(f"Behind it they differ in {places}:")
        page.further([dataclasses.asdict(each) for each in found.further], found.num_further)
        mended = "With all of this mended" if found.by_order else "With all of these parts at the end"
        _show_gain(console, mended, found.without_any, found)
    for name, end, reached in found.breakpoints:
        verdict = "equal up to there" if reached else "behind the difference, so it is not read"
        console.print(Text(f"Cache breakpoint after {name}, token {end:,}: {verdict}."))
    if why_plain is not None:
        console.print(Text(f"Compared in a plain layout of kvtide's own, because {why_plain}."))
    page.notes(found.notes)


def _console() -> Console:
    """Wraps at words on a terminal, and not at all into a file."""
    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal
    return console


def _show_gain(console: Console, when: str, reuse: Reuse, found: Comparison) -> None:
    console.print(f"{when}: about {_told(reuse, found.prompt_tokens)}, {_blocks(reuse, 'block')}.")


def _blocks(reuse: Reuse, word: str) -> str:
    return f"{reuse.blocks:,} {word}{'' if reuse.blocks == 1 else 's'}"


def _told(reuse: Reuse, prompt_tokens: int) -> str:
    share = 100 * reuse.whole_tokens / prompt_tokens if prompt_tokens else 0.0
    return f"{reuse.whole_tokens:,} of {prompt_tokens:,} tokens ({share:.1f} %)"
