import asyncio

from alpa_serve.runtime.keyed_tasks import KeyedTasks


def test_there_is_one_task_per_key_and_an_error_ends_that_only(caplog):
    async def main():
        tasks, begun, go_on = KeyedTasks(), [], asyncio.Event()

        async def wait(name):
            begun.append(name)
            await go_on.wait()

        async def fail():
            raise KeyError("why it failed")

        tasks.begin("a", lambda: wait("first"))
        tasks.begin("a", lambda: wait("second"))
        tasks.begin("b", fail)
        await asyncio.sleep(0.01)
        assert begun == ["first"]
        go_on.set()
        await asyncio.sleep(0.01)
        tasks.begin("a", lambda: wait("third"))
        tasks.begin("b", lambda: wait("b again"))
        await asyncio.sleep(0.01)
        assert begun == ["first", "third", "b again"]
        await tasks.close()

    asyncio.run(main())
    assert "why it failed" in caplog.text


def test_a_task_that_is_cancelled_has_ended():
    async def main():
        tasks, ended = KeyedTasks(), []

        async def work(name):
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append(name)

        for name in "abc":
            tasks.begin(name, lambda name=name: work(name))
        await asyncio.sleep(0)
        await tasks.cancel("a")
        await tasks.cancel("absent")
        assert ended == ["a"]
        await tasks.close()
        assert sorted(ended) == ["a", "b", "c"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
