"""A text and what somebody found wrong with it, as ReDiff publishes its data: words alone, no tokens yet."""

from typing import ClassVar

import dataframely as dy

from data_contracts.contract import Contract

LAYOUTS = ("conversations", "pred")


class Corrections(Contract):
    """One draft and its corrections a row, verbatim: nothing is stripped, so that a row is written as it was read.

    layout: `conversations` is `{image, conversations, revise}`, `pred` is `{img, ques, ans, pred, revise}`.
    """

    table: ClassVar[str] = "corrections"
    id_column: ClassVar[str] = "correction_id"

    correction_id = dy.String(primary_key=True)
    sample_id = dy.String(nullable=True, description="the sample that question and corrected text (or answer) became")
    image_sha = dy.String(nullable=True, regex=r"^[0-9a-f]{64}$")
    image = dy.String(nullable=True, description="the image's path as it was written")
    question = dy.String(description="the human turn, with its image placeholder")
    answer = dy.String(nullable=True, description="the correct answer, where the layout has one")
    draft = dy.String(min_length=1)
    verdict = dy.Enum(
        ("right", "revised"), nullable=True, description="right: nothing is wrong; null: nobody has looked"
    )
    segments = dy.List(dy.Struct({"org": dy.String(), "target": dy.String()}), description="empty unless `revised`")
    layout = dy.Enum(LAYOUTS)
    extra = dy.String(nullable=True, description="JSON object of the row's other keys")
