"""What a decoding costs, before it is run."""

from core.decoding.caching import Keeping
from core.decoding.settings import DecodeSettings
from core.decoding.strategies import schedule_of


def positions_run(settings: DecodeSettings, *, response_length: int, before: int) -> int:
    """Positions of a row that go through the network, with full attention and by the plan: no row is done earlier.

    before: positions of prompt and images. E.g. 4 tokens at 2 a step after 10 others: 28; with cache=dual refresh=2,
    which reads the prompt once: 18.
    """
    keeping = Keeping(cache=settings.cache, refresh=settings.refresh)
    total, last = 0, None
    for step in schedule_of(settings).plan(response_length):
        if keeping.is_due(step, last):
            total, last = total + before + response_length, step
        else:
            begin, end = keeping.tokens(step, response_length)
            total += end - begin
    return total
