"""`kvtide serve`: a model with its cache, and the admin endpoint over it, until somebody ends it.

Exit codes: 0 it was ended in order, 2 it cannot begin as it was told to.
"""

import contextlib
import gc
import logging
import os
import queue
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal, Self

from engine.checkpoint import checked_place
from engine.demo_model import DEMO
from kvstore import json_logs
from kvstore.admin import serve
from tiering.cli.serve_config import serve_config

_DRAIN_S: Final = 5.0
"""How long replies that are being computed may take to end."""
_FLUSH_S: Final = 60.0
"""How long writing down what the disk does not have yet may take. systemd kills after 90 seconds by default."""
_LIBRARIES: Final = ("huggingface_hub", "transformers")

_log = logging.getLogger(__name__)


def run(
    model: str,
    *,
    config: Path | None,
    options: dict[str, Any],
    token_file: Path | None,
    read_token_file: Path | None,
    log_format: Literal["text", "json"],
    log_level: str,
) -> int:
    """Serve until SIGTERM or SIGINT comes. Raises ValueError, before anything is loaded, for what cannot be meant."""
    json_logs.configure(log_level, log_format)
    chosen = serve_config(config, options, token_file=token_file, read_token_file=read_token_file)
    _check_free(chosen.admin.host, chosen.admin.port)
    if model != DEMO:
        checked_place(model)
    from engine import Engine  # loads torch, which what is refused need not wait for

    _join_logs()
    with _Signals() as signals:
        announce = _log.info if log_format == "json" else _to_stderr
        with Engine(model, chosen.engine, announce=announce) as engine:
            try:
                server = serve(engine, chosen.admin)
            except OSError as error:
                raise ValueError(error.strerror or str(error)) from error
            with server, _settled():
                signals.is_loading = False
                print(f"kvtide serves {model} at {server.url}", flush=True)
                signals.wait()
                _log.info("ending")
            if not engine.drain(_DRAIN_S):
                _log.warning("some replies had not ended after %g seconds, and are cut off", _DRAIN_S)
            engine.close(_FLUSH_S)
    return 0


def _join_logs() -> None:
    """What the libraries of models tell goes where all else does: they print it themselves, in a form of their own."""
    for name in _LIBRARIES:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True


@contextlib.contextmanager
def _settled() -> Iterator[None]:
    """What there is now lives until the end: the garbage collector need not look at it again and again.

    A full collection goes through all that importing and loading have made, and nobody computes meanwhile.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Signals:
    """SIGTERM and SIGINT, from construction to the end of the `with`: the first one asks for an end, the second ends.

    While the model is being loaded the first one ends as well, in order: nobody is served yet. On the main thread.
    """

    def __init__(self) -> None:
        self.is_loading = True
        self._num_taken = 0
        # an Event would not do: the handler runs on the thread that waits for it, also while that holds the Event's lock
        self._asked: queue.SimpleQueue[int] = queue.SimpleQueue()

    def wait(self) -> None:
        """Until the first one has come."""
        self._asked.get()

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_raised: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self._num_taken += 1
        if self._num_taken > 1:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._asked.put(number)
        if self.is_loading:
            sys.exit(0)


def _check_free(host: str, port: int) -> None:
    """Raise ValueError if nobody can listen there: loading a model for nothing may take minutes."""
    if not port:
        return
    try:
        family, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        raise ValueError(f"cannot listen on {host} port {port}: {error.strerror}") from error


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
