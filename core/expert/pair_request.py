"""What the expert is asked for a hallucination pair: one wrong change of one caption."""

from pydantic import BaseModel, ConfigDict, ValidationError

from core.corruption.hallucination import PairKind
from core.expert.request import ExpertRequest, make_request
from core.expert.settings import ExpertSettings

PROMPT = "pair-v1"


class PairTask(BaseModel):
    """The text of the user message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    caption: str
    other_captions: list[str]
    kind: PairKind


class PairAnswer(BaseModel):
    """The reply: `org`, which occurs in the caption once, is replaced by `target`. An empty `org` declines."""

    model_config = ConfigDict(extra="forbid")

    org: str
    target: str
    kind: PairKind


def build_pair_request(
    settings: ExpertSettings, task: PairTask, *, image_sha: str | None, prompt: str = PROMPT
) -> ExpertRequest:
    """The request for one caption. Everything of it but the endpoint's address is part of its key.

    Raises:
        ConfigError: if there are no instructions called `prompt`.
    """
    return make_request(settings, prompt, task, name="pair", answer=PairAnswer, image_sha=image_sha)


def read_pair_task(text: str) -> PairTask | None:
    """The inverse of the user message's text; None if it asks for something else."""
    try:
        return PairTask.model_validate_json(text)
    except ValidationError:
        return None
