"""How the admin endpoint is reached, by whom, and what it takes of them."""

import ipaddress
from dataclasses import dataclass, field

MIN_TOKEN_CHARACTERS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class AdminConfig:
    """Settings of the endpoint. Raises ValueError for what is out of range, or would be open to strangers.

    host, port: where to listen. Port 0 takes a free one. Any host that is not loopback needs a token.
    token: whoever sends it may do everything. At least 16 characters; never part of a representation, a log or an error.
    read_token: whoever sends it may look and ask, and changes nothing. With neither, whoever reaches the machine's
        loopback interface may do everything.
    show_text: whether text of what is cached may be shown to who may do everything. Off, for it is others' prompts.
    show_tenants: whether who may only look, as what collects metrics does, is told the names of tenants. Off: they are customers'.
    max_body_bytes: of a request. A prompt of 100,000 tokens is about 1 MB, as ids as well as text.
    max_requests_per_s: of each client address, and so many at once; 0 for no limit.
    max_listeners: connections that are told of events.
    max_connections: of all kinds; must leave room beside the listeners.
    request_timeout_s: for how long a client may take to send a request or to read an answer, and the cache to
        answer; idle connections are closed after as long.
    """

    host: str = "127.0.0.1"
    port: int = 8421
    token: str | None = field(default=None, repr=False)
    read_token: str | None = field(default=None, repr=False)
    show_text: bool = False
    show_tenants: bool = False
    max_body_bytes: int = 8 * 1024**2
    max_requests_per_s: float = 500
    max_listeners: int = 256
    max_connections: int = 512
    request_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        host: object = self.host
        if not (isinstance(host, str) and host):
            raise ValueError(f"host must be a name or an address to listen on, got {self.host!r}")
        _whole("port", self.port, 0, 65535)
        _whole("max_body_bytes", self.max_body_bytes, 1)
        _whole("max_listeners", self.max_listeners, 0)
        _whole("max_connections", self.max_connections, 1)
        _number("max_requests_per_s", self.max_requests_per_s, at_least=0.0)
        _number("request_timeout_s", self.request_timeout_s, at_least=0.001)
        for name in ("show_text", "show_tenants"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
        if self.max_connections <= self.max_listeners:
            raise ValueError(
                f"max_connections must be more than max_listeners, so that requests find room beside them: got "
                f"{self.max_connections} and {self.max_listeners}"
            )
        for name in ("token", "read_token"):
            _check_token(name, getattr(self, name))
        if self.token is not None and self.token == self.read_token:
            raise ValueError("token and read_token must differ: else who may only read could do everything")
        if self.is_open and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines, and no token is set: set token or read_token, "
                f'or listen on "127.0.0.1"'
            )

    @property
    def is_open(self) -> bool:
        """Whether no token is needed."""
        return self.token is None and self.read_token is None


def is_loopback(host: str) -> bool:
    """Whether an address, or the name "localhost", means this machine and cannot be reached from another."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:  # a name, which may resolve to anything
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _check_token(name: str, token: object) -> None:
    """The sentences say nothing of the token."""
    if token is None:
        return
    if not isinstance(token, str) or not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(f"{name} must be a string of printable ASCII characters without spaces, or None")
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise ValueError(f"{name} has {len(token)} characters; at least {MIN_TOKEN_CHARACTERS} are needed")


def _whole(name: str, value: object, low: int, high: int | None = None) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < low or (high is not None and value > high):  # type: ignore[operator]  # see is_whole
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be a whole number {bounds}, got {value!r}")


def _number(name: str, value: object, *, at_least: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not at_least <= value < float("inf"):  # type: ignore[operator]  # see is_number
        raise ValueError(f"{name} must be a number of at least {at_least:g}, got {value!r}")
