"""When figures are asked for to be kept over time: every second, but of who tells of changes only after one."""

import asyncio
from http import HTTPStatus

import pytest

from kvstore.admin.figures import Figures
from kvstore.admin.problems import Problem

A_WHILE = 50  # times that the event loop goes round


class Asking:
    """Of a cache whose prompt tokens are `asked`; it `tells` of changes or not."""

    def __init__(self, *, tells) -> None:
        self.asked, self.tells, self.num_questions, self.watching = 0, tells, 0, []

    async def ask(self, name):
        assert name == "stats"
        self.num_questions += 1
        return {"engine": {"prompt_tokens": self.asked, "cached_tokens_by_tier": {}}, "cache": {}}

    def method(self, name):
        assert name == "tell_of_change"
        if not self.tells:
            raise Problem(HTTPStatus.NOT_IMPLEMENTED, "it does not tell")
        return self.watching.append

    def change(self, asked):
        self.asked += asked
        while self.watching:
            self.watching.pop()()


class Time:
    """Passes when somebody sleeps."""

    now_s = 0.0

    def clock(self):
        return self.now_s

    async def sleep(self, seconds):
        self.now_s += seconds
        await asyncio.sleep(0)


def sampling(asking, test):
    """Run `test(figures, time, a_while)` beside a sampler."""

    async def run():
        time = Time()
        figures = Figures(asking, clock=time.clock, wall=time.clock, sleep=time.sleep)

        async def a_while():
            for _ in range(A_WHILE):
                await asyncio.sleep(0)

        sampler = asyncio.create_task(figures.sample_for_ever())
        await a_while()
        await test(figures, time, a_while)
        sampler.cancel()

    asyncio.run(run())


def test_who_tells_of_changes_is_not_asked_while_there_are_none():
    asking = Asking(tells=True)

    async def test(figures, time, a_while):
        assert asking.num_questions == 2, "until it was known that nothing changes"
        time.now_s += 100
        await a_while()
        assert asking.num_questions == 2
        asking.change(7)
        await a_while()
        assert asking.num_questions == 4, "once with the change, and once without another"

    sampling(asking, test)


def test_windows_go_on_while_nobody_asks():
    asking = Asking(tells=True)

    async def test(figures, time, a_while):
        asking.change(5)
        await a_while()
        time.now_s += 100.5
        figures.catch_up()
        growth = figures.windows.growth(60)
        assert (growth.covered_s, growth.counts["prompt_tokens"]) == (60, 0), "what was asked is longer ago"
        asking.change(7)
        await a_while()
        growth = figures.windows.growth(60)
        assert growth.covered_s == pytest.approx(60, abs=0.5)
        assert growth.counts["prompt_tokens"] == 7
        assert figures.windows.growth(300).counts["prompt_tokens"] == 12

    sampling(asking, test)


def test_a_change_while_figures_are_asked_for_is_not_missed():
    """It is told of before the answer comes, which may be from before it."""
    asking = Asking(tells=True)
    ask = asking.ask

    async def slow(name):
        answer = await ask(name)
        if asking.num_questions == 2:
            asking.change(3)
        return answer

    asking.ask = slow

    async def test(figures, time, a_while):
        assert asking.num_questions == 4
        assert figures.windows.growth(60).counts["prompt_tokens"] == 3

    sampling(asking, test)


def test_who_does_not_tell_is_asked_every_second():
    asking = Asking(tells=False)

    async def test(figures, time, a_while):
        assert asking.num_questions > A_WHILE // 4
        assert time.now_s == pytest.approx(asking.num_questions, abs=1)

    sampling(asking, test)
