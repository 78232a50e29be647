"""The hosts' queue: fair, bounded per host, patient with 429, done with the dead."""

import asyncio
from collections import Counter
from itertools import pairwise

from laionkit.backends.http import limits
from laionkit.backends.http.limits import FAILURES_TO_PARK, HostQueue
from laionkit.core.schemas import Reason


async def drain(queue: HostQueue[str], count: int) -> list[tuple[str, str, Reason | None]]:
    return [await asyncio.wait_for(queue.get(), 5) for _ in range(count)]


def test_hosts_take_turns():
    async def run():
        queue: HostQueue[str] = HostQueue(1)
        for host in ("a", "b", "c"):
            for i in range(3):
                queue.put(f"{host}{i}", host)
        taken = [job for job, _, _ in await drain(queue, 3)]
        for host in ("a", "b", "c"):
            queue.done(host, failed=False)
        return taken + [job for job, _, _ in await drain(queue, 3)]

    assert asyncio.run(run()) == ["a0", "b0", "c0", "a1", "b1", "c1"]


def test_one_host_never_has_more_than_its_share_under_way():
    async def run():
        queue: HostQueue[str] = HostQueue(4)
        active, most = Counter(), Counter()
        for i in range(60):
            queue.put(str(i), f"h{i % 2}")

        async def work():
            while True:
                _, host, _ = await queue.get()
                active[host] += 1
                most[host] = max(most[host], active[host])
                await asyncio.sleep(0.001)
                active[host] -= 1
                queue.done(host, failed=False)

        tasks = [asyncio.create_task(work()) for _ in range(20)]
        while queue.queued or active.total():
            await asyncio.sleep(0.005)
        for task in tasks:
            task.cancel()
        return most

    assert asyncio.run(run()) == {"h0": 4, "h1": 4}


def test_a_rate_spaces_the_starts_at_one_host_and_no_other():
    async def run():
        queue: HostQueue[str] = HostQueue(10, per_host_rate=20)
        for i in range(4):
            queue.put(f"slow{i}", "slow")
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(4):
            await queue.get()
            queue.done("slow", failed=False)
        return loop.time() - started

    assert 0.14 < asyncio.run(run()) < 1


def test_a_host_that_asks_to_wait_is_left_alone_so_long():
    async def run():
        queue: HostQueue[str] = HostQueue(10)
        queue.put("one", "busy")
        queue.put("other", "idle")
        await queue.get()
        queue.put("two", "busy")
        queue.done("busy", failed=False, busy=True, rest_s=0.2)
        loop = asyncio.get_running_loop()
        started = loop.time()
        jobs = [(await queue.get())[0], (await queue.get())[0]]
        return jobs, loop.time() - started

    jobs, waited = asyncio.run(run())
    assert jobs == ["other", "two"]
    assert waited >= 0.19


def test_a_busy_host_is_left_alone_longer_each_time_and_then_given_up(monkeypatch):
    monkeypatch.setattr(limits, "REST_S", 0.01)

    async def run():
        queue: HostQueue[str] = HostQueue(10)
        for i in range(10):
            queue.put(str(i), "busy")
        loop = asyncio.get_running_loop()
        asked, given_up = [], []
        for _ in range(10):
            job, host, reason = await asyncio.wait_for(queue.get(), 5)
            if reason is None:
                asked.append(loop.time())
                queue.done(host, failed=False, busy=True)
            else:
                given_up.append((job, reason))
        return asked, given_up

    asked, given_up = asyncio.run(run())
    waits = [later - sooner for sooner, later in pairwise(asked)]
    assert len(asked) == limits.RESTS + 1
    assert all(wait >= 0.005 * 2**n for n, wait in enumerate(waits))
    assert {reason for _, reason in given_up} == {Reason.HTTP_RATE_LIMITED}
    assert [job for job, _ in given_up] == [str(i) for i in range(limits.RESTS + 1, 10)]


def test_answers_of_one_moment_are_one_sign_of_being_busy():
    async def run():
        queue: HostQueue[str] = HostQueue(16)
        for i in range(40):
            queue.put(str(i), "h")
        for _ in range(3):
            for _ in await drain(queue, 2):
                queue.done("h", failed=False)
        for _ in await drain(queue, 16):
            queue.done("h", failed=False, busy=True, rest_s=0.05)
        return queue._hosts["h"].at_once, [reason for _, _, reason in await drain(queue, 8)]

    assert asyncio.run(run()) == (8, [None] * 8)


def test_a_host_that_asks_for_an_hour_is_given_up_at_once():
    async def run():
        queue: HostQueue[str] = HostQueue(16)
        for i in range(3):
            queue.put(str(i), "h")
        await queue.get()
        queue.done("h", failed=False, busy=True, rest_s=3600)
        return await drain(queue, 2)

    assert asyncio.run(run()) == [(i, "h", Reason.HTTP_RATE_LIMITED) for i in "12"]


def test_what_a_host_asked_for_outlasts_a_network_that_was_gone():
    async def run():
        queue: HostQueue[str] = HostQueue(16)
        for i in range(2):
            queue.put(str(i), "h")
        await queue.get()
        queue.done("h", failed=False, busy=True, rest_s=0.2)
        started = asyncio.get_running_loop().time()
        queue.pause()
        queue.resume(forget=True)
        await drain(queue, 1)
        return asyncio.get_running_loop().time() - started

    assert asyncio.run(run()) >= 0.19


def test_a_crawl_delay_spaces_the_starts_from_the_first_answer_on():
    async def run():
        queue: HostQueue[str] = HostQueue(16)
        for i in range(4):
            queue.put(str(i), "h")
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(4):
            await queue.get()
            queue.done("h", failed=False, gap_s=0.05)
        return loop.time() - started

    assert 0.14 < asyncio.run(run()) < 1


def test_more_hosts_than_are_remembered_cost_no_more_each():
    """A look through all of them for each new one took minutes."""

    async def run():
        queue: HostQueue[int] = HostQueue(16)
        for i in range(60_000):
            queue.put(i, f"h{i}")
        for _ in range(60_000):
            queue.done((await queue.get())[1], failed=False)
        for i in range(60_000):
            queue.put(i, f"other{i}")
        return len(queue._hosts)

    assert asyncio.run(run()) < 130_000


def test_a_dead_host_is_parked_gets_a_final_pass_and_is_given_up(monkeypatch):
    monkeypatch.setattr(limits, "PARK_S", 0.1)

    async def run():
        queue: HostQueue[str] = HostQueue(10)
        for i in range(FAILURES_TO_PARK + 3):
            queue.put(str(i), "dead")
        seen = []
        for _ in range(FAILURES_TO_PARK + 3):
            job, host, given_up = await asyncio.wait_for(queue.get(), 5)
            seen.append((job, given_up))
            if not given_up:
                queue.done(host, failed=True)
        return seen

    seen = asyncio.run(run())
    asked = [job for job, given_up in seen if not given_up]
    assert asked == [str(i) for i in range(FAILURES_TO_PARK + 1)]
    assert [job for job, given_up in seen if given_up] == ["5", "6"]


def test_a_host_with_bad_links_among_good_ones_is_not_given_up():
    """Links that time out come back for their retries and so end up in a row."""

    async def run():
        queue: HostQueue[str] = HostQueue(10)
        for i in range(60):
            queue.put(str(i), "lively")
        for i in range(60):
            _, host, given_up = await asyncio.wait_for(queue.get(), 5)
            assert not given_up
            queue.done(host, failed=i % 21 != 0)

    asyncio.run(run())


def test_one_answer_brings_a_host_back(monkeypatch):
    monkeypatch.setattr(limits, "PARK_S", 0.05)

    async def run():
        queue: HostQueue[str] = HostQueue(10)
        for i in range(20):
            queue.put(str(i), "flaky")
        for i in range(20):
            _, host, given_up = await asyncio.wait_for(queue.get(), 5)
            assert not given_up
            queue.done(host, failed=i < FAILURES_TO_PARK)

    asyncio.run(run())


def test_nothing_is_handed_out_while_paused():
    async def run():
        queue: HostQueue[str] = HostQueue(10)
        getter = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.pause()
        queue.put("x", "a")
        await asyncio.sleep(0.02)
        assert not getter.done()
        queue.resume()
        return await asyncio.wait_for(getter, 1)

    assert asyncio.run(run())[0] == "x"
