"""What was measured, for machines and for people."""

import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from benchmarks.peers.ttft.rounds import Row
from benchmarks.peers.ttft.systems import ROWS, Measured
from tiering.cli.markdown import table


def summary(rows: Iterable[Row], systems: dict[str, Measured]) -> list[dict[str, Any]]:
    """A dict for each row; one without figures says why."""
    found = []
    for row in rows:
        system = systems[row.system]
        found.append(
            {
                "system": row.system,
                "title": system.title,
                "row": row.row,
                "own_name": system.rows[row.row],
                "ttft_s": statistics.median(row.ttft_s) if row.ttft_s else None,
                "ttft_s_all": row.ttft_s,
                "cached_tokens": row.cached_tokens,
                "token_ids": row.token_ids,
                "place": row.place,
                "reason": row.reason,
            }
        )
    return found


class Gate(NamedTuple):
    """A ratio of two rows' times, round by round, and what its median must be."""

    name: str
    above: tuple[str, str]
    below: tuple[str, str]
    at_most: float | None = None
    at_least: float | None = None


_MEMORY, _DISK, _DROPPED = "memory", "disk", "disk_dropped"

GATES = (
    Gate(
        "kvtide from the device by vLLM from memory, float32",
        ("kvtide", _MEMORY),
        ("vllm", _MEMORY),
        at_most=1.0,
    ),
    Gate(
        "kvtide from the device by vLLM from memory, bfloat16",
        ("kvtide_bf16", _MEMORY),
        ("vllm_bf16", _MEMORY),
        at_most=1.0,
    ),
    Gate(
        "kvtide from the device by vLLM from memory, each in its own choice",
        ("kvtide", _MEMORY),
        ("vllm_bf16", _MEMORY),
        at_most=1.0,
    ),
    Gate(
        "llama.cpp from its disk cache by kvtide from disk",
        ("llamacpp", _DISK),
        ("kvtide", _DISK),
        at_least=3.0,
    ),
    Gate(
        "llama.cpp from its disk cache by kvtide from disk, page cache dropped",
        ("llamacpp", _DROPPED),
        ("kvtide", _DROPPED),
        at_least=3.0,
    ),
)


def gates(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each gate with its value; one whose rows have no figures does not hold."""
    times = {(row["system"], row["row"]): row["ttft_s_all"] for row in rows}
    return [_judged(gate, times.get(gate.above, []), times.get(gate.below, [])) for gate in GATES]


def _judged(gate: Gate, above: list[float], below: list[float]) -> dict[str, Any]:
    ratios = [one / other for one, other in zip(above, below, strict=False)]
    value = statistics.median(ratios) if ratios else None
    bound = gate.at_most if gate.at_most is not None else gate.at_least
    assert bound is not None, "a gate has a bound"
    holds = value is not None and (value <= bound if gate.at_most is not None else value >= bound)
    return {
        "name": gate.name,
        "value": value,
        "bound": bound,
        "unit": "times, at most" if gate.at_most is not None else "times, at least",
        "holds": holds,
        "rounds": ratios,
    }


# --- for people -------------------------------------------------------------------------------------------------------


METHOD = """\
TTFT is the time from the call to the arrival of the first token, greedy, in the process that calls; the median of the rounds,
and the least and the most. The prompt is {prefix_tokens} tokens of real text and {suffix_tokens} more, given as token ids; each
round has a suffix that was never seen, the same for all rows. Each system is a process of its own, with {threads} threads on the
same cores, and is stopped (SIGSTOP) while another is measured; rows that are compared come one after the other. One round before
the others warms up."""

UNEQUAL = """\
What is not equal, and should be known:

* **Weights.** kvtide and vLLM load the safetensors that kvtide converted from the GGUF file, dequantised to float32. llama.cpp
  loads the GGUF itself, computes with its Q4_1 weights, and so reads a sixth of the bytes. kvtide and vLLM are measured in float32,
  which kvtide chooses by itself on a CPU, and in bfloat16, which vLLM chooses for this model: it gains where the processor has
  instructions for it, as those with avx512_bf16 do. So first tokens may differ.
* **KV.** kvtide keeps it in bfloat16, vLLM in the type that it computes in, llama.cpp in float16. From disk llama.cpp reads the
  state of the context and, beside it, the logits of its last batch: llama-cpp-python keeps both. kvtide's blocks are compressed
  and their checksums are compared; the others read what is there.
* **vLLM's cache in memory** is its prefix cache, with blocks of 128 tokens. Its own tiers below, the OffloadingConnector and the
  tiers on disk under it, refuse to work without a GPU. What can be measured of it from disk is its ExampleConnector, which vLLM
  calls a debug implementation: it finds only prompts whose whole blocks are those of an earlier one. It is measured because
  nothing else runs, and no gate is on it.
* **vLLM has three processes** (caller, engine, worker) by default, and the prompt passes between them; kvtide and llama.cpp
  compute in the process that calls. vLLM compiles its model when it starts. Of its dependencies torchvision, torchaudio and
  torchcodec were taken out, which the index has for CUDA only; tcmalloc and Intel's OpenMP, which it recommends to preload, were
  not.
* **llama-cpp-python** was built from its source with the defaults, for this processor. Its defaults are kept: no flash attention,
  batches of 512. `memory` is the prefix in its context, which only one conversation has at a time; `host` is its LlamaRAMCache,
  `disk` its LlamaDiskCache. Its state was computed once and put back for every row.
* **kvtide** answers with requests that read the cache and add nothing to it, so that the suffix stays unseen; `memory` is its
  device tier, which on a CPU is memory too."""


def report(figures: dict[str, Any]) -> str:
    """The figures, and what one has to know to read them."""
    config, machine = figures["config"], figures["environment"]
    run = (
        f"`{figures['command']}`, commit {machine['commit']}, {machine['cpu']} ({config['bf16']}), {len(config['cores'])} cores, no GPU, "
        f"Python {machine['python']}; {figures['took_s']} s."
    )
    sections = [
        "# Time to first token beside vLLM and llama.cpp",
        run,
        METHOD.format(**config),
        _times(figures["rows"], config["rounds"]),
        "Rows: " + "; ".join(f"`{name}`: {what}" for name, what in ROWS.items()) + ".",
        _gates(figures["gates"]),
        _first_tokens(figures["rows"]),
        _systems(figures),
        UNEQUAL,
    ]
    return "\n\n".join(sections) + "\n"


def _times(rows: list[dict[str, Any]], rounds: int) -> str:
    cold_s = {row["system"]: row["ttft_s"] for row in rows if row["row"] == "cold"}
    cold_s |= {"kvtide_restart": cold_s.get("kvtide"), "vllm_example": cold_s.get("vllm")}
    lines = []
    for row in sorted(rows, key=lambda row: list(ROWS).index(row["row"])):
        cold = cold_s.get(row["system"])
        times = row["ttft_s_all"]
        lines.append(
            {
                "row": row["row"],
                "system": row["title"],
                "its name for it": row["own_name"],
                "TTFT, ms": _ms(row["ttft_s"]) if times else "-",
                "least to most": f"{_ms(min(times))} to {_ms(max(times))}" if times else "-",
                "cold by it": f"{cold / row['ttft_s']:.1f}" if cold and times else "-",
                "files, MB": _mb(row["place"].get("files_bytes")),
                "note": row["reason"] or ("" if len(times) == rounds else "not measured"),
            }
        )
    return table(lines, list(lines[0]))


def _gates(judged: list[dict[str, Any]]) -> str:
    lines = [
        {
            "gate": gate["name"],
            "median of the rounds": "-" if gate["value"] is None else f"{gate['value']:.2f}",
            "bound": f"{gate['unit'].split(', ')[1]} {gate['bound']:g}",
            "holds": "yes" if gate["holds"] else "no",
            "rounds": ", ".join(f"{ratio:.2f}" for ratio in gate["rounds"]),
        }
        for gate in judged
    ]
    return table(lines, list(lines[0]))


def _first_tokens(rows: list[dict[str, Any]]) -> str:
    """First tokens by system: those of one should be the same in all its rows."""
    told: dict[str, list[str]] = {}
    for row in rows:
        if row["token_ids"]:
            ids = ", ".join(map(str, row["token_ids"]))
            told.setdefault(f"{row['title']}: {ids}", []).append(row["row"])
    lines = [f"* {ids} ({', '.join(where)})" for ids, where in told.items()]
    return "\n".join(["First token of each round:", "", *lines])


def _systems(figures: dict[str, Any]) -> str:
    same = figures["same_token_ids_by_own_tokenizer"]
    lines = ["Systems:", ""]
    for name, system in figures["systems"].items():
        versions = ", ".join(f"{package} {number}" for package, number in system["versions"].items())
        settings = ", ".join(f"{key} {value}" for key, value in system["settings"].items())
        tokenizer = {
            True: " Its own tokenizer makes the same token ids.",
            False: " Its own tokenizer differs.",
        }
        lines.append(
            f"* **{system['title']}**: {system['computes']}. {versions}; {settings}; started in {system['start_s']} s."
            f"{tokenizer.get(same.get(name), '')}"
        )
    return "\n".join(lines)


def _ms(time_s: float) -> str:
    return f"{time_s * 1e3:,.0f}"


def _mb(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 1e6:,.0f}"
