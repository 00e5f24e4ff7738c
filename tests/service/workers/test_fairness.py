"""Turns of owners, in queues and in slots."""

import asyncio

from curation.service.workers.fairness import TENANT, FairQueue, FairSlots, Tenant


def test_owners_take_turns_and_keep_to_their_share() -> None:
    queue: FairQueue[str] = FairQueue(share=2)
    for number in range(3):
        queue.put(Tenant("a", "x"), f"a{number}")
    queue.put(Tenant("b", "y"), "b0")
    taken = [queue.take() for _ in range(4)]
    assert [one and one[1] for one in taken] == ["a0", "b0", "a1", None]
    queue.done(Tenant("a", "x"))
    assert queue.take() == (Tenant("a", "x"), "a2")
    queue.put(Tenant("b", "y"), "left")
    assert queue.clear() == ["left"]
    assert queue.take() is None


def test_without_tokens_each_session_is_an_owner() -> None:
    queue: FairQueue[int] = FairQueue(share=1)
    queue.put(Tenant(None, "x"), 1)
    queue.put(Tenant(None, "x"), 2)
    queue.put(Tenant(None, "y"), 3)
    taken = [queue.take() for _ in range(3)]
    assert [one and one[1] for one in taken] == [1, 3, None]


def test_slots_are_given_back_whatever_happens_to_who_waits() -> None:
    async def run() -> list[str]:
        slots, held = FairSlots(1, share=1), []

        async def hold(owner: str) -> None:
            TENANT.set(Tenant(owner))
            give_back = await slots.take()
            held.append(owner)
            await asyncio.sleep(0)
            give_back()
            give_back()

        give_back = await slots.take()
        tasks = [asyncio.create_task(hold(owner)) for owner in ("a", "a", "b", "c")]
        await asyncio.sleep(0)
        tasks[1].cancel()
        give_back()
        tasks[0].cancel()  # its turn has just come
        await asyncio.gather(*tasks, return_exceptions=True)
        await slots.take()
        return held

    assert asyncio.run(run()) == ["b", "c"]
