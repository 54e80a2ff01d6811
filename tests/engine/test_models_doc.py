"""docs/models.md is what the tests' own tables say.

After a change: KVTIDE_WRITE_DOCS=1 python -m pytest tests/engine/test_models_doc.py
"""

import os
from pathlib import Path

from engine.families import FAMILIES
from engine.gguf_header import MODEL_TYPES
from engine.refused import QUANTISED, REFUSALS
from engine.supported import shape_of
from tests.engine.families import CASES, REFUSED

DOC = Path(__file__).parents[2] / "docs" / "models.md"

HEAD = """\
# Models

<!-- Written by tests/engine/test_models_doc.py from what the tests run. Do not edit; after a change:
     KVTIDE_WRITE_DOCS=1 python -m pytest tests/engine/test_models_doc.py -->

`kvtide models CONFIG_OR_DIR` says of a config.json, a directory with one, or a GGUF file whether the model is served, and
what a token and a block of its KV cost; it needs no weights. It exits with 0 if the model is served, 1 if not, 2 if nothing
can be read; `--json` gives one object.

## Served
"""

TESTED = """
Every variant named is a model of three layers with random weights, compared with transformers' own `generate` and forward:
greedy tokens of a cold prompt in chunks, of a suffix over another prompt's blocks, and of prompts of different lengths
packed and decoded together; logits within 1e-4 in float32. Where deterministic mode is offered, each of its variants gives
the same bits of KV and logits in all these ways, with two threads and with five. Real weights: the demo's model (llama).

A sliding window is a mask over a layer's attention; blocks are cached, found and loaded whole, over all layers, whether or
not a layer can still see them. Rotary embeddings of types default, linear, llama3 and yarn are served; "dynamic" and
"longrope" turn keys by the longest sequence in the batch, so that a cached key would be wrong later, and are refused.

An adapter (LoRA) is to be merged into its model's weights before: `merge_and_unload()` of peft, then `save_pretrained()`. A
model that is handed over as an object stays as it is then: what hooks it or replaces a part or weight of it later is noticed at
the next step where a kernel of ours computes it, whose requests end with an error; elsewhere it has its effect, on top of KV that was cached
without it.

A GGUF file is converted once, into float32 safetensors below ~/.cache/kvtide; what transformers would drop from it without
a word (a scaled rotary embedding, a window of another family) is refused.

## Refused

At load, by name, before any weights are read; the sentence goes on after "NAME is not served: ".
"""

QUANTISED_HEAD = """
And by how the weights are stored:
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def windows_of(model_type: str) -> str:
    """What the tested variants have."""
    kinds = set()
    for case in CASES.values():
        if case.kind.model_type == model_type:
            layers = set(shape_of(case.config().to_dict()).windows)
            kinds.add("none" if layers == {None} else "some layers" if None in layers else "every layer")
    return " or ".join(sorted(kinds, key=["none", "some layers", "every layer"].index))


def served() -> str:
    rows = []
    for model_type, family in FAMILIES.items():
        variants = [case for case in CASES.values() if case.kind.model_type == model_type]
        shape = shape_of(variants[0].config().to_dict())
        rows.append(
            [
                model_type,
                family.architecture,
                windows_of(model_type),
                "yes" if shape.not_deterministic is None else f"no: {shape.not_deterministic}",
                "yes" if model_type in MODEL_TYPES.values() else "no",
                "; ".join(case.what or "plain" for case in variants),
            ]
        )
    head = ["family", "architecture", "sliding window", "deterministic mode", "GGUF", "tested variants"]
    return table(head, rows)


def refused() -> str:
    rows = [
        [", ".join(name for name, case in REFUSED.items() if case.refusal is refusal), refusal.why]
        for refusal in REFUSALS
    ]
    return table(["such as", "because"], rows)


def quantised() -> str:
    return table(["method", "because"], [[method.upper(), why] for method, why in QUANTISED.items()])


def written() -> str:
    return "\n".join([HEAD, served(), TESTED[1:], refused(), QUANTISED_HEAD[1:], quantised()])


def test_the_document_says_what_the_tables_say():
    if os.environ.get("KVTIDE_WRITE_DOCS"):
        DOC.write_text(written(), encoding="utf-8")
    assert DOC.read_text(encoding="utf-8") == written(), "see the top of this test for how to write it anew"


def test_every_family_has_a_variant_and_every_refusal_a_model():
    """Else a row would claim what nothing has shown."""
    assert {case.kind.model_type for case in CASES.values()} == set(FAMILIES)
    assert all(any(case.refusal is refusal for case in REFUSED.values()) for refusal in REFUSALS)
