from dataclasses import replace

import torch

from core.decoding.policies import Freeze, Policy, Refine
from core.decoding.state import Step, View, blank_canvas

MASK = 9


def view_of(*, local: int = 0, extra: bool = False) -> View:
    """One row: three visible tokens, two masks, and a token out of scope."""
    canvas = blank_canvas([[]], response_length=6, mask_id=MASK, pad_id=8, device=torch.device("cpu"))
    return View(
        step=Step(index=local, start=0, end=5, quota=1, local=local, steps=4, extra=extra),
        canvas=replace(canvas, ids_BL=torch.tensor([[1, 2, 3, MASK, MASK, 7]])),
        masked_BL=torch.tensor([[False, False, False, True, True, False]]),
        visible_BL=torch.tensor([[True, True, True, False, False, False]]),
        predicted_BL=torch.tensor([[4, 4, 4, 4, 4, 7]]),
        confidence_BL=torch.tensor([[0.5, 0.9, 0.7, 0.99, 0.2, 0.0]]),
        held_BL=torch.tensor([[0.1, 0.05, 0.6, 0.0, 0.0, 0.0]]),
    )


def act(policy: Policy, view: View) -> list[int]:
    return policy.act(view)[0, :3].tolist()


def test_freeze_keeps_everything_and_needs_no_look() -> None:
    assert act(Freeze(), view_of()) == [1, 2, 3]
    assert not Freeze().looks(view_of().step)


def test_refine_writes_the_argmax_at_every_visible_position() -> None:
    assert act(Refine(), view_of()) == [4, 4, 4]


def test_topk_writes_at_the_share_of_visible_positions_with_highest_new_confidence() -> None:
    assert act(Refine(topk=0.67), view_of()) == [1, 4, 4]
    assert act(Refine(topk=0.34), view_of()) == [1, 4, 3]
    assert act(Refine(topk=0.33), view_of()) == [1, 2, 3]  # int(.99) = 0, as published


def test_margin_writes_only_where_the_new_token_is_that_much_likelier() -> None:
    assert act(Refine(margin=0.3), view_of()) == [4, 4, 3]


def test_start_refines_in_the_last_share_of_the_steps_and_in_extra_steps() -> None:
    late = Refine(start=0.3)  # ceil(1.2) = the last 2 of 4 steps
    assert [late.looks(view_of(local=local).step) for local in range(4)] == [False, False, True, True]
    assert act(late, view_of(local=1)) == [1, 2, 3]
    assert act(late, view_of(local=2)) == [4, 4, 4]
    assert act(late, view_of(local=0, extra=True)) == [4, 4, 4]
