"""Who runs out of memory is told what to lower, and what it is now."""

import errno

import pytest
import torch

from engine import EngineConfig
from engine.model import load_model
from engine.out_of_memory import OutOfMemory, lower, memory_for, pool_setting
from tests.engine.engines import GREEDY, engine_on, open_engine, tokens

CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.00 GiB is free."
)
TOO_MUCH = "1024TiB"  # more than 47 bits of addresses reach: no machine gives it, however it overcommits


def raises(error: Exception):
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        CUDA,
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_way_of_running_out_is_one_error(error):
    with (
        pytest.raises(OutOfMemory, match=r"^there is no memory for a cat: lower the bed \(") as raised,
        memory_for("a cat", "lower the bed"),
    ):
        raise error
    assert raised.value.__cause__ is error


def test_the_cpus_way_too():
    with (
        pytest.raises(OutOfMemory, match="you tried to allocate 1125899906842624 bytes"),
        memory_for("a cat", "lower the bed"),
    ):
        torch.empty(1 << 50, dtype=torch.uint8)


def test_of_torchs_page_the_two_sentences_that_matter_are_shown():
    with (
        pytest.raises(OutOfMemory, match=r"\(CUDA out of memory. Tried to allocate 2.00 GiB\)$"),
        memory_for("a cat", "lower the bed"),
    ):
        raise CUDA


@pytest.mark.parametrize(
    "error", [RuntimeError("the GPU has fallen off the bus"), OSError(errno.EIO, "bad disk"), KeyError("x")]
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as raised, memory_for("a cat", "lower the bed"):
        raise error
    assert raised.value is error


def test_advice_names_settings_and_their_values():
    config = EngineConfig(host_bytes="1GiB", max_num_seqs=3)
    assert lower(config, "host_bytes") == "lower host_bytes (now 1.0 GiB)"
    assert lower(config, "device_bytes", "device_memory_fraction", "max_num_seqs") == (
        "lower device_bytes (now auto), device_memory_fraction (now 0.9) or max_num_seqs (now 3)"
    )


@pytest.mark.parametrize(
    ("device", "device_bytes", "setting"),
    [
        ("cuda", "auto", "device_memory_fraction"),
        ("cuda", "1GiB", "device_bytes"),
        ("cpu", "auto", "device_bytes"),
    ],
)
def test_the_setting_that_makes_the_pool_is_named(device, device_bytes, setting):
    assert pool_setting(EngineConfig(device_bytes=device_bytes), device) == setting


def test_weights_that_do_not_fit(tiny_llama_dir, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedModel.to", raises(CUDA))
    with pytest.raises(
        OutOfMemory, match=r"use a smaller dtype \(now float32\) or a smaller model"
    ) as raised:
        load_model(tiny_llama_dir)
    assert f"the weights of '{tiny_llama_dir}'" in str(raised.value)


def test_a_pool_that_does_not_fit(tiny_llama_dir):
    with pytest.raises(OutOfMemory, match=r"for a pool of \d+ blocks: lower device_bytes \(now 1024.0 TiB\)"):
        open_engine(tiny_llama_dir, device_bytes=TOO_MUCH)


def test_a_first_step_that_does_not_fit_beside_the_pool(tiny_llama_dir, monkeypatch):
    monkeypatch.setattr("engine.model.Model.forward", raises(CUDA))
    with pytest.raises(OutOfMemory, match=r"lower device_bytes \(now 16.0 MiB\)"):
        open_engine(tiny_llama_dir)


def test_host_memory_that_does_not_fit(tiny_llama_dir):
    with pytest.raises(OutOfMemory, match=r"for 1024.0 TiB of host memory: lower host_bytes \(now 1024.0 Ti"):
        open_engine(tiny_llama_dir, host_bytes=TOO_MUCH)


def test_a_step_without_memory_ends_its_requests_with_advice_and_the_engine_goes_on(
    tiny_llama_dir, reference, monkeypatch
):
    prompts = [tokens(0, 100), tokens(1, 100)]
    with engine_on(tiny_llama_dir, max_num_seqs=1) as engine:
        sound, failures = engine.model.forward, [CUDA]

        def forward(*given: object) -> torch.Tensor:
            if failures:
                raise failures.pop()
            return sound(*given)

        monkeypatch.setattr(engine.model, "forward", forward)
        failed, served = (engine.submit(prompt, GREEDY) for prompt in prompts)
        result = failed.result(60)
        assert result.finish_reason == "error"
        assert result.error == (
            "engine.out_of_memory.OutOfMemory: there is no memory for a step: lower device_bytes (now 16.0 MiB), "
            "max_batch_tokens (now 128) or max_num_seqs (now 1) (CUDA out of memory. Tried to allocate 2.00 GiB)"
        )
        assert served.result(60).token_ids == reference(prompts[1])
        engine.check()
        assert engine.generate(prompts[0], GREEDY).token_ids == reference(prompts[0])


def test_drawing_without_memory_is_the_steps_failure_too(tiny_llama_dir, monkeypatch):
    with engine_on(tiny_llama_dir) as engine:
        monkeypatch.setattr("engine.sampling.choose", raises(CUDA))
        assert "lower device_bytes" in engine.generate(tokens(0, 20), GREEDY).error
        monkeypatch.undo()
        assert engine.generate(tokens(0, 20), GREEDY).finish_reason == "length"


def test_host_memory_that_is_nearly_all_there_is_gets_a_warning(tiny_llama_dir, monkeypatch, caplog):
    """It is taken page by page while the engine serves: nobody could refuse it then."""
    monkeypatch.setattr("engine.tiers.available_memory_bytes", lambda: 17 << 20)
    open_engine(tiny_llama_dir, host_bytes="16MiB").close()
    assert "host_bytes is 16.0 MiB, and 17.0 MiB of memory are left" in caplog.text
    caplog.clear()
    open_engine(tiny_llama_dir, host_bytes="15MiB").close()
    assert "host_bytes" not in caplog.text
