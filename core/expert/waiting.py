"""A request that waits until it may be sent, in whatever event loop it lives."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass(eq=False)
class Waiter:
    """One that waits for its `turn`: a slot and a place in time, Unix seconds. It has `cost_s` seconds of the rate."""

    cost_s: float
    loop: asyncio.AbstractEventLoop
    turn: "asyncio.Future[None]" = field(init=False)
    place: float | None = None

    def __post_init__(self) -> None:
        self.turn = self.loop.create_future()

    def wake(self, error: Exception | None = None) -> None:
        """Let it go on, or fail. From any thread."""

        def tell() -> None:
            if not self.turn.done():
                self.turn.set_result(None) if error is None else self.turn.set_exception(error)

        with suppress(RuntimeError):  # its event loop has ended, and it with that
            self.loop.call_soon_threadsafe(tell)
