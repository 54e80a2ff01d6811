"""Calling the subject from the event loop without making that wait, and telling what goes wrong in HTTP's terms."""

import asyncio
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from kvstore.admin.call_threads import CallThreads, TooManyCalls
from kvstore.admin.problems import Problem, bad_request, busy, not_found
from kvstore.errors import StoreError, Unsupported


class Asking:
    """Asks the subject, on threads. The event loop's thread uses it."""

    def __init__(self, subject: object, timeout_s: float) -> None:
        self._subject, self._timeout_s = subject, timeout_s
        # A GPU's figures take 20 ms, a listing longer: what is asked all the time does not queue behind what is slow.
        self._frequent = CallThreads("admin-figures", num_threads=2, num_waiting=8)
        self._others = CallThreads("admin-call", num_threads=8, num_waiting=64)

    def close(self) -> None:
        """Ask nothing more; what was asked goes on, and nobody waits for it."""
        self._frequent.close()
        self._others.close()

    def method(self, name: str) -> Callable[..., Any]:
        """A method of the subject, or with a dot in its name of what it has. Raises Problem 501 if it has none of this name."""
        found: Any = self._subject
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is None:
            raise Problem(
                HTTPStatus.NOT_IMPLEMENTED, f"this cache cannot do that: it has no {name.replace('_', ' ')}()"
            )
        method: Callable[..., Any] = found
        return method

    async def ask(self, name: str, /, *args: Any, missing: str | None = None, **named: Any) -> Any:
        """Call a method of the subject and wait. `missing`: the sentence if nothing has the key that was given.

        Raises Problem: 501 where there is no such method, 503 where it cannot or takes too long, 400 where it does not
        like what it was given, 404 where it misses something. Of what is a RuntimeError as well as a ValueError, as that
        of a closed engine, nobody gave anything wrongly. Anything else that it raises comes through.
        """
        call = partial(self.method(name), *args, **named)
        threads = self._frequent if name in ("stats", "events") else self._others
        try:
            future = threads.submit(call)
        except TooManyCalls:
            raise busy("too many requests wait for the cache; try again") from None
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.wrap_future(future)
        except KeyError as error:
            if missing is None:
                raise
            raise not_found(missing) from error
        except TimeoutError as error:
            raise busy(f"the cache did not answer within {self._timeout_s:g} seconds") from error
        except (StoreError, RuntimeError) as error:
            raise _cannot(error) from error
        except ValueError as error:
            if not args and not named:  # nothing was given that could be wrong
                raise busy(told(error)) from error
            raise bad_request(told(error)) from error


def _cannot(error: StoreError | RuntimeError) -> Problem:
    if isinstance(error, Unsupported | NotImplementedError):
        return Problem(HTTPStatus.NOT_IMPLEMENTED, told(error))
    retry = {"Retry-After": "1"} if isinstance(error, StoreError) and error.temporary else None
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, told(error), headers=retry)


def told(error: BaseException) -> str:
    """The sentence of an error; a KeyError's own text is its key's representation."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return str(error) or type(error).__name__
