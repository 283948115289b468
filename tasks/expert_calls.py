"""What MLflow shows of the requests to the expert: a sample of them, without images and without the key."""

from core.expert.ledger import Reply
from core.expert.request import ExpertRequest
from core.revising import Revised
from tasks.trackers import ExpertCall


def calls_of(revised: Revised, number: int) -> list[ExpertCall]:
    """`number` of the requests behind the revisions. Their keys are hashes: the first of them are a random sample."""
    verdicts = dict(revised.revisions.select("request_key", "verdict").rows())
    return [
        _call(*revised.asked[key], verdicts.get(key) or "second question") for key in sorted(revised.asked)[:number]
    ]


def _call(request: ExpertRequest, reply: Reply, verdict: str) -> ExpertCall:
    facts = {
        "request_key": request.key,
        "model": reply.model,
        "prompt_version": request.prompt_version,
        "verdict": verdict,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "cost_usd": reply.cost_usd,
        "attempts": reply.attempts,
    }
    image = {"image": f"sha256:{request.image_sha}"} if request.image_sha else {}
    return ExpertCall(
        name=request.prompt_version.partition("@")[0],
        asked=request.task.model_dump() | image,
        answered={"reply": reply.raw, "error": reply.error},
        facts={name: str(value) for name, value in facts.items() if value is not None},
        began=reply.created - (reply.latency_s or 0.0),
        ended=reply.created,
        failed=reply.status == "failed",
    )
