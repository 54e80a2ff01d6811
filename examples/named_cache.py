"""A long document that shall be ready whenever somebody asks, under a name, also after a restart."""

import tempfile

from engine import Engine, EngineConfig, SamplingParams

DOCUMENT = (
    "Article {}. The keeper of the light writes down each ship that passes, and the hour, and the weather. "
)
HANDBOOK = "".join(DOCUMENT.format(number) for number in range(1, 13))


def open_engine(path: str) -> Engine:
    config = EngineConfig(disk_path=path, disk_bytes="256MiB", disk_min_free_bytes=0)
    return Engine("demo", config, announce=lambda _: None)


def main() -> None:
    with tempfile.TemporaryDirectory() as path:
        with open_engine(path) as engine:
            made = engine.caches.create("handbook", HANDBOOK, ttl="1h")
            print(f"{made.name}: {made.tokens} tokens in {made.blocks} blocks are on disk, and stay")
        with open_engine(path) as engine:
            [found] = engine.caches.list()
            print(
                f"after a restart: {found.name}, {found.tiers['disk']} blocks on disk, {found.lost_blocks} lost"
            )
            result = engine.generate(HANDBOOK + "What is written down?", SamplingParams(max_tokens=8))
            print(f"{result.usage.cached_tokens} of {result.usage.prompt_tokens} tokens were cached")
            engine.caches.delete("handbook")


if __name__ == "__main__":
    main()
