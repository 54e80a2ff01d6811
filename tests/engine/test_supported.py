"""A config.json alone says whether a model is served and what its KV costs, in the words of transformers itself."""

import json
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, AttentionInterface
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engine import attention
from engine.families import FAMILIES
from engine.model import random_model
from engine.refused import QUANTISED, REFUSALS, why_refused
from engine.supported import NotServed, check_kind, length_limit, shape_of
from tests.engine.families import CASES, REFUSED
from tests.engine.naive import Driver, tokens

STATED = {"num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size", "model_type"}
"""What every config.json says; of anything else a family has a notion of its own."""


def saved(config: Any, folder: Any) -> dict[str, Any]:
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def test_there_is_a_model_for_each_family():
    assert {case.kind.model_type for case in CASES.values()} == set(FAMILIES)
    assert {kind: family.architecture for kind, family in FAMILIES.items()} == {
        kind: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind] for kind in FAMILIES
    }


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_is_silent_on_something_means_what_transformers_assumes(name, tmp_path):
    """Each key is left out in turn; also of a model so deep that its layers' own rules show."""
    stated = saved(CASES[name].config(), tmp_path)
    kind = CONFIG_MAPPING[stated["model_type"]]
    without_lists = {
        key: value for key, value in stated.items() if key not in {"layer_types", "no_rope_layers"}
    }
    deep = {**without_lists, "num_hidden_layers": 30}
    for facts in (stated, deep, {**deep, "use_sliding_window": True, "sliding_window": 40}):
        for key in [None, *sorted(set(facts) - STATED)]:
            config = {name: value for name, value in facts.items() if name != key}
            theirs = kind.from_dict(config)
            shape = shape_of(config)
            assert shape == shape_of(theirs.to_dict()), key
            assert shape.num_kv_heads == getattr(theirs, "num_key_value_heads", theirs.num_attention_heads)
            assert shape.windows == _windows(theirs), key


def _windows(config: Any) -> tuple[int | None, ...]:
    """What a transformers config says of each layer, once it has filled itself in."""
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    knows_windows = hasattr(
        type(config), "sliding_window"
    )  # else it is a stranger's key, which nothing reads
    window = config.sliding_window if knows_windows and getattr(config, "use_sliding_window", True) else None
    return tuple(window if each == "sliding_attention" else None for each in types)


@pytest.mark.parametrize("name", CASES)
def test_the_windows_are_those_that_transformers_passes_to_each_layer(name, monkeypatch):
    passed = []

    def recorded(*tensors: Any, sliding_window: int | None = None, **more: Any) -> Any:
        passed.append(sliding_window)
        return attention.paged_attention(*tensors, sliding_window=sliding_window, **more)

    model = random_model(CASES[name].config())
    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, recorded)
    driver = Driver(model)
    driver.prefill(driver.row(tokens(1, 20)))
    assert tuple(passed) == model.shape.windows


def test_a_window_that_the_config_does_not_say_is_refused():
    """Before any request: the first forward warms the model up."""
    model = random_model(CASES["mistral"].config())
    model.hf.config.sliding_window = 64
    driver = Driver(model)
    with pytest.raises(ValueError, match="window of 64 tokens is not what the model's config says"):
        model.warm_up(driver.pool)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name(name):
    """Real configs, as transformers writes them; its sentence is that of its kind."""
    config = REFUSED[name].config()
    with pytest.raises(NotServed) as refused:
        check_kind(config)
    assert str(refused.value) == f"{name} is not served: {REFUSED[name].refusal.why}"


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.why[:40])
def test_each_kind_of_refusal_has_a_model_that_meets_it(refusal):
    assert any(case.refusal is refusal for case in REFUSED.values())
    for model_type in refusal.model_types:
        assert why_refused({"model_type": model_type}) == refusal.why, "its name says as much as its config"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("vision_config", "prompts of text"),
        ("is_encoder_decoder", "encoder-decoder"),
        ("mamba_d_state", "recurrent state"),
        ("kv_lora_rank", "latent"),
        ("attn_logit_softcapping", "soft cap"),
        ("alibi", "ALiBi"),
        ("use_bidirectional_attention", "both directions"),
    ],
)
def test_an_unknown_model_is_refused_for_what_its_config_says(key, words):
    """As is a known one that says so."""
    for model_type in ("brand_new", "gemma3_text"):
        with pytest.raises(NotServed, match=words):
            check_kind({"model_type": model_type, key: 7})
    with pytest.raises(NotServed, match="recurrent state"):
        check_kind({"model_type": "brand_new", "layer_types": ["full_attention", "linear_attention"]})


def test_what_nothing_is_known_of_is_refused_too():
    with pytest.raises(
        NotServed, match=r"NewForCausalLM is not served: its family, new, has not been tried; .* llama,"
    ):
        check_kind({"model_type": "new", "architectures": ["NewForCausalLM"]})
    with pytest.raises(NotServed, match=r"LlamaForSequenceClassification .* only LlamaForCausalLM is"):
        check_kind({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]})
    with pytest.raises(ValueError, match="names no model_type"):
        check_kind({"architectures": ["LlamaForCausalLM"]})


@pytest.mark.parametrize("method", [*QUANTISED, "bitsandbytes"])
def test_quantised_weights_are_refused_by_their_method(method):
    config = {**CASES["llama"].config().to_dict(), "quantization_config": {"quant_method": method}}
    with pytest.raises(NotServed, match=rf"(?i)llama is not served: .*{method}.*use the original weights"):
        check_kind(config)


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}),
        ("phi3", {"rope_scaling": {"type": "su"}}),
        (
            "gemma3_text, window in some layers",
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}},
        ),
    ],
)
def test_a_rotary_embedding_that_depends_on_the_batch_is_refused(name, rope):
    with pytest.raises(NotServed, match="depends on the longest sequence in the batch"):
        check_kind({**CASES[name].config().to_dict(), **rope})


def test_one_that_was_not_tried_is_refused():
    rope = {"rope_type": "proportional"}
    with pytest.raises(
        NotServed, match="'proportional': it has not been tried; tried are default, linear, llama3, yarn"
    ):
        check_kind({**CASES["llama"].config().to_dict(), "rope_parameters": rope})


@pytest.mark.parametrize("missing", sorted(STATED - {"model_type"}))
def test_a_config_without_its_sizes_gets_a_sentence(missing):
    config = CASES["llama"].config().to_dict()
    del config[missing]
    with pytest.raises(ValueError, match=f"does not say {missing}"):
        shape_of(config)


def test_a_window_that_shows_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1 token, not 0"):
        shape_of(CASES["mistral"].config().to_dict() | {"sliding_window": 0})


def test_the_length_is_the_models_or_less():
    shape = shape_of(CASES["llama"].config().to_dict())
    assert [length_limit(shape, n) for n in (None, 1, 100, 4096)] == [4096, 1, 100, 4096]
    for wrong in (0, 9000):
        with pytest.raises(ValueError, match=f"from 1 to the model's 4096, got {wrong}"):
            length_limit(shape, wrong)
