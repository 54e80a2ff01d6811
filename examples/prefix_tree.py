"""What a cache holds is a tree: here are two system prompts, and what grew from each, drawn from what the engine says."""

from engine import Engine, EngineConfig, SamplingParams

A = "You are a guide to the museum. Keep to what the catalogue says, name the room, and be brief. " * 4
B = "Translate each line into the language of sailors, one line at a time, and add nothing of your own. " * 3
CLOCKS = "Room 4: clocks. The oldest is of 1581 and has one hand. The newest was never finished. " * 5
MAPS = "Room 7: maps. On the largest, which covers a wall, the island is twice as long as it is. " * 4
SHOTS = (
    "Line: It rains.\nSailors: She's weeping.\n\nLine: We are late.\nSailors: We've lost the tide.\n\n" * 2
)

TREE = {
    "system A": (A, {"catalogue of clocks": (CLOCKS, {}), "catalogue of maps": (MAPS, {})}),
    "system B": (B, {"examples": (SHOTS, {})}),
}
ASKED = [
    A + CLOCKS + "Which clock is the oldest?",
    A + CLOCKS + "Which was never finished?",
    A + MAPS + "How large is the largest map?",
    B + SHOTS + "Line: I am hungry.\nSailors:",
    B + SHOTS + "Line: Good night.\nSailors:",
]


def draw(engine: Engine, tree: dict, before: str = "", above: int = 0, indent: str = "") -> None:
    """One line for each branch: how many of its tokens are cached, and where."""
    for number, (name, (text, below)) in enumerate(tree.items(), 1):
        found = engine.lookup(before + text + " ?")
        here = {tier: tokens for tier, tokens in found.items() if tokens}
        last = number == len(tree)
        print(f"{indent}{'└─' if last else '├─'} {name}: {sum(found.values()) - above} tokens, {here}")
        draw(engine, below, before + text, sum(found.values()), indent + ("   " if last else "│  "))


with Engine("demo", EngineConfig(device_bytes="128MiB", host_bytes="64MiB")) as engine:
    results = engine.generate(ASKED, SamplingParams(max_tokens=6, stop="\n"))
    engine.demote("host")
    engine.warm(A + CLOCKS)  # this branch is wanted again
    draw(engine, TREE)
cached = sum(result.usage.cached_tokens for result in results)
print(
    f"{cached / sum(result.usage.prompt_tokens for result in results):.0%} of the prompts came from the cache"
)
