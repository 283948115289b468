"""Writes two tiny checkpoints for vLLM on a CPU: FOLDER/text (Qwen2) and FOLDER/vision (Qwen2-VL).

    python tiny_models.py FOLDER

Their weights are random but for one thing: quotation marks and braces are likelier than other tokens. Where
a schema is enforced, their replies are therefore JSON that mostly ends, with text that means nothing.
Runs in the environment of install.sh; nothing is downloaded.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

PROMPTS = Path(__file__).parents[2] / "core" / "expert" / "prompts"
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION)
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 8192
WIDTH = 64


def main(folder: Path) -> None:
    """Write both checkpoints."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    text = Qwen2ForCausalLM(Qwen2Config(**size))
    save(text, tokenizer, folder / "text")
    tokenizer.save_pretrained(folder / "text")

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    eyes = {"depth": 2, "embed_dim": 32, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    tokens = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(("vision_start", "vision_end", "image", "video"), VISION, strict=True)
    }
    config = Qwen2VLConfig(
        text_config=size | {"rope_parameters": rope}, vision_config=eyes, tie_word_embeddings=False, **tokens
    )
    save(Qwen2VLForConditionalGeneration(config), tokenizer, folder / "vision")
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=64 * 28 * 28),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=CHAT,
    ).save_pretrained(folder / "vision")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that learned from Redraft's prompts, so that these have about as many tokens as elsewhere."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([path.read_text(encoding="utf-8") for path in sorted(PROMPTS.glob("*.md"))], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",  # noqa: S106 - the name of a token, not a password
        pad_token="<|endoftext|>",  # noqa: S106
        chat_template=CHAT,
        model_max_length=CONTEXT,
    )


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Make endings likely, and write the weights."""
    likely = [index for token, index in tokenizer.get_vocab().items() if token[0] in '"{}']
    with torch.no_grad():
        # one channel that is large for every token outlives the layers, and so is a bias on the logits
        model.get_input_embeddings().weight[:, 0] = 1.0
        model.get_output_embeddings().weight[likely, 0] = 0.4
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
