"""Requests as an application sends them, for an engine that the page then shows."""

from engine import SamplingParams
from engine.engine import Engine

SYSTEM = (
    "You are the assistant of Harbour Books, a shop for nautical literature. Answer in two sentences, name the shelf, "
    "and never promise a delivery date. If a title is not in the list below, say so and offer the closest one. "
)
SHELVES = "".join(
    f"Shelf {number}: {title}. "
    for number, title in enumerate(
        (
            "Knots and splices", "Tide tables of the North Sea", "Celestial navigation", "Small boat repair", "Lighthouses",
            "Weather at sea", "The log of a coaster", "Charts and how to read them", "Radio for sailors", "Ropes and rigging",
        ),
        start=1,
    )
)  # fmt: skip
QUESTIONS = (
    "Do you have anything on knots?",
    "Where are the tide tables?",
    "I would like a book for a beginner who wants to read charts.",
    "Is there something about lighthouses in Brittany?",
)
SHORT = SamplingParams(max_tokens=6, ignore_eos=True)


def conversation(stamp: str, question: str) -> list[dict[str, str]]:
    """A chat whose system message states the time before what never changes, as many do."""
    system = f"{SYSTEM}The time is {stamp}. {SHELVES}"
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def serve_some(engine: Engine) -> None:
    """Ask until something lies in each tier: the same questions at several times, and again after room was needed."""
    for stamp in ("2026-11-29 09:00:00", "2026-11-29 09:05:00", "2026-11-29 09:05:00", "2026-11-29 09:10:00"):
        for question in QUESTIONS:
            engine.generate(conversation(stamp, question), SHORT)
    engine.flush()
    engine.demote("disk")
    engine.generate(conversation("2026-11-29 09:05:00", QUESTIONS[0]), SHORT)
    engine.demote("host")
    for stamp in ("2026-11-29 09:05:00", "2026-11-29 09:15:00"):
        engine.generate(conversation(stamp, QUESTIONS[1]), SHORT)
