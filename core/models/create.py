"""A new small model and its tokenizer."""

from collections.abc import Iterable

from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.models.settings import ModelSettings
from core.models.tokenizer import build_word_tokenizer, train_bpe_tokenizer
from core.worlds.scenes import VOCABULARY


def create_denoiser(settings: ModelSettings, texts: Iterable[str], *, seed: int) -> SceneDenoiser:
    """An untrained model of the sizes in `settings`; `texts` (prompts and references) teach a bpe tokenizer.

    Raises:
        ConfigError: if the sizes do not fit together.
    """
    if settings.tokenizer == "scenes":
        tokenizer = build_word_tokenizer(VOCABULARY)
    else:
        tokenizer = train_bpe_tokenizer(texts, settings.vocab_size)
    tokenizer.model_max_length = settings.prompt_length + settings.response_length
    config = SceneDenoiserConfig(
        max_length=tokenizer.model_max_length,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        mlp_ratio=settings.mlp_ratio,
        image_height=settings.image_height,
        image_width=settings.image_width,
        patch_size=settings.patch_size,
    )
    return SceneDenoiser.create(config, tokenizer, seed=seed)
