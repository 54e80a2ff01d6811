"""A prompt that could have been served from the cache and was not, and what says why."""

import datetime as dt

from engine import Engine, EngineConfig, SamplingParams

HANDBOOK = (
    "The lantern of the harbour is lit at dusk and put out at dawn. Whoever keeps it writes the hour into the book. "
    * 8
)


def prompt(second: int) -> str:
    """A time before what stays the same: a mistake that many make."""
    now = dt.datetime(2026, 3, 1, 8, 15, second, tzinfo=dt.UTC)
    return f"You keep a lighthouse. It is {now.isoformat()}.\n\n{HANDBOOK}\n\nWhen is the lantern lit?"


def main() -> None:
    with Engine("demo", EngineConfig(), announce=lambda _: None) as engine:
        for second in (0, 7):
            result = engine.generate(prompt(second), SamplingParams(max_tokens=8))
        report = result.cache_report
        print(f"{report.cached_tokens} of {report.prompt_tokens} tokens were cached")
        for reason, num_tokens in report.reasons.items():
            print(f"  {num_tokens} were not: {reason}")
        difference = report.difference
        print(f"asked:  ...{difference.before[-30:]}[{difference.asked}]")
        print(f"cached: ...{difference.before[-30:]}[{difference.cached}]")
        print(f"{difference.kind}: {difference.advice}")
        print(f"{difference.same_after_tokens} tokens behind it would have been found")


if __name__ == "__main__":
    main()
