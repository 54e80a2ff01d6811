"""A conversation that goes on after the process has ended: its earlier turns are found on disk."""

import sys
import tempfile
from pathlib import Path

from engine import Engine, EngineConfig, SamplingParams

SAYS = [
    "I would like to plant an apple tree. What should I know about the place, the soil, and the time of the year?",
    "The garden lies north of the house and is in the shade until noon. The soil is heavy and wet. Does that matter?",
    "My neighbour says that I need two trees, or there will be no apples. Is that so, and which two would go together?",
]


def talk(folder: Path, chat: list[dict[str, str]], says: list[str]) -> list[str]:
    """Say these things one after the other, in a process of its own as it were, and add them to the chat."""
    told = []
    config = EngineConfig(device_bytes="128MiB", host_bytes="64MiB", disk_path=folder, disk_min_free_bytes=0)
    with Engine("demo", config) as engine:
        for each in says:
            chat.append({"role": "user", "content": each})
            with engine.stream(chat, SamplingParams(max_tokens=24)) as stream:
                chat.append({"role": "assistant", "content": "".join(delta.text for delta in stream)})
            usage = stream.handle.result().usage
            found = {tier: tokens for tier, tokens in usage.cached_by_tier.items() if tokens}
            told.append(f"{usage.cached_tokens / usage.prompt_tokens:.0%} of {usage.prompt_tokens} {found}")
    return told


with tempfile.TemporaryDirectory() as folder:
    chat: list[dict[str, str]] = []
    told = talk(Path(folder), chat, SAYS[:2])
    print("The engine is closed. The chat pauses, and then goes on.", file=sys.stderr)
    told += talk(Path(folder), chat, SAYS[2:])
for turn, line in enumerate(told, 1):
    print(f"turn {turn}: {line} tokens came from the cache")
