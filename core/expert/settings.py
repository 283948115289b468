"""Settings of the expert. Free of heavy imports: the command line reads this."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from core.addresses import plain_address, variable_name
from core.errors import ConfigError
from core.settings import Settings

Refusable = Literal["json_schema", "json_object", "max_tokens", "max_completion_tokens", "temperature"]


class AlignmentSettings(Settings):
    """Limits of the re-diff tier."""

    window: int = Field(default=32, ge=1)
    """Tokens that one change of length may move before a later change, or the end of the text, cancels it."""


class ExpertSettings(Settings):
    """Who revises the drafts, and how patiently it is asked."""

    base_url: str = ""
    """OpenAI-compatible endpoint, e.g. https://api.openai.com/v1, without a key; empty: the reference expert."""
    model: str = Field(default="reference", min_length=1)
    """Model name, as the endpoint calls it."""
    api_key_env: str = ""
    """Name of the environment variable that holds the API key; empty: no key."""
    mode: Literal["online", "batch"] = "online"
    """batch: requests are handed in as files, through the endpoint's Batch API, and fetched within a day. Most
    take half of the price then: price_in and price_out are to be those of a batch."""
    batch_poll_s: float = Field(default=30.0, gt=0)
    """Seconds between two looks at a batch; the first come sooner."""
    prompt: str = "revise-v1"
    """Version of the instructions: a file of core/expert/prompts."""
    reask: bool = True
    """Ask once more about segments that could not be placed, or not at that length, with the reason."""
    structured: Literal["auto", "json_schema", "json_object", "none"] = "json_schema"
    """json_schema: the endpoint is told the schema of the reply; json_object: only that it is to be JSON; none: the
    instructions alone describe it; auto: the first of these three that the endpoint takes."""
    temperature: float | None = Field(default=None, ge=0)
    """Left out: not sent. Nor is it sent to a model that refuses it, as some reasoning models do."""
    max_tokens: int = Field(default=2048, ge=1)
    """Longest reply; one that is cut off counts as failed."""
    max_tokens_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """What the endpoint calls that limit. If it refuses the one by name, it gets the other."""
    image_max_side: int | None = Field(default=None, ge=32)
    """Pixels of an image's longer side; a larger one is scaled down before it is sent. Left out: any size."""
    image_max_bytes: int | None = Field(default=None, ge=1024)
    """Bytes of an encoded image; a larger one is encoded again before it is sent. Left out: any size."""
    concurrency: int = Field(default=32, ge=1)
    """Requests in flight."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Requests that are sent a minute, evenly spread, by all of a process together; tries count. Left out: no limit."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Tokens a minute: those of the prompt with its image, and max_tokens, as endpoints count before they answer."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds until a request without an answer is tried again."""
    max_attempts: int = Field(default=6, ge=1)
    """Tries of a request that meets 408, 409, 429, 5xx, a lost connection or a timeout."""
    backoff_s: float = Field(default=0.5, gt=0)
    """First wait; it doubles with every try and is drawn at random below that. Retry-After goes first."""
    max_wait_s: float = Field(default=60.0, gt=0)
    """Longest wait between two tries, whatever the endpoint asks for."""
    breaker: int = Field(default=20, ge=1)
    """Stop when so many requests in a row have failed for good."""
    tokenizer: str = ""
    """Folder of the expert's own tokenizer, with which `redraft estimate` counts prompts; empty: by their length."""
    price_in: float | None = Field(default=None, ge=0)
    """US dollars a million prompt tokens; left out: unknown, so is the cost."""
    price_out: float | None = Field(default=None, ge=0)
    """US dollars a million completion tokens."""
    max_cost_usd: float | None = Field(default=None, gt=0)
    """US dollars that a run may spend on the expert, by the prices above. No request is sent that could pass it."""
    max_tokens_total: int | None = Field(default=None, ge=1)
    """Prompt and completion tokens that a run may use."""
    max_requests: int | None = Field(default=None, ge=1)
    """Requests that a run may send; one that is tried again counts once."""
    deadline_s: float | None = Field(default=None, gt=0)
    """Seconds from the beginning of a run, or of its re-run, after which no request is sent. A batch that is not ready
    then is left to the endpoint, and a later run fetches it."""
    traced: int = Field(default=16, ge=0)
    """Requests of a shard that MLflow shows as traces, without their images."""
    align: AlignmentSettings = AlignmentSettings()

    @model_validator(mode="after")
    def _knows_what_it_limits(self) -> Self:
        if self.max_cost_usd is not None and (self.price_in is None or self.price_out is None):
            raise ConfigError(
                "expert.max_cost_usd needs expert.price_in and expert.price_out: a cost without prices is none"
            )
        return self

    @field_validator("base_url")
    @classmethod
    def _says_only_where(cls, address: str) -> str:
        key = "a key goes into the environment variable that expert.api_key_env names"
        return plain_address(address, name="expert.base_url", instead=key)

    @field_validator("api_key_env")
    @classmethod
    def _is_the_name_of_a_variable(cls, text: str) -> str:
        return variable_name(text, name="expert.api_key_env")


class ReferenceSettings(Settings):
    """The reference expert, and the faults it can be told to show. Shares are of all requests."""

    model: str = "reference"
    """Name under which it is listed."""
    latency_s: float = Field(default=0.0, ge=0)
    """Wait before every answer."""
    share_429: float = Field(default=0.0, ge=0, le=1)
    """Answers "rate limited", with a Retry-After."""
    share_500: float = Field(default=0.0, ge=0, le=1)
    """Answers "internal error"."""
    share_malformed: float = Field(default=0.0, ge=0, le=1)
    """Answers with a content that is no JSON."""
    share_truncated: float = Field(default=0.0, ge=0, le=1)
    """Answers with half a reply and finish_reason "length"."""
    retry_after_s: float = Field(default=0.0, ge=0)
    """The Retry-After of a 429."""
    refuses: tuple[
        Literal["json_schema", "json_object", "max_tokens", "max_completion_tokens", "temperature"], ...
    ] = ()
    """Parameters, and types of response_format, that it answers with a 400."""
    batch_delay_s: float = Field(default=0.0, ge=0)
    """Wait before a batch is begun."""
    batch_answers: int | None = Field(default=None, ge=0)
    """Requests of a batch that are answered before it expires; left out: all."""
    batch_queue: int | None = Field(default=None, ge=1)
    """Requests that a batch may hold; a larger one fails as one does that passes the limit of enqueued tokens."""
    recall: float = Field(default=1.0, ge=0, le=1)
    """Share of the mistakes that it names."""
    precision: float = Field(default=1.0, gt=0, le=1)
    """Share of its corrections that are ones; the others make a true word wrong."""
    style_rewrites: float = Field(default=0.0, ge=0, le=1)
    """Share of the true words with a synonym that it replaces by one."""
    unequal_length: float = Field(default=0.0, ge=0, le=1)
    """Share of its segments whose target gets a word more."""
    compliance: float = Field(default=1.0, ge=0, le=1)
    """Share of those that it mends when it is asked again."""
    seed: int = Field(default=0, ge=0)
    """Which of the requests, counted as they arrive, meet which fault."""

    @model_validator(mode="after")
    def _noise_has_a_name(self) -> Self:
        faults = (self.recall, self.precision, self.style_rewrites, self.unequal_length, self.compliance)
        flawless = faults == (1, 1, 0, 0, 1)
        if self.model == "reference" and not flawless:
            raise ConfigError("give a noisy expert a `model` of its own: a ledger must not take it for the reference")
        return self
