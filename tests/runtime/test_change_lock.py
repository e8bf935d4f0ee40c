import asyncio

from alpa_serve.runtime.change_lock import ChangeLock


class Bench:
    """Changes that run until they are told to end, and which of them run now."""

    def __init__(self):
        self.lock = ChangeLock()
        self.running = []
        self.ends = {}

    def begin(self, name, kind):
        self.ends[name] = asyncio.Event()
        return asyncio.create_task(self._change(name, kind))

    async def _change(self, name, kind):
        async with getattr(self.lock, kind)():
            self.running.append(name)
            await self.ends[name].wait()
            self.running.remove(name)

    async def has(self, *running):
        for _ in range(10):
            await asyncio.sleep(0)
        assert self.running == list(running)


def test_small_changes_run_side_by_side_and_a_change_of_everything_alone():
    async def run():
        bench = Bench()
        tasks = [bench.begin("a", "shared"), bench.begin("b", "shared"), bench.begin("all", "alone")]
        await bench.has("a", "b")
        bench.ends["a"].set()
        await bench.has("b")
        bench.ends["b"].set()
        await bench.has("all")
        tasks.append(bench.begin("c", "shared"))
        await bench.has("all")
        bench.ends["all"].set()
        await bench.has("c")
        bench.ends["c"].set()
        await asyncio.gather(*tasks)

    asyncio.run(run())


def test_a_small_change_does_not_wait_for_a_change_of_everything_that_has_not_begun():
    async def run():
        bench = Bench()
        tasks = [bench.begin("replica", "shared")]
        await bench.has("replica")
        tasks.append(bench.begin("all", "alone"))
        await bench.has("replica")
        tasks.append(bench.begin("its group", "shared"))
        await bench.has("replica", "its group")
        for end in bench.ends.values():
            end.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())


def test_changes_of_everything_come_in_order():
    async def run():
        bench = Bench()
        names = ["first", "second", "third"]
        tasks = [bench.begin(name, "alone") for name in names]
        for name in names:
            await bench.has(name)
            bench.ends[name].set()
        await asyncio.gather(*tasks)

    asyncio.run(run())


def test_a_change_that_is_cancelled_or_fails_lets_others_go_on():
    async def run():
        bench = Bench()
        tasks = [bench.begin("a", "shared"), bench.begin("all", "alone"), bench.begin("next", "alone")]
        await bench.has("a")
        # one that waits, then one that runs
        tasks[1].cancel()
        tasks[0].cancel()
        await bench.has("a", "next")
        tasks.append(bench.begin("b", "shared"))
        tasks[2].cancel()
        await bench.has("a", "next", "b")
        bench.ends["b"].set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, True, True, False]

    asyncio.run(run())
