"""Recorded requests for the tests of `kvtide explain`, the command, and an answer as the endpoint gives it."""

from typer.testing import CliRunner

from kvstore.reasons import MissReason
from kvstore.reports import Difference, DifferenceKind, Explanation, Part
from tiering.cli.app import app

RULES = "You answer briefly, and never guess; you say where each figure is from. " * 8
TOOLS = [
    {"name": f"tool_{number}", "description": "Does it.", "input_schema": {"type": "object"}}
    for number in range(3)
]


def explain(*arguments: object):
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def chat(day, *more: object):
    return {
        "model": "m",
        "messages": [
            {"role": "system", "content": f"Today is {day}. {RULES}"},
            {"role": "user", "content": "How high is the tower?"},
            *more,
        ],
    }


def code_client(cch, *more: object):
    return {
        "model": "m",
        "system": [
            {
                "type": "text",
                "text": f"x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch={cch};",
            },
            {"type": "text", "text": RULES, "cache_control": {"type": "ephemeral"}},
        ],
        "tools": TOOLS,
        "messages": [{"role": "user", "content": "Look at main.py."}, *more],
    }


ANSWER = Explanation(
    prompt_tokens=100,
    block_tokens=16,
    parts=(
        Part(start_token=0, end_token=32, tier="host"),
        Part(start_token=32, end_token=48, reason=MissReason.DIFFERS),
        Part(
            start_token=48,
            end_token=96,
            tier="disk",
            reason=MissReason.EVICTED,
            ago_s=12.0,
            detail="for \x1broom",
        ),
        Part(start_token=96, end_token=100, reason=MissReason.NOT_A_WHOLE_BLOCK),
    ),
    difference=Difference(
        at_token=33,
        before_ids=(1,),
        asked_ids=(2, 3),
        cached_ids=(4,),
        before="Today is ",
        asked="Friday.",
        cached="Monday.",
        kind=DifferenceKind.TIMESTAMP,
        advice="Put it at the end.",
        section="system message",
    ),
    notes=("it was here before",),
)
