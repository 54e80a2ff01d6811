"""Retrieval: a document is put before each question about it. It is computed once, and outlives a crowded device."""

import tempfile

from engine import Engine, EngineConfig, SamplingParams

DOCUMENT = """The lock at Weissach was built in 1874, when the canal was deepened for barges of two hundred tons. It is
forty-one metres long, six and a half wide, and lifts a boat by three metres and twenty. The gates are of oak; those in use
were hung in 1986, after a coal barge had rammed the upper ones on a foggy morning in November. To pass takes about
eighteen minutes: nine to fill the chamber, four for boats to leave and enter, and five to empty it. From April to October
the keeper works from seven to nineteen o'clock; in winter the lock is opened on request, a day ahead. Until 1931 the keeper
also collected a toll, two pfennigs a ton, and kept an inn in the house beside the lock, of which only the sign remains.
Rowing boats are carried around on the left bank, where a ramp was laid in 2003."""
QUESTIONS = [
    "In which year was the lock built?",
    "How long is the chamber?",
    "What are the gates made of?",
    "What was the toll?",
]
OTHERS = [f"Chapter {number}. " + "On this day nothing of note was seen. " * 40 for number in range(4)]

GREEDY = SamplingParams(max_tokens=10, stop="\n")
asked = [f"{DOCUMENT}\n\nQuestion: {question}\nAnswer:" for question in QUESTIONS]
with tempfile.TemporaryDirectory() as folder:
    config = EngineConfig(device_bytes="10MiB", host_bytes="8MiB", disk_path=folder, disk_min_free_bytes=0)
    with Engine("demo", config) as engine:
        results = []
        for question, other in zip(asked, OTHERS, strict=True):
            results.append(engine.generate(question, GREEDY))
            engine.warm(other)  # other work, which takes the device for itself

for question, result in zip(QUESTIONS, results, strict=True):
    found = {tier: tokens for tier, tokens in result.usage.cached_by_tier.items() if tokens}
    print(f"{question} {result.text.strip()}   {found}")
cached = sum(result.usage.cached_tokens for result in results)
print(
    f"{cached / sum(result.usage.prompt_tokens for result in results):.0%} of the prompts came from the cache"
)
