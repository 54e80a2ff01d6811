"""What the endpoint counts of itself."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpFigures:
    """Figures of one endpoint, as of now.

    requests: answered requests by (route template, method, status). What no route takes counts as "unmatched", a
        method that HTTP does not know as "OTHER", so that clients cannot make up keys.
    listeners: connections that are told of events.   running_jobs: long actions that have not ended.
    """

    requests: dict[tuple[str, str, int], int] = field(default_factory=dict)
    listeners: int = 0
    running_jobs: int = 0
