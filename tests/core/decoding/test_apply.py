import torch
from hypothesis import given
from hypothesis import strategies as st

from core.decoding.state import Step, apply, blank_canvas

MASK, PAD = 9, 8


def random_bool(generator: torch.Generator, shape: torch.Size) -> torch.Tensor:
    return torch.rand(shape, generator=generator) < 0.5


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12))
def test_whatever_is_asked_apply_keeps_its_rules(seed: int, rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = torch.Size([rows, width])
    ids, predicted, wanted = (torch.randint(0, 10, shape, generator=generator) for _ in range(3))
    ids = torch.where(random_bool(generator, shape), MASK, ids)
    scope, reveal = random_bool(generator, shape), random_bool(generator, shape)
    after = apply(ids, scope_BL=scope, mask_id=MASK, reveal_BL=reveal, predicted_BL=predicted, next_BL=wanted)
    for i in range(rows):
        for j in range(width):
            if not scope[i, j]:
                assert after[i, j] == ids[i, j]
            elif ids[i, j] == MASK:
                assert after[i, j] == (predicted[i, j] if reveal[i, j] else MASK)
            else:
                assert after[i, j] == wanted[i, j]


def test_a_mask_inside_the_prompt_is_out_of_scope() -> None:
    canvas = blank_canvas([[1, MASK], [2]], response_length=3, mask_id=MASK, pad_id=PAD, device=torch.device("cpu"))
    assert canvas.ids_BL.tolist() == [[1, MASK, MASK, MASK, MASK], [2, MASK, MASK, MASK, PAD]]
    assert canvas.valid_BL.tolist() == [[True] * 5, [True] * 4 + [False]]
    step = Step(index=0, start=1, end=3, quota=1, local=0, steps=1)
    assert canvas.scope(step).tolist() == [[False, False, False, True, True], [False, False, True, True, False]]
    everything = torch.ones_like(canvas.valid_BL)
    after = apply(
        canvas.ids_BL,
        scope_BL=canvas.scope(step),
        mask_id=MASK,
        reveal_BL=everything,
        predicted_BL=torch.full_like(canvas.ids_BL, 5),
        next_BL=torch.full_like(canvas.ids_BL, 6),
    )
    assert after.tolist() == [[1, MASK, MASK, 5, 5], [2, MASK, 5, 5, PAD]]
