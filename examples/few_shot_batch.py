"""Sorting texts by example: the examples are the same in every prompt, and computed once."""

from engine import Engine, EngineConfig, SamplingParams

EXAMPLES = [
    ("The soup was cold and the waiter rude.", "bad"),
    ("We stayed for three hours and would have liked to stay longer.", "good"),
    ("Half of the menu had run out by eight.", "bad"),
    ("The bread alone is worth the journey.", "good"),
    ("They charged us for water that we had sent back.", "bad"),
    ("Our daughter asks every day when we go again.", "good"),
    ("The chairs wobble, the music roars, the bill astonishes.", "bad"),
    ("A small room, six tables, and everything on them right.", "good"),
]
TEXTS = [
    "I have not eaten such fish since my grandmother died.",
    "The salad came with a snail that was not on the menu.",
    "Friendly people, fair prices, a view of the harbour.",
    "We left before the main course, hungry.",
    "The cook came out to ask how we liked it, and we told him for ten minutes.",
    "Never again.",
]

shots = "".join(f"Review: {text}\nVerdict: {verdict}\n\n" for text, verdict in EXAMPLES)
prompts = [f"{shots}Review: {text}\nVerdict:" for text in TEXTS]
with Engine("demo", EngineConfig(device_bytes="256MiB", host_bytes=0)) as engine:
    results = engine.generate(prompts, SamplingParams(max_tokens=4, stop="\n"))

for text, result in zip(TEXTS, results, strict=True):
    print(f"{result.text.strip():5} {text}")
cached = sum(result.usage.cached_tokens for result in results)
print(
    f"{cached / sum(result.usage.prompt_tokens for result in results):.0%} of the prompts came from the cache"
)
