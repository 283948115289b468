import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import seeds
from core.decoding.noise import gumbel, position_keys, signed, uniforms
from core.decoding.state import Step, blank_canvas
from tests.core.decoding.literal import numbers

STEP = Step(index=3, start=0, end=5, quota=1, local=3, steps=9)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), st.integers(1, 40), st.integers(0, 3))
def test_uniforms_are_those_of_the_other_streams_of_the_project(keys: list[int], n: int, salt: int) -> None:
    ours = uniforms(torch.tensor([signed(key) for key in keys]), n, salt=salt).numpy()
    assert np.array_equal(ours, seeds.uniforms(np.array(keys, dtype=np.uint64), n, salt=salt))


def test_a_position_has_its_numbers_whatever_the_prompt_and_the_padding() -> None:
    streams = [seeds.stream_key("a"), seeds.stream_key("b")]
    canvas = blank_canvas(
        [[1, 2, 3], [4]], response_length=5, mask_id=9, pad_id=8, device=torch.device("cpu"), streams=streams
    )
    keys_BL = position_keys(canvas, STEP)
    for row, (stream, offset) in enumerate(zip(streams, (3, 1), strict=True)):
        for position in range(5):
            ours = uniforms(keys_BL[row, offset + position][None], 4, salt=1)[0]
            assert ours.tolist() == numbers(stream, 3, position, 4, 1).tolist()


def test_the_largest_score_with_gumbel_noise_is_a_draw_from_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    keys = torch.from_numpy(seeds.stream_keys(("draws",), [str(i) for i in range(20_000)]).astype(np.int64))
    shares = torch.bincount((logits + gumbel(keys, 4)).argmax(dim=1), minlength=4) / len(keys)
    assert torch.allclose(shares.double(), logits.softmax(0), atol=0.012)
