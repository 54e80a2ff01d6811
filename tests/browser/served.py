"""The admin endpoint over the generated subject, with an hour behind it.

`python -m tests.browser.served [PORT]` serves it until interrupted, to look at the page while working on it.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvstore.admin import AdminConfig, AdminServer, endpoint, serve
from kvstore.admin.figures import Figures
from kvstore.admin.tiers import counts_of
from tests.browser.generated import Generated

SAMPLE_S = 5


class BackdatedFigures(Figures):
    """Figures that have been sampled for an hour, but for a minute in which nobody did."""

    def __init__(self, asking: Any, **named: Any) -> None:
        super().__init__(asking, **named)
        subject = asking.method("stats").__self__
        if isinstance(subject, Generated):
            for ago_s in range(3600, 0, -SAMPLE_S):
                if not 1480 < ago_s < 1540:
                    counts = counts_of(subject.stats(ago_s=ago_s))
                    self.windows.add(self._clock() - ago_s, counts, epoch_s=self._wall() - ago_s)


@contextmanager
def served(subject: object, **settings: Any) -> Iterator[AdminServer]:
    """An endpoint over the subject, on a free port if none is named."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endpoint, "Figures", BackdatedFigures)
        server = serve(
            subject, AdminConfig(**{"port": 0, "show_text": True, "max_requests_per_s": 0, **settings})
        )
    with server:
        yield server


if __name__ == "__main__":
    with served(Generated(), port=int(sys.argv[1]) if len(sys.argv) > 1 else 8421) as running:
        print(running.url)  # noqa: T201
        threading.Event().wait()
