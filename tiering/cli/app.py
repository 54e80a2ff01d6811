"""The verbs of `kvtide`. What each does lives in a module of its own, imported when the verb is used."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tiering.cli.disk import disk_app

app = typer.Typer(
    name="kvtide",
    help="A tiered prefix cache for LLM inference: device, page-locked host memory, compressed LMDB on disk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench_app = typer.Typer(help="Honest measurements.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

app.add_typer(disk_app, name="disk")

_MODEL = '"demo", a model directory, or random weights: "random" (the demo\'s shape), "random-8b" or "random-tiny".'

TIERS = ("cold", "device", "host", "disk", "disk_dropped", "restart")


class LogFormat(StrEnum):
    """How lines are written."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least that is worth a line."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@app.command()
def demo(
    threads: Annotated[
        int | None, typer.Option(help="Threads of the model; default: torch's choice.", min=1)
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Directory for the disk tier; default: a temporary one.")
    ] = None,
) -> None:
    """Ask a real model about a long document, push the document out tier by tier, restart, and compare."""
    from tiering.cli.demo import run_demo

    _plainly(lambda: run_demo(threads=threads, keep=keep))


@app.command()
def models(
    config: Annotated[Path, typer.Argument(help="A config.json, a directory with one, or a GGUF file.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object, with sizes in bytes.")] = False,
) -> None:
    """Say whether a model is served, and what its KV costs, without its weights. Exits with 0, 1 if not, 2 if unreadable."""
    from tiering.cli.models import run

    _plainly(lambda: run(config, as_json=json))


@app.command()
def plan(
    config: Annotated[Path, typer.Option(help="A config.json, a directory with one, or a GGUF file.")],
    device_memory: Annotated[
        str, typer.Option(help="For KV, beside the model's weights: 80GiB, 80GB or bytes.", metavar="SIZE")
    ],
    host_memory: Annotated[str, typer.Option(help="For KV; 0 is none.", metavar="SIZE")] = "0",
    disk: Annotated[str, typer.Option(help="For KV; 0 is none.", metavar="SIZE")] = "0",
    kv_dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    block_tokens: Annotated[int, typer.Option(help="Tokens of a block: 16 or 32.")] = 16,
    prefill: Annotated[float | None, typer.Option(help="Tokens a second, of short prompts.")] = None,
    host_load: Annotated[
        str | None, typer.Option(help="KV a second from host memory to the device: 20GB.", metavar="SIZE")
    ] = None,
    disk_load: Annotated[
        str | None, typer.Option(help="KV a second from disk to the device: 3GB.", metavar="SIZE")
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            help="What `kvtide bench ttft --json` has written with this model, or an engine keeps in disk_path/v1/costs."
        ),
    ] = None,
    disk_ratio: Annotated[float | None, typer.Option(help="How much smaller records are than KV.")] = None,
    disk_path: Annotated[str, typer.Option(help="Of the recommended configuration.")] = "/var/cache/kvtide",
    trace: Annotated[Path | None, typer.Option(help="Requests, to be simulated with these tiers.")] = None,
    trace_block_tokens: Annotated[int, typer.Option(help="Tokens of a trace's block.", min=1)] = 512,
    simulated: Annotated[Path | None, typer.Option(help="What `kvtide simulate --json` has written.")] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of the device, in any currency: what saved time is worth.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="A new .toml or .json for what is recommended.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object, sizes in bytes.")] = False,
) -> None:
    """Say what a model's KV costs, what tiers of given sizes hold, and from which length on loading beats computing.

    Needs no weights and no torch. See docs/plan.md.
    """
    from tiering.cli.plan import Options, run

    options = Options(
        config=config,
        device_memory=device_memory,
        host_memory=host_memory,
        disk=disk,
        kv_dtype=kv_dtype,
        block_tokens=block_tokens,
        prefill=prefill,
        host_load=host_load,
        disk_load=disk_load,
        measured=measured,
        disk_ratio=disk_ratio,
        disk_path=disk_path,
        trace=trace,
        trace_block_tokens=trace_block_tokens,
        simulated=simulated,
        price_per_hour=price_per_hour,
        write=write,
    )
    _plainly(lambda: run(options, as_json=json))


@app.command("serve")
def serve_model(
    model: Annotated[str, typer.Argument(help='"demo", a model directory, a GGUF file, or a hub name.')],
    host: Annotated[str | None, typer.Option(help="Where to listen; default: 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(help="0 takes a free one; default: 8421.", min=0, max=65535)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help='TOML or JSON, with sections "engine" and "admin".')
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Holds the token of who may do everything; or KVTIDE_ADMIN_TOKEN does."),
    ] = None,
    read_token_file: Annotated[
        Path | None, typer.Option(help="Holds the token of who may look; or KVTIDE_ADMIN_READ_TOKEN does.")
    ] = None,
    show_text: Annotated[
        bool | None, typer.Option(help="Show text of what is cached to who may do everything.")
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="Of lines on standard error.")] = LogFormat.TEXT,
    log_level: Annotated[LogLevel, typer.Option(help="The least that is logged.")] = LogLevel.INFO,
) -> None:
    """Serve a model's cache over HTTP: figures, control and explanations. SIGTERM ends it in order. See docs/serve.md."""
    from tiering.cli.serve import run

    options = {"host": host, "port": port, "show_text": show_text}
    _plainly(
        lambda: run(
            model,
            config=config,
            options=options,
            token_file=token_file,
            read_token_file=read_token_file,
            log_format=log_format.value,
            log_level=log_level.value,
        )
    )


@app.command()
def record(
    url: Annotated[str, typer.Option(help="Of a kvtide that runs, such as http://127.0.0.1:8421.")],
    out: Annotated[
        Path,
        typer.Option(help="A file that is made anew; .zst is compressed.", metavar="FILE", dir_okay=False),
    ],
    for_: Annotated[str, typer.Option("--for", help="90s, 10m or 1h.", metavar="TIME")] = "10m",
    max_bytes: Annotated[
        int | None, typer.Option(help="End once so much has been written, before compression.", min=4096)
    ] = None,
    token_env: Annotated[
        str | None, typer.Option(help="The environment variable that has its token.", metavar="NAME")
    ] = None,
) -> None:
    """Write down what a live kvtide is asked, as a trace for `kvtide simulate`: no tokens, no text. See docs/record.md.

    Exits with 0, 1 if it was ended before its time, 2 if it cannot begin.
    """
    from tiering.cli.record import run, seconds

    _plainly(lambda: run(url, token_env, seconds(for_), max_bytes, out))


@app.command()
def explain(
    earlier: Annotated[
        Path, typer.Argument(help="What was asked before: a recorded request, or several.", metavar="A.json")
    ],
    later: Annotated[
        Path | None,
        typer.Argument(help="What is asked now; without it, the last request of A.json.", metavar="B.json"),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A Hugging Face tokenizer's directory, a tokenizer.json, or demo.", metavar="DIR"),
    ] = None,
    block_tokens: Annotated[int, typer.Option(help="Tokens of a block.", min=1, max=65536)] = 16,
    url: Annotated[
        str | None, typer.Option(help="Ask the kvtide that runs there about the last request of A.json.")
    ] = None,
    token_env: Annotated[
        str | None, typer.Option(help="The environment variable that has its token.", metavar="NAME")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say how much of a request could be reused after another, and what breaks it, without a model.

    Exits with 0 if nothing breaks it, 1 if something does, 2 if the input cannot be used.
    """
    from tiering.cli.explain import run

    _plainly(lambda: run(earlier, later, tokenizer, block_tokens, url, token_env, as_json=json))


@bench_app.command()
def ttft(
    model: Annotated[str, typer.Option(help=_MODEL)] = "demo",
    prefix_tokens: Annotated[
        str, typer.Option(help="Tokens of the shared prefix; several lengths comma-separated.")
    ] = "1024",
    suffix_tokens: Annotated[int, typer.Option(help="Tokens after it, never seen before.", min=1)] = 64,
    tiers: Annotated[str, typer.Option(help="Rows, comma-separated, of: " + ", ".join(TIERS))] = ",".join(
        TIERS
    ),
    repeats: Annotated[int, typer.Option(help="Measurements of each row, interleaved.", min=1)] = 3,
    cold_repeats: Annotated[
        int | None, typer.Option(help="Of cold prompts, if fewer: they take longest.", min=1)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the model; default: torch's choice.", min=1)
    ] = None,
    new_tokens: Annotated[int, typer.Option(help="Tokens generated after each prompt.", min=1)] = 4,
    dtype: Annotated[
        str,
        typer.Option(help="Of weights and computing, transformers' too: auto, float32, bfloat16 or float16."),
    ] = "auto",
    kv_dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    deterministic: Annotated[bool, typer.Option(help="Use the deterministic mode.")] = False,
    reference: Annotated[bool, typer.Option(help="Also time transformers' own forward.")] = True,
    phases: Annotated[
        int, typer.Option(help="Further repeats of each hit that say where its time goes; on a CPU.", min=0)
    ] = 3,
    seed: Annotated[int, typer.Option(help="Of prefix and suffixes.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Where to write the rows, with all settings.")] = None,
) -> None:
    """Time to first token of prefix + suffix, with the prefix in each tier, beside transformers' own forward."""
    from tiering.cli.bench_ttft import run
    from tiering.cli.ttft_setup import TtftBench

    chosen = tuple(tier.strip() for tier in tiers.split(","))
    if unknown := [tier for tier in chosen if tier not in TIERS]:
        raise typer.BadParameter(
            f"unknown tier {unknown[0]!r}; known are {', '.join(TIERS)}", param_hint="--tiers"
        )
    lengths = _lengths(prefix_tokens)
    bench = TtftBench(
        model=model,
        prefix_tokens=lengths,
        suffix_tokens=suffix_tokens,
        tiers=chosen,
        repeats=(repeats,) * len(lengths),
        cold_repeats=cold_repeats or repeats,
        threads=threads,
        new_tokens=new_tokens,
        dtype=dtype,
        kv_dtype=kv_dtype,
        device=device,
        deterministic=deterministic,
        reference=reference,
        phases=phases,
        seed=seed,
    )
    _plainly(lambda: run(bench, json))


@bench_app.command()
def serve(
    model: Annotated[str, typer.Option(help=_MODEL)] = "demo",
    sharing: Annotated[
        str, typer.Option(help="Rows: percent of each prompt that all share, comma-separated.")
    ] = "0,50,90",
    clients: Annotated[int, typer.Option(help="Requests at a time.", min=1)] = 4,
    requests: Annotated[int, typer.Option(help="Requests of each row.", min=1)] = 24,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.", min=1)] = 1000,
    new_tokens: Annotated[int, typer.Option(help="Tokens generated after each prompt.", min=2)] = 16,
    repeats: Annotated[int, typer.Option(help="Measurements of each row, interleaved.", min=1)] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the model; default: torch's choice.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    deterministic: Annotated[bool, typer.Option(help="Use the deterministic mode.")] = False,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Where to write the rows, with all settings.")] = None,
) -> None:
    """Requests a second, and what each waits for, by how much of their prompts clients share."""
    from tiering.cli.bench_serve import ServeBench, run

    bench = ServeBench(
        model=model,
        sharing=_percents(sharing),
        clients=clients,
        requests=requests,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        threads=threads,
        device=device,
        deterministic=deterministic,
        seed=seed,
    )
    _plainly(lambda: run(bench, json))


@app.command()
def simulate(
    traces: Annotated[
        list[Path],
        typer.Argument(
            help="Mooncake, Bailian or LMCache-hash traces, or our own; .zst too. Each is replayed from empty.",
            metavar="TRACE...",
            exists=True,
            dir_okay=False,
        ),
    ],
    device_blocks: Annotated[
        str, typer.Option(help="Of the device; several sizes, comma-separated, are swept.")
    ],
    host_blocks: Annotated[str, typer.Option(help="Of host memory; 0: there is none.")] = "0",
    disk_blocks: Annotated[str, typer.Option(help="Of the disk; 0: there is none.")] = "0",
    policy: Annotated[
        str,
        typer.Option(
            help="Eviction order: lru, fifo, s3fifo, arc, recompute-cost, package.module:Class, or min, the optimum. "
            "Several, comma-separated, are swept."
        ),
    ] = "lru",
    admission: Annotated[
        str,
        typer.Option(
            help="What is kept longer and copied down: adaptive, what is likely to be used again; all, whatever comes; or "
            "package.module:Class. Several, comma-separated, are swept."
        ),
    ] = "adaptive",
    compute_s: Annotated[float, typer.Option(help="Seconds that computing a block takes.", min=0)] = 0.0,
    demote_s: Annotated[
        float, typer.Option(help="Seconds that a copy to host memory takes, a block.", min=0)
    ] = 0.0,
    promote_s: Annotated[float, typer.Option(help="Seconds that a copy back takes, a block.", min=0)] = 0.0,
    read_s: Annotated[float, typer.Option(help="Seconds that a read from disk takes, a block.", min=0)] = 0.0,
    write_s: Annotated[float, typer.Option(help="Seconds that a write to disk takes, a block.", min=0)] = 0.0,
    load: Annotated[
        str,
        typer.Option(
            help="What lower tiers have: always loaded, never, or auto, as much as is soonest by curves."
        ),
    ] = "always",
    curves: Annotated[
        str | None,
        typer.Option(
            help="Instead of seconds a block: what `kvtide bench ttft --json` has written or an engine keeps in disk_path/v1/costs "
            'of computing and loading, or "assumed".',
            metavar="FILE",
        ),
    ] = None,
    block_tokens: Annotated[int, typer.Option(help="Tokens of a block, for curves.", min=1)] = 512,
    token_bytes: Annotated[
        int | None,
        typer.Option(
            help="Bytes of KV of a token, for curves, where their file does not say: as `kvtide plan` tells.",
            min=1,
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Where to write all figures.")] = None,
    html: Annotated[Path | None, typer.Option(help="Where to write a page with the curves.")] = None,
    processes: Annotated[int, typer.Option(help="Runs of a sweep at the same time.", min=1)] = 1,
) -> None:
    """Say what a cache of given sizes would have found of a trace, by the engine's own core. See docs/simulate.md."""
    from tiering.cli.simulate import Sweep, times
    from tiering.cli.simulate_report import run
    from tiering.durations import BlockTimes

    def start() -> None:
        each_block = BlockTimes(
            compute_s=compute_s, demote_s=demote_s, promote_s=promote_s, read_s=read_s, write_s=write_s
        )
        sweep = Sweep(
            traces=tuple(traces),
            device_blocks=_sizes(device_blocks, "--device-blocks"),
            host_blocks=_sizes(host_blocks, "--host-blocks"),
            disk_blocks=_sizes(disk_blocks, "--disk-blocks"),
            policies=_names(policy),
            admissions=_names(admission),
            times=times(each_block, curves, load, block_tokens=block_tokens, token_bytes=token_bytes),
            load=load,
        )
        run(sweep, json, html, processes)

    _plainly(start)


@bench_app.command("disk")
def bench_disk(
    model: Annotated[
        str, typer.Option(help=_MODEL[:-1] + '; "none": random numbers, without a model.')
    ] = "demo",
    path: Annotated[
        Path | None, typer.Option(help="On the disk to measure; default: where temporary files go.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Of the prompt whose KV is written.", min=16)] = 4096,
    copies: Annotated[int, typer.Option(help="Of its KV, under different names.", min=1)] = 3,
    threads: Annotated[
        str | None,
        typer.Option(
            help="Numbers of threads, comma-separated; default: 1, 2, 4 .. to two a core, and an engine's."
        ),
    ] = None,
    read_batch_blocks: Annotated[
        int | None, typer.Option(help="The fewest blocks in one read; default: an engine's.", min=1)
    ] = None,
    repeats: Annotated[int, typer.Option(help="Measurements of each row, interleaved.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Of random weights or numbers.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Where to write the rows, with all settings.")] = None,
) -> None:
    """KV from disk and to it, a second, beside the disk's own speed, plain LMDB, a file a block, and memory."""
    from tiering.cli.bench_disk import DiskBench, default_threads, engine_sizes, run

    bench = DiskBench(
        model=model,
        tokens=tokens,
        copies=copies,
        threads=default_threads() if threads is None else _lengths(threads, "--threads"),
        read_batch_blocks=read_batch_blocks or engine_sizes().read_batch_blocks,
        repeats=repeats,
        path=path,
        seed=seed,
    )
    _plainly(lambda: run(bench, json))


@bench_app.command("trace")
def bench_trace(
    traces: Annotated[
        list[Path],
        typer.Argument(
            help="As for simulate; recordings too.", metavar="TRACE...", exists=True, dir_okay=False
        ),
    ],
    model: Annotated[str, typer.Option(help=_MODEL)] = "demo",
    requests: Annotated[
        int, typer.Option(help="Of each trace, at most: groups that begin alike, drawn at random.", min=1)
    ] = 120,
    device_blocks: Annotated[
        int | None,
        typer.Option(
            help="Default: a twentieth of the distinct ones, and what the longest prompt needs.", min=1
        ),
    ] = None,
    host_blocks: Annotated[int | None, typer.Option(help="Default: a tenth of them; 0: none.", min=0)] = None,
    disk_blocks: Annotated[int | None, typer.Option(help="Default: a fifth of them; 0: none.", min=0)] = None,
    max_prompt_tokens: Annotated[int, typer.Option(help="Longer prompts are cut off.", min=1)] = 2048,
    max_new_tokens: Annotated[int, typer.Option(help="Of a reply, whatever the trace says.", min=1)] = 8,
    repeats: Annotated[
        int, typer.Option(help="Times the engine serves each trace: what it differs from itself by.", min=1)
    ] = 2,
    clients: Annotated[
        int | None,
        typer.Option(help="So many ask one request after the other, whatever times the trace says.", min=1),
    ] = None,
    speed: Annotated[
        float | None, typer.Option(help="Requests come so many times as fast as the trace says.", min=1e-6)
    ] = None,
    load: Annotated[
        float,
        typer.Option(
            help="Without the two: the part of the time for which it would compute without a cache.", min=0.01
        ),
    ] = 0.6,
    engine_load: Annotated[
        str, typer.Option(help="What the engine loads of a match: always, never, or auto.")
    ] = "always",
    max_num_seqs: Annotated[int, typer.Option(help="Requests computed together.", min=1)] = 8,
    max_batch_tokens: Annotated[int, typer.Option(help="Tokens of one step.", min=1)] = 512,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the model; default: torch's choice.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of what is drawn, and of the prompts' tokens.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Where to write all figures.")] = None,
) -> None:
    """A trace through the real engine, and through the simulator with the same configuration: how far that errs.

    Exits with 0, 1 if it errs by more than a point of a hit rate or ten percent of a TTFT. See docs/bench-trace.md.
    """
    from tiering.cli.bench_trace import TraceBench, run

    if clients is not None and speed is not None:
        raise typer.BadParameter(
            "clients ask whatever times there are: it goes without --speed", param_hint="--clients"
        )
    bench = TraceBench(
        traces=tuple(traces),
        model=model,
        requests=requests,
        device_blocks=device_blocks,
        host_blocks=host_blocks,
        disk_blocks=disk_blocks,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        clients=clients,
        speed=speed,
        load=load,
        engine_load=engine_load,
        max_num_seqs=max_num_seqs,
        max_batch_tokens=max_batch_tokens,
        threads=threads,
        device=device,
        seed=seed,
    )
    _plainly(lambda: run(bench, json))


def _lengths(text: str, option: str = "--prefix-tokens") -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of numbers above 0", param_hint=option)
    return tuple(int(part) for part in parts)


def _sizes(text: str, option: str) -> tuple[int, ...]:
    parts = [part.strip().replace("_", "") for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of numbers", param_hint=option)
    return tuple(int(part) for part in parts)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _percents(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) <= 99 for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of percents from 0 to 99", param_hint="--sharing")
    return tuple(int(part) for part in parts)


@bench_app.command(hidden=True)
def ttft_process(spec: str) -> None:
    """One phase of a restart row, in a process of its own; prints one line of JSON."""
    from tiering.cli.ttft_restart import run_process

    run_process(spec)


def _plainly(job: Callable[[], int | None]) -> None:
    """Turn what a user can mend into one sentence on standard error, without a traceback; exit with the job's status."""
    try:
        status = job()
    except ValueError as error:
        typer.secho(f"kvtide: {error}", err=True, fg="red")
        raise typer.Exit(2) from error
    if status:
        raise typer.Exit(status)
