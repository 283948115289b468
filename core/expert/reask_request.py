"""The second question about a draft: what the expert said first could not be used in part, and why."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from core.expert.request import AnswerModel, ExpertRequest, SegmentModel, make_request
from core.expert.settings import ExpertSettings

PROMPT = "reask-v1"
Problem = Literal["not_found", "ambiguous", "length_mismatch"]
"""The reasons for which a segment is asked for again: those that the expert can mend."""
PROBLEMS: tuple[Problem, ...] = ("not_found", "ambiguous", "length_mismatch")


class RejectedSegment(SegmentModel):
    """A segment of the first reply that could not be used."""

    problem: Problem
    org_tokens: int
    """Tokens of `org` to the model that drafted."""
    target_tokens: int


class ReaskTask(BaseModel):
    """The text of the user message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    ground_truth: str
    prediction: str
    accepted: list[SegmentModel]
    rejected: list[RejectedSegment]


def build_reask(settings: ExpertSettings, task: ReaskTask, *, image_sha: str | None) -> ExpertRequest:
    """The request about all rejected segments of one draft. The reply has the form of a first one."""
    return make_request(settings, PROMPT, task, name="revision", answer=AnswerModel, image_sha=image_sha)


def read_reask(text: str) -> ReaskTask | None:
    """The inverse of the user message's text; None if it asks for something else."""
    try:
        return ReaskTask.model_validate_json(text)
    except ValidationError:
        return None
