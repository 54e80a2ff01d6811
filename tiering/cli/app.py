"""The verbs of `kvtide`. What each does lives in a module of its own, imported when the verb is used."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tiering.cli.bench import bench_app
from tiering.cli.disk import disk_app
from tiering.cli.options import names, plainly, sizes

app = typer.Typer(
    name="kvtide",
    help="A tiered prefix cache for LLM inference: device, page-locked host memory, compressed LMDB on disk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench_app, name="bench")
app.add_typer(disk_app, name="disk")


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

    plainly(lambda: run_demo(threads=threads, keep=keep))


@app.command()
def models(
    config: Annotated[
        Path, typer.Argument(help='A config.json, a directory with one, a GGUF file, or "demo".')
    ],
    json: Annotated[bool, typer.Option("--json", help="One JSON object, with sizes in bytes.")] = False,
) -> None:
    """Say whether a model is served, and what its KV costs, without its weights. Exits with 0, 1 if not, 2 if unreadable."""
    from tiering.cli.models import run

    plainly(lambda: run(config, as_json=json))


@app.command()
def plan(
    config: Annotated[
        Path, typer.Option(help='A config.json, a directory with one, a GGUF file, or "demo".')
    ],
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
    plainly(lambda: run(options, as_json=json))


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
    plainly(
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

    plainly(lambda: run(url, token_env, seconds(for_), max_bytes, out))


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

    plainly(lambda: run(earlier, later, tokenizer, block_tokens, url, token_env, as_json=json))


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
            device_blocks=sizes(device_blocks, "--device-blocks"),
            host_blocks=sizes(host_blocks, "--host-blocks"),
            disk_blocks=sizes(disk_blocks, "--disk-blocks"),
            policies=names(policy),
            admissions=names(admission),
            times=times(each_block, curves, load, block_tokens=block_tokens, token_bytes=token_bytes),
            load=load,
        )
        run(sweep, json, html, processes)

    plainly(start)
