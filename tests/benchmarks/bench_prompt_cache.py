"""Decoding a response to a long image prompt, with prefix attention: the prompt read once against in every step.

python -m tests.benchmarks.bench_prompt_cache --out tests/results/benchmarks/prompt_cache.json

Random weights in LLaDA-V's layout without its tower: an image of so many features that the prompt has `--prompt`
positions, and `--response` new tokens in `--steps` steps. Both ways must write the same tokens. The arithmetic limit is
the positions that either way runs, steps * (prompt + response) over prompt + steps * response; the bare forwards are
one of the prompt and one of the response a step, on the same layers, with nothing around them. One decoding without the
cache takes minutes on a processor.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.decoding.reading import Reader, Whole
from core.decoding.settings import DecodeSettings
from core.decoding.state import Canvas
from core.decoding.strategies import strategies
from core.models.decoders import decoder_family
from core.models.key_values import KeyValues
from core.models.merging import ImageFeatures
from core.models.pretrained import Layout, PretrainedDenoiser, encode_bidirectionally
from core.models.pretrained_memory import PretrainedMemory
from core.models.special_tokens import LLAVA_PLACEHOLDER
from core.models.tokenizer import build_word_tokenizer
from tests.benchmarks.record import Ratio, alternate, record

TARGET = 10.0
_CONTROL_TOKENS = 4
_TEXT = 40  # tokens of the prompt beside its image


@dataclass(frozen=True, kw_only=True)
class Work:
    """One prompt, how its response is decoded, and the model, with prefix attention."""

    model: PretrainedDenoiser
    prompt: list[int]
    features: ImageFeatures
    response: int
    settings: DecodeSettings

    def decoded(self, *, cached: bool) -> Tensor:
        """(1, R) tokens, prompt and all."""
        chosen = strategies(self.settings, self.model)
        reader: Reader = Whole(model=self.model, features_BND=self.features)
        if cached:
            reader = chosen.reader(self.model, self.features, response_length=self.response)
        return chosen.decode(reader, self.canvas(), response_length=self.response).token_ids_BR

    def canvas(self) -> Canvas:
        """The start of the decoding."""
        chosen = strategies(self.settings, self.model)
        return chosen.canvas(self.model, [self.prompt], response_length=self.response)

    @torch.inference_mode()
    def bare(self, steps: int) -> None:
        """The forwards of a cached decoding, without head, schedule and policy."""
        canvas, memory = self.canvas(), PretrainedMemory(model=self.model)
        known: KeyValues = memory.remember_prompt(
            canvas.ids_BL,
            valid_BL=canvas.valid_BL,
            features_BND=self.features,
            prompt_BL=canvas.prompt(),
            response_length=self.response,
        )
        for _ in range(steps):
            memory.reread(canvas.ids_BL, known, offset_B=canvas.offset_B, begin=0, end=self.response)


def make_work(args: argparse.Namespace) -> Work:
    """A model of random weights, sharp enough to say different things, and one prompt."""
    config = {
        "model_type": "llava_llada", "vocab_size": args.vocabulary, "hidden_size": args.hidden, "rope_theta": 5e5,
        "intermediate_size": 3 * args.hidden, "num_hidden_layers": args.layers, "rms_norm_eps": 1e-5,
        "num_attention_heads": args.hidden // 64, "max_position_embeddings": 2 * (args.prompt + args.response),
        "prompt_attention": "prefix",
    }  # fmt: skip
    family = decoder_family(config)
    torch.manual_seed(0)
    language, head = family.build()
    torch.nn.init.normal_(language.embed_tokens.weight)
    torch.nn.init.normal_(head.weight, std=0.3)
    layout = Layout(
        encode=encode_bidirectionally, name_of=family.name_of, config=config, beside={}, placeholder=LLAVA_PLACEHOLDER,
        max_positions=family.config.max_position_embeddings,
    )  # fmt: skip
    tokenizer = build_word_tokenizer([f"w{index}" for index in range(args.vocabulary - _CONTROL_TOKENS)])
    model = PretrainedDenoiser(language=language, head=head, vision=None, layout=layout, tokenizer=tokenizer)
    model.train(False)
    text = torch.randint(0, args.vocabulary - _CONTROL_TOKENS, (_TEXT,)).tolist()
    image = torch.randn(args.prompt - _TEXT, args.hidden)
    return Work(
        model=model,
        prompt=[*text[: _TEXT // 2], LLAVA_PLACEHOLDER, *text[_TEXT // 2 :]],
        features=ImageFeatures.of_images([image]),
        response=args.response,
        settings=DecodeSettings(tokens_per_step=-(-args.response // args.steps)),
    )


def main() -> int:
    """Run, write the JSON, and return 0 if the ratio is reached with equal tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompt", type=int, default=3400)
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    work = make_work(args)
    tokens: dict[bool, Tensor] = {}
    timings = alternate(
        {
            "without the cache": lambda: tokens.update({False: work.decoded(cached=False)}),
            "with the cache": lambda: tokens.update({True: work.decoded(cached=True)}),
            "bare forwards": lambda: work.bare(args.steps),
        },
        repeats=args.repeats,
        warm_up=0,
    )
    same = (tokens[False] == tokens[True]).float().mean().item()
    limit = args.steps * (args.prompt + args.response) / (args.prompt + args.steps * args.response)
    return record(
        args.out,
        "prompt_cache",
        settings={key: value for key, value in vars(args).items() if key != "out"},
        measured={
            "seconds": timings.as_json,
            "arithmetic_limit": round(limit, 2),
            "distinct_tokens": tokens[True].unique().numel(),
        },
        ratios=[
            Ratio(
                what="prompt cache: decoding without it over with it",
                value=timings.ratio("without the cache", "with the cache"),
                bound=TARGET,
            ),
            Ratio(
                what="prompt cache: decoding over its bare forwards",
                value=timings.ratio("with the cache", "bare forwards"),
            ),
            Ratio(what="prompt cache: share of equal tokens", value=same, bound=1.0, unit=""),
        ],
        packages=("torch", "transformers"),
    )


if __name__ == "__main__":
    sys.exit(main())
