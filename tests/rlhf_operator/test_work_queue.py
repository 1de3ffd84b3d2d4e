"""Each key once, one worker a key, later after each failure."""

import asyncio
from collections.abc import Awaitable, Callable
from unittest.mock import patch

import pytest

from rlhf_operator.work_queue import LAST_RETRY_SECONDS, SPARE_ENTRIES, WorkQueue

A, B = ("ns", "a"), ("ns", "b")
OTHER = ("other", "a")


def in_a_loop(test: Callable[[WorkQueue], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(test(WorkQueue()), 10)

    asyncio.run(run())


async def nothing_comes(queue: WorkQueue) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.take(), 0.05)


@pytest.mark.parametrize("turns", range(5))
def test_a_worker_that_is_stopped_while_it_is_woken_stops(turns: int) -> None:
    async def test(queue: WorkQueue) -> None:
        queue.add(A, 60)
        worker = asyncio.create_task(queue.take())
        await asyncio.sleep(0.01)
        queue.add(B, 60)
        for _ in range(turns):
            await asyncio.sleep(0)
        worker.cancel()
        await asyncio.wait({worker}, timeout=1)
        assert worker.cancelled()

    in_a_loop(test)


def test_a_key_that_is_added_often_is_taken_once() -> None:
    async def test(queue: WorkQueue) -> None:
        for _ in range(5):
            queue.add(A)
        assert await queue.take() == A
        queue.done(A)
        await nothing_comes(queue)

    in_a_loop(test)


def test_the_earliest_time_holds() -> None:
    async def test(queue: WorkQueue) -> None:
        queue.add(A, 60)
        queue.add(B, 60)
        queue.add(A)
        queue.add(A, 60)
        assert await queue.take() == A
        queue.add(B, 0.02)
        assert await queue.take() == B

    in_a_loop(test)


def test_a_key_in_work_waits_for_its_worker() -> None:
    async def test(queue: WorkQueue) -> None:
        queue.add(A)
        await queue.take()
        queue.add(A)
        await nothing_comes(queue)
        assert queue.oldest_pass() > 0
        queue.done(A)
        assert await queue.take() == A
        queue.done(A)
        assert queue.oldest_pass() == 0

    in_a_loop(test)


def test_failures_are_tried_again_later_and_later() -> None:
    async def test(queue: WorkQueue) -> None:
        waits = []
        with patch.object(asyncio.get_running_loop(), "time", return_value=1000.0):
            for _ in range(20):
                queue.retry(A)
                waits.append(queue._due.pop(A) - 1000)
            queue.forget_failures(A)
            queue.retry(A, at_least=5)
        assert 0.25 <= waits[0] <= 0.5
        assert waits[3] > waits[0]
        assert LAST_RETRY_SECONDS / 2 <= waits[-1] <= LAST_RETRY_SECONDS
        assert queue._due[A] == 1005

    in_a_loop(test)


@pytest.mark.parametrize("held", ["ns", ""], ids=["its namespace", "all"])
@pytest.mark.parametrize("when", ["before", "after", "in work"])
def test_a_held_key_waits_for_its_release(held: str, when: str) -> None:
    async def test(queue: WorkQueue) -> None:
        if when == "in work":
            queue.add(A)
            await queue.take()
        if when != "after":
            queue.hold(held)
        queue.retry(A)
        queue.add(A)
        if when == "after":
            queue.hold(held)
        if when == "in work":
            queue.done(A)
        await nothing_comes(queue)
        queue.add(OTHER)
        if held:
            assert await queue.take() == OTHER
        queue.release(held)
        taken = {await queue.take() for _ in range(1 if held else 2)}
        assert taken == ({A} if held else {A, OTHER})

    in_a_loop(test)


def test_a_release_wakes_who_waits_and_leaves_later_keys_for_later() -> None:
    async def test(queue: WorkQueue) -> None:
        queue.hold("ns")
        queue.add(A, 60)
        queue.add(B)
        waiting = asyncio.create_task(queue.take())
        await asyncio.sleep(0.02)
        queue.release("ns")
        assert await waiting == B
        await nothing_comes(queue)

    in_a_loop(test)


def test_many_workers_never_share_a_key() -> None:
    async def test(queue: WorkQueue) -> None:
        keys = [("ns", str(number)) for number in range(20)]
        busy: set[tuple[str, str]] = set()
        done = 0

        async def work() -> None:
            nonlocal done
            while True:
                key = await queue.take()
                assert key not in busy
                busy.add(key)
                await asyncio.sleep(0.001)
                busy.remove(key)
                queue.done(key)
                done += 1

        workers = [asyncio.create_task(work()) for _ in range(8)]
        for _ in range(5):
            for key in keys:
                queue.add(key)
            await asyncio.sleep(0.003)
        while done < len(keys) or busy:
            await asyncio.sleep(0.01)
        for worker in workers:
            worker.cancel()
        results = await asyncio.gather(*workers, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)

    in_a_loop(test)


def test_an_urgent_key_comes_before_all_that_are_due() -> None:
    async def test(queue: WorkQueue) -> None:
        queue.add(A)
        queue.add(("ns", "c"))
        queue.add(B, urgent=True)
        assert [await queue.take() for _ in range(3)] == [B, A, ("ns", "c")]

    in_a_loop(test)


def test_passes_over_a_key_that_is_due_late_leave_nothing_behind() -> None:
    async def test(queue: WorkQueue) -> None:
        queue.add(B, 60)
        for _ in range(1000):
            queue.add(A)
            assert await queue.take() == A
            queue.add(A, 600_000)
            queue.done(A)
        assert len(queue._heap) <= SPARE_ENTRIES + 5
        queue.add(B)
        assert await queue.take() == B
        queue.add(A)
        assert await queue.take() == A

    in_a_loop(test)


def test_age_is_that_of_the_key_that_is_due_longest() -> None:
    async def test(queue: WorkQueue) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        with patch.object(loop, "time", lambda: now):
            assert queue.age() == 0
            queue.add(A, 60)
            queue.add(B, urgent=True)
            assert queue.age() == 0
            now += 5
            # What comes before all others is not older for that.
            assert queue.age() == 5
            queue.add(B, urgent=True)
            now += 60
            assert queue.age() == 65
            assert await queue.take() == B
            assert queue.age() == 5
            queue.add(B)
            queue.add(A, urgent=True)
            now += 10
            assert queue.age() == 15
            assert await queue.take() == A
            assert queue.age() == 0
            queue.done(B)
            assert queue.age() == 10

    in_a_loop(test)


def test_a_held_key_does_not_age() -> None:
    async def test(queue: WorkQueue) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        with patch.object(loop, "time", lambda: now):
            queue.add(A)
            queue.hold("ns")
            now += 10
            assert queue.age() == 0
            queue.release("ns")
            assert queue.age() == 10

    in_a_loop(test)
