"""From the settings of a decoding to what the loop follows."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from core.decoding.caching import Keeping
from core.decoding.guidance import Guided
from core.decoding.loop import Decoded, decode, forbidden_tokens
from core.decoding.naming import Item
from core.decoding.policies import Freeze, Policy, Refine
from core.decoding.quotas import DreamTimes, Even, Linear, Quotas
from core.decoding.reading import Looks, Reader, Whole
from core.decoding.schedule import Blocks, ConfidenceSchedule, OriginSchedule, Schedule, ThresholdSchedule
from core.decoding.scoring import Entropy, Margin, Measure, Probability, Scoring
from core.decoding.settings import DecodeSettings
from core.decoding.state import Canvas, HasTokenizer, blank_canvas, mask_token
from core.decoding.stopping import StopWords
from core.decoding.trace import Recorder
from core.errors import ConfigError
from core.models.denoiser import Denoiser, Features


@dataclass(frozen=True, kw_only=True)
class Strategies:
    """All that a decoding follows; `beginning` and `suffix` are the ids at the ends of every response."""

    schedule: Schedule
    policy: Policy
    scoring: Scoring
    stop: StopWords | None
    beginning: tuple[int, ...]
    suffix: tuple[int, ...]
    cfg_scale: float
    keeping: Keeping

    def canvas(
        self,
        model: Denoiser,
        prompts: Sequence[Sequence[int]],
        *,
        response_length: int,
        streams: Sequence[int] | None = None,
    ) -> Canvas:
        """The start of decoding `prompts`; see `blank_canvas`."""
        return blank_canvas(
            prompts,
            response_length=response_length,
            mask_id=mask_token(model),
            pad_id=int(model.tokenizer.pad_token_id),
            device=model.device,
            beginning=self.beginning,
            suffix=self.suffix,
            streams=streams,
        )

    def reader(self, model: Denoiser, features_BND: Features | None, *, response_length: int) -> Reader:
        """How the model looks at the canvas. Raises ConfigError if it cannot keep what the settings want kept."""
        seen = self.keeping.reader(model, features_BND, response_length=response_length)
        if not self.cfg_scale:
            return seen
        return Guided(seen=seen, blind=self._blind(model, response_length), scale=self.cfg_scale)

    def _blind(self, model: Denoiser, response_length: int) -> Looks:
        """Its prompt is read once where what is seen is; with full attention nothing of it is kept."""
        if model.prompt_attention == "full":
            return Whole(model=model)
        return self.keeping.reader(model, None, response_length=response_length)

    def decode(
        self, reader: Reader, canvas: Canvas, *, response_length: int, recorder: Recorder | None = None
    ) -> Decoded:
        """See `core.decoding.loop.decode`."""
        return decode(
            reader,
            canvas,
            response_length=response_length,
            schedule=self.schedule,
            policy=self.policy,
            scoring=self.scoring,
            stop=self.stop,
            recorder=recorder,
        )


def strategies(settings: DecodeSettings, model: HasTokenizer) -> Strategies:
    """What the settings name, with ids from the model's tokenizer.

    Raises:
        ConfigError: if they name a token that the vocabulary has not, or leave none that may be written and counts.
    """
    tokenizer = model.tokenizer
    unwritten = forbidden_tokens(tokenizer)
    if settings.predict_mask:
        unwritten = tuple(token for token in unwritten if token != mask_token(model))
    policy = Refine(start=settings.start, topk=settings.topk, margin=settings.margin, grid_bits=settings.grid_bits)
    words = tuple(_text(tokenizer, (word,)) for word in settings.stop)
    suppress, late = _tokens(tokenizer, settings.suppress), _tokens(tokenizer, settings.late)
    if len({*unwritten, *suppress, *late}) >= len(tokenizer):
        raise ConfigError(f"decoder setting '{settings.name}': suppress and late leave no token to write")
    return Strategies(
        schedule=schedule_of(settings),
        policy=Freeze() if settings.policy == "freeze" else policy,
        scoring=Scoring(
            measure=_MEASURES[settings.confidence],
            unwritten=unwritten,
            suppress=suppress,
            late=late,
            over_all=settings.softmax == "all",
            temperature=settings.temperature,
        ),
        stop=StopWords(words=words, end=int(tokenizer.eos_token_id)) if words else None,
        beginning=_text(tokenizer, settings.beginning),
        suffix=_text(tokenizer, settings.suffix),
        cfg_scale=settings.cfg_scale,
        keeping=Keeping(cache=settings.cache, refresh=settings.refresh),
    )


_MEASURES: dict[str, Measure] = {"probability": Probability(), "margin": Margin(), "entropy": Entropy()}


def schedule_of(settings: DecodeSettings) -> Schedule:
    """What the settings reveal when."""
    blocks = Blocks(
        tokens_per_step=settings.tokens_per_step,
        steps=settings.steps,
        block_length=settings.block_length,
        extra_steps=settings.extra_steps,
    )
    times = DreamTimes(eps=settings.eps)
    if settings.schedule == "origin":
        return OriginSchedule(blocks=blocks, times=times)
    quotas: dict[str, Quotas] = {"even": Even(), "linear": Linear(), "dream": times}
    schedule = ConfidenceSchedule(blocks=blocks, quotas=quotas[settings.schedule], grid_bits=settings.grid_bits)
    if settings.threshold is None:
        return schedule
    return ThresholdSchedule(within=schedule, threshold=settings.threshold)


def _tokens(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> tuple[int, ...]:
    """Each item is one token: its id, or as the vocabulary has it."""
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary.get(item) if isinstance(item, str) else item for item in items]
    for item, token in zip(items, ids, strict=True):
        if token is None or not 0 <= token < len(tokenizer):
            raise ConfigError(f"the model's vocabulary of {len(tokenizer)} tokens has no {item!r}")
    return tuple(token for token in ids if token is not None)


def _text(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> tuple[int, ...]:
    """Ids one after another; a text is encoded, a token's name in it included."""
    parts = [
        tokenizer.encode(item, add_special_tokens=False) if isinstance(item, str) else _tokens(tokenizer, (item,))
        for item in items
    ]
    if not all(parts):
        raise ConfigError("an empty text can neither stop a response nor begin or end it")
    return tuple(token for part in parts for token in part)
