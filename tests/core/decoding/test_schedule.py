import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from core.decoding.schedule import Blocks, ConfidenceSchedule, most_confident


def test_remainder_goes_to_the_first_steps() -> None:
    plan = ConfidenceSchedule(blocks=Blocks(tokens_per_step=3)).plan(7)
    assert [step.quota for step in plan] == [3, 2, 2]


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5), st.none() | st.integers(1, 250))
def test_every_mask_is_revealed_block_by_block(length: int, pace: int, extra: int, block: int | None) -> None:
    blocks = Blocks(tokens_per_step=pace, extra_steps=extra, block_length=block)
    plan = ConfidenceSchedule(blocks=blocks).plan(length)
    assert [step.index for step in plan] == list(range(len(plan)))
    main, last = plan[: len(plan) - extra], plan[len(plan) - extra :]
    assert all((step.start, step.end, step.quota) == (0, length, 0) for step in last)
    assert all(1 <= step.quota <= pace for step in main)
    quota_of: dict[tuple[int, int], list[int]] = {}
    for step in main:
        quota_of.setdefault((step.start, step.end), []).append(step.quota)
    assert [position for start, end in quota_of for position in range(start, end)] == list(range(length))
    for (start, end), quotas in quota_of.items():
        assert sum(quotas) == end - start
        assert len(quotas) == math.ceil((end - start) / pace)
        assert quotas == sorted(quotas, reverse=True)


@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 14), st.integers(0, 2**32 - 1))
def test_the_most_confident_are_chosen_and_never_more_than_there_are(rows, width, count, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.randint(0, 4, (rows, width), generator=generator) / 4
    among = torch.rand(rows, width, generator=generator) < 0.5
    chosen = most_confident(confidence, among_BL=among, count_B=torch.full((rows,), count))
    for row in range(rows):
        candidates = [i for i in range(width) if among[row, i]]
        best = sorted(candidates, key=lambda i: (-float(confidence[row, i]), i))[:count]
        assert chosen[row].nonzero().flatten().tolist() == sorted(best)


def test_rounding_noise_of_saturated_confidences_does_not_decide() -> None:
    noise = torch.tensor([[1 - 6e-8, 1.0, 1 - 1.2e-7, 1 - 6e-8]])
    chosen = most_confident(noise, among_BL=torch.ones(1, 4, dtype=torch.bool), count_B=torch.tensor([2]))
    assert chosen.tolist() == [[True, True, False, False]]
