"""`kvtide bench`: its verbs. What each measures lives in a module of its own, imported when the verb is used."""

from pathlib import Path
from typing import Annotated

import typer

from tiering.cli.options import lengths, percents, plainly

bench_app = typer.Typer(help="Honest measurements.", no_args_is_help=True)

_MODEL = '"demo", a model directory, or random weights: "random" (the demo\'s shape), "random-8b" or "random-tiny".'

TIERS = ("cold", "device", "host", "disk", "disk_dropped", "restart")


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
    num_prefix_tokens = lengths(prefix_tokens, "--prefix-tokens")
    bench = TtftBench(
        model=model,
        prefix_tokens=num_prefix_tokens,
        suffix_tokens=suffix_tokens,
        tiers=chosen,
        repeats=(repeats,) * len(num_prefix_tokens),
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
    plainly(lambda: run(bench, json))


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
        sharing=percents(sharing, "--sharing"),
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
    plainly(lambda: run(bench, json))


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
        threads=default_threads() if threads is None else lengths(threads, "--threads"),
        read_batch_blocks=read_batch_blocks or engine_sizes().read_batch_blocks,
        repeats=repeats,
        path=path,
        seed=seed,
    )
    plainly(lambda: run(bench, json))


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
    plainly(lambda: run(bench, json))


@bench_app.command(hidden=True)
def ttft_process(spec: str) -> None:
    """One phase of a restart row, in a process of its own; prints one line of JSON."""
    from tiering.cli.ttft_restart import run_process

    run_process(spec)
