"""Who is asked how far it is, when, in which order: a real server on many loopback addresses."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from rlhf_api.names import StageName
from rlhf_operator.scraper import PATIENT_FAILURES, SCRAPES_PER_SECOND, Progress, Scraper

KEY = ("team", "demo")
SFT = (StageName.SFT, 1)


class Pods:
    """Pods that answer on 127.0.1.<n>, all on one port.

    Attributes:
        asked: addresses, in the order in which they were asked.
        answers: what a pod says in place of a step.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, web.Response] = {}
        self.port = 0

    async def metrics(self, request: web.Request) -> web.Response:
        host = request.host.split(":")[0]
        self.asked.append(host)
        return self.answers.get(host) or web.Response(text=f"rlhf_train_step {len(self.asked)}\n")


@asynccontextmanager
async def scraping(
    wake: Callable[[tuple[str, str]], None], interval: float
) -> AsyncIterator[tuple[Pods, Scraper]]:
    pods = Pods()
    app = web.Application()
    app.add_routes([web.get("/metrics", pods.metrics)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", 0).start()
    pods.port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as session:
        scraper = Scraper(session, wake, port=pods.port, interval=interval)
        running = asyncio.create_task(scraper.run())
        try:
            yield pods, scraper
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await runner.cleanup()


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not check():
            await asyncio.sleep(0.01)


def test_every_attempt_has_its_turn_and_wakes_its_job() -> None:
    woken: list[tuple[str, str]] = []

    async def run() -> None:
        async with scraping(woken.append, interval=0.01) as (pods, scraper):
            for number in range(5):
                address = f"127.0.1.{number}"
                scraper.keep(("team", str(number)), f"uid-{number}", {SFT: address})
            started = asyncio.get_running_loop().time()
            await until(lambda: len(pods.asked) >= 20)
            lasted = asyncio.get_running_loop().time() - started
            # The one that was asked longest ago comes first, so that all have the same share.
            assert set(Counter(pods.asked[:20]).values()) == {4}
            assert pods.asked[:5] == pods.asked[5:10]
            assert lasted >= 18 / SCRAPES_PER_SECOND
            await until(lambda: len(woken) >= 20)
            assert set(woken) == {("team", str(number)) for number in range(5)}
            found = scraper.find("uid-0", SFT)
            assert found is not None
            assert found.fresh
            assert found.told is not None
            assert found.told.step > 0

    asyncio.run(run())


def test_a_new_attempt_comes_before_those_that_wait() -> None:
    async def run() -> None:
        async with scraping(lambda _: None, interval=0.01) as (pods, scraper):
            for number in range(40):
                scraper.keep(KEY, f"uid-{number}", {SFT: f"127.0.1.{number}"})
            await until(lambda: len(pods.asked) >= 45)
            scraper.keep(KEY, "new", {SFT: "127.0.1.200"})
            asked = len(pods.asked)
            await until(lambda: "127.0.1.200" in pods.asked)
            # Those that are on their way come before it, not all that wait.
            assert pods.asked.index("127.0.1.200") <= asked + 20

    asyncio.run(run())


@pytest.mark.parametrize("turns", range(5))
def test_it_stops_though_it_is_woken_at_that_moment(turns: int) -> None:
    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            scraper = Scraper(session, lambda _: None, port=1, interval=60)
            scraper.keep(KEY, "known", {SFT: "127.0.1.1"})
            running = asyncio.create_task(scraper.run())
            await until(lambda: (found := scraper.find("known", SFT)) is not None and found.fresh)
            await asyncio.sleep(0.1)
            scraper.keep(KEY, "new", {SFT: "127.0.1.1"})
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait({running}, timeout=1)
            assert running.cancelled()

    asyncio.run(run())


def test_what_does_not_run_any_more_is_not_asked() -> None:
    async def run() -> None:
        async with scraping(lambda _: None, interval=0.01) as (pods, scraper):
            scraper.keep(KEY, "uid", {SFT: "127.0.1.1", (StageName.REWARD, 1): "127.0.1.2"})
            await until(lambda: len(set(pods.asked)) == 2)
            scraper.keep(KEY, "uid", {(StageName.REWARD, 1): "127.0.1.2"})
            assert scraper.find("uid", SFT) is None
            # A turn may have begun before; the next begins when that one is over.
            seen = pods.asked.count("127.0.1.2")
            await until(lambda: pods.asked.count("127.0.1.2") >= seen + 2)
            pods.asked.clear()
            await until(lambda: len(pods.asked) >= 5)
            assert set(pods.asked) == {"127.0.1.2"}
            scraper.forget("uid")
            pods.asked.clear()
            await asyncio.sleep(0.5)
            assert len(pods.asked) <= 1

    asyncio.run(run())


def test_attempts_of_one_job_are_asked_in_one_turn_and_wake_it_once() -> None:
    woken: list[tuple[str, str]] = []

    async def run() -> None:
        async with scraping(woken.append, interval=0.3) as (pods, scraper):
            scraper.keep(KEY, "uid", {SFT: "127.0.1.1", (StageName.REWARD, 1): "127.0.1.2"})
            await until(lambda: len(woken) >= 3)
            assert Counter(pods.asked) == {"127.0.1.1": 3, "127.0.1.2": 3}

    asyncio.run(run())


def test_one_that_comes_back_is_asked_no_more_often() -> None:
    async def run() -> None:
        async with scraping(lambda _: None, interval=0.3) as (pods, scraper):
            for _ in range(5):
                scraper.keep(KEY, "uid", {})
                scraper.keep(KEY, "uid", {SFT: "127.0.1.1"})
            await until(lambda: len(pods.asked) >= 4)
            before, began = len(pods.asked), asyncio.get_running_loop().time()
            await asyncio.sleep(0.95)
            passed = asyncio.get_running_loop().time() - began
            assert len(pods.asked) - before <= passed / 0.3 + 1

    asyncio.run(run())


def test_what_cannot_be_asked_is_told_with_its_address() -> None:
    async def run() -> None:
        async with scraping(lambda _: None, interval=0.01) as (pods, scraper):
            pods.answers["127.0.1.1"] = web.Response(status=500)
            scraper.keep(KEY, "uid", {SFT: "127.0.1.1"})
            found = scraper.find("uid", SFT)
            assert found is not None
            await until(lambda: bool(found.error))
            assert f"http://127.0.1.1:{pods.port}/metrics" in found.error
            assert found.fresh
            del pods.answers["127.0.1.1"]
            await until(lambda: not found.error)
            assert found.told is not None

    asyncio.run(run())


def test_what_was_read_last_outlives_its_attempt_but_not_its_job() -> None:
    def step(scraper: Scraper) -> tuple[int, float] | None:
        found = scraper.readings("uid").get(StageName.SFT)
        return None if found is None else (found.attempt, found.told.metrics["loss"])

    async def run() -> None:
        async with scraping(lambda _: None, interval=0.01) as (pods, scraper):
            for number in (1, 2):
                page = web.Response(text=f"rlhf_train_loss {number}\n")
                pods.answers[f"127.0.1.{number}"] = page
            scraper.keep(KEY, "uid", {SFT: "127.0.1.1"})
            assert step(scraper) is None
            await until(lambda: step(scraper) == (1, 1.0))
            scraper.keep(KEY, "uid", {})
            assert scraper.find("uid", SFT) is None
            assert step(scraper) == (1, 1.0)
            later = (StageName.SFT, 2)
            # One that does not answer yet takes nothing away.
            scraper.keep(KEY, "uid", {later: "127.0.1.3"})
            pods.answers["127.0.1.3"] = web.Response(status=503)
            scraper.keep(KEY, "uid", {later: "127.0.1.2"})
            await until(lambda: step(scraper) == (2, 2.0))
            # The old one may still be asked, and is no news.
            pods.answers["127.0.1.1"] = web.Response(text="rlhf_train_loss 1\n")
            scraper.keep(KEY, "uid", {SFT: "127.0.1.1"})
            await until(lambda: (found := scraper.find("uid", SFT)) is not None and found.fresh)
            assert step(scraper) == (2, 2.0)
            scraper.forget("uid")
            assert step(scraper) is None
            await asyncio.sleep(0.1)
            assert step(scraper) is None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("failures", "intervals"),
    [(0, 1), (PATIENT_FAILURES, 1), (PATIENT_FAILURES + 1, 2), (PATIENT_FAILURES + 3, 8), (99, 32)],
)
def test_one_that_does_not_answer_is_asked_less_often(failures: int, intervals: int) -> None:
    assert Progress("127.0.1.1", failures=failures).intervals() == intervals
