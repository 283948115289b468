from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.decoding.quotas import DreamTimes, Even, Linear, Quotas
from tests.core.decoding import literal
from tests.core.models.checkpoints import cases, golden


@given(st.integers(1, 300), st.integers(1, 80))
def test_quotas_are_those_of_the_literal_loops(masks: int, steps: int) -> None:
    assert [*Even().split(masks, steps)] == [quota for quota in literal.even(masks, steps) if quota]
    assert [*Linear().split(masks, steps)] == literal.linear(masks, steps)
    assert [*DreamTimes(eps=0.01).split(masks, steps)] == literal.dream(masks, steps, 0.01)


@given(st.sampled_from([Even(), Linear(), DreamTimes(), DreamTimes(eps=0.5)]), st.integers(1, 300), st.integers(1, 80))
def test_quotas_share_out_every_mask_in_at_most_so_many_steps(quotas: Quotas, masks: int, steps: int) -> None:
    split = quotas.split(masks, steps)
    assert sum(split) == masks
    assert len(split) <= steps
    assert min(split) >= 0


@pytest.mark.parametrize("name", ["dllm_single_n32_b32_s12_cfg0", "dllm_single_n30_b8_s10_cfg0"])
def test_linear_quotas_are_what_the_published_canvases_show(name: str) -> None:
    params = next(case for case in cases("llada_tiny")["decode_cases"] if case["name"] == name)["params"]
    left = [int((canvas[0] == 500).sum()) for canvas in golden("llada_tiny")[f"decode/{name}/canvas"]]
    length, block = params["max_new_tokens"], params["block_size"]
    steps = -(-params["steps"] // -(-length // block))
    ours = [quota for start in range(0, length, block) for quota in Linear().split(min(block, length - start), steps)]
    assert ours == [before - after for before, after in pairwise(left)]
