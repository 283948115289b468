"""A masked language model of transformers as a Denoiser: BERT, RoBERTa, ALBERT, ModernBERT, ModernVBert, ...

Others are loaded if they are a base model followed by a head, in whatever way that is run, and leave padding out of the
text before it. Both are tried out, and refused if not.

Loading and saving are transformers' own, so the layout stays what it was. Dropout is off in training too: a step then
depends on its rows alone.
"""

import sys
from collections.abc import Iterable
from copy import copy
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
from transformers.modeling_outputs import BaseModelOutput

from core.errors import ConfigError, InputError
from core.models.checkpoint import REBUILT, Checkpoint, check_values, listed, open_checkpoint, write_files
from core.models.devices import Placement
from core.models.key_values import Remembering
from core.models.pretrained import Layout, PretrainedDenoiser
from core.models.settings import PromptAttention
from core.models.special_tokens import set_special_tokens
from core.models.tokenizer import load_tokenizer
from core.models.vision import SquareVision

_PROBE = 3
_CLOSE = 1e-3
_CANNOT_RUN = (TypeError, ValueError, LookupError, RuntimeError, AttributeError)
_TAKES_ITS_MASK = ("bert", "roberta", "albert", "modernbert")
"""Types that take a mask of queries and keys, and ModernBERT one for each kind of its layers."""


class MaskedLMDenoiser(PretrainedDenoiser):
    """Saves through the transformers model whose parts it is made of. Its state lists a tied tensor once."""

    def __init__(self, whole: PreTrainedModel, **parts: Any) -> None:
        super().__init__(**parts)
        self._whole = [whole]  # in a list: its parts are registered already
        first: dict[int, str] = {}
        every = [*self.named_parameters(remove_duplicate=False), *self.named_buffers(remove_duplicate=False)]
        owners = {name: first.setdefault(id(tensor), name) for name, tensor in every}
        self._tied = {name: owner for name, owner in owners.items() if name != owner}
        self.register_state_dict_post_hook(_drop_tied)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_give_tied)  # type: ignore[no-untyped-call]

    def attend(self, prompt_attention: PromptAttention) -> None:
        """Full attention alone: these encoders take a mask of keys, none of queries and keys."""
        if prompt_attention != "full":
            raise ConfigError(
                f"prompt_attention = {prompt_attention!r} is for LLaDA, LLaDA-V, Dream, compositions and the scene "
                "model: a masked language model of transformers attends to everything. Set model.prompt_attention = "
                "'full', or leave it out"
            )
        super().attend(prompt_attention)

    def remembering(self) -> Remembering:
        """Not possible: these layers keep no keys and values."""
        raise ConfigError("a masked language model of transformers keeps no keys and values: decode it without cache=")

    def save_pretrained(self, save_directory: str | Path) -> None:
        """As transformers writes this model, with the files that came with it."""
        self._whole[0].save_pretrained(Path(save_directory))
        write_files(Path(save_directory), self.beside())


def _drop_tied(model: MaskedLMDenoiser, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in model._tied:
        state.pop(prefix + name, None)


def _give_tied(model: MaskedLMDenoiser, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, owner in model._tied.items():
        if prefix + owner in state:
            state.setdefault(prefix + name, state[prefix + owner])


def load(folder: Path, placement: Placement) -> MaskedLMDenoiser:
    """Load a masked language model, in evaluation mode.

    Raises:
        InputError: tensors missing, of another shape or of layers that config.json does not have, no mask token, or a
            head that cannot be told from its base, or padding that changes the text before it.
    """
    checkpoint = open_checkpoint(folder)
    try:
        whole, info = AutoModelForMaskedLM.from_pretrained(
            folder,
            dtype=placement.dtype or "auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError, LookupError, ArithmeticError, StrictDataclassError) as error:
        said = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder} is no usable {checkpoint.config['model_type']} checkpoint: {said}") from error
    if info["missing_keys"]:
        raise InputError(
            f"{folder} does not hold the tensors that its config.json describes: missing "
            f"{listed(info['missing_keys'])}. A model without a head for masked tokens cannot be used"
        )
    if surplus := _of_other_layers(whole, info["unexpected_keys"]):
        raise InputError(
            f"{folder} does not hold the tensors that its config.json describes: unexpected {listed(surplus)}. Is the "
            "config.json its own?"
        )
    for name, p in whole.named_parameters():
        check_values(folder, name, p)
    _no_dropout(whole)
    return _split(whole, checkpoint, placement)


def _of_other_layers(whole: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Tensors of layers that the model does not have; those of other heads (a pooler) may be there and are left out."""
    stacks = tuple(f"{name}." for name, part in whole.named_modules() if isinstance(part, nn.ModuleList))
    return [name for name in unexpected if name.startswith(stacks) and not name.endswith(REBUILT)]


def _positions(language: Any) -> int:
    """Tokens that the position embeddings are for. RoBERTa counts its positions from behind that of the padding."""
    longest = getattr(language.config, "max_position_embeddings", None)
    table = getattr(getattr(language, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    unused = 0 if padding is None else padding + 1
    return sys.maxsize if longest is None else longest - unused


def _split(whole: PreTrainedModel, checkpoint: Checkpoint, placement: Placement) -> MaskedLMDenoiser:
    ids_1L = _probe(whole)
    model = _assembled(whole, _head(whole, ids_1L), checkpoint)
    if not _agrees(model, whole, ids_1L):
        raise InputError(
            f"{checkpoint.folder}: {type(whole).__name__} is not a base model followed by its head, or takes no "
            "embeddings: this architecture is not supported"
        )
    _check_padding(model, whole, ids_1L, checkpoint.folder)
    _move(model, placement)
    placement.connect(model)
    return model


@torch.no_grad()
def _head(whole: PreTrainedModel, ids_1L: Tensor) -> nn.Module:
    """What turns the base model's hidden states into logits: its parts one after the other, where these agree."""
    parts = nn.Sequential(*(part for part in whole.children() if part is not whole.base_model))
    try:
        hidden_1LD = whole.base_model(input_ids=ids_1L).last_hidden_state
        logits_1LV = parts(hidden_1LD)
        expected_1LV = whole(input_ids=ids_1L).logits
        agree = logits_1LV.shape == expected_1LV.shape and _close(logits_1LV, expected_1LV, _CLOSE)
    except _CANNOT_RUN:
        return WithinWhole(whole)
    return parts if agree else WithinWhole(whole)


class WithinWhole(nn.Module):
    """A head that the forward of its whole model alone knows how to run (DistilBERT's has functions between layers)."""

    def __init__(self, whole: PreTrainedModel) -> None:
        super().__init__()
        base = whole.base_model
        self.parts = nn.ModuleDict({name: part for name, part in whole.named_children() if part is not base})
        shell = copy(whole)
        shell._modules = {name: _Given() if part is base else part for name, part in whole.named_children()}
        self._shell = [shell]  # in a list: its parts are registered already

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        flat_1ND = hidden_ND.reshape(1, -1, hidden_ND.shape[-1])
        logits_1NV: Tensor = self._shell[0](inputs_embeds=flat_1ND).logits
        return logits_1NV.view(*hidden_ND.shape[:-1], -1)


class _Given(nn.Module):
    """In the place of a base model: its final hidden states are what it is given."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=cast(Any, inputs_embeds))


def _assembled(whole: PreTrainedModel, head: nn.Module, checkpoint: Checkpoint) -> MaskedLMDenoiser:
    folder, config = checkpoint.folder, checkpoint.config
    base: Any = whole.base_model
    sees = hasattr(base, "vision_model")
    language = base.text_model if sees else base
    placeholder = int(whole.config.image_token_id) if sees else None
    tokenizer = load_tokenizer(folder)
    embedding = language.get_input_embeddings()
    set_special_tokens(tokenizer, config, vocabulary=embedding.num_embeddings, placeholder=placeholder)
    vision = SquareVision.of(folder, base.vision_model, base.connector) if sees else None
    model = MaskedLMDenoiser(
        whole,
        language=language,
        head=head,
        vision=vision,
        tokenizer=tokenizer,
        layout=Layout(
            encode=encode_masked,
            name_of=_published_names(whole, language=language, head=head, vision=vision).__getitem__,
            config=config,
            beside=checkpoint.beside,
            max_positions=min(_positions(language), tokenizer.model_max_length),
            placeholder=placeholder,
        ),
    )
    model.train(False)
    return model


def _published_names(whole: nn.Module, **parts: nn.Module | None) -> dict[str, str]:
    """Name of a parameter here -> its name in the whole model, whose it is."""
    known = {id(p): name for name, p in whole.named_parameters()}
    ours = nn.ModuleDict({name: part for name, part in parts.items() if part is not None})
    return {name: known[id(p)] for name, p in ours.named_parameters(remove_duplicate=False)}


def _move(model: nn.Module, placement: Placement) -> None:
    """Each tensor to where it belongs, in place: tied weights stay one."""
    for name, p in model.named_parameters():
        moved = nn.Parameter(p.to(placement.device_of(name)), requires_grad=p.requires_grad)
        torch.utils.swap_tensors(p, moved)  # type: ignore[no-untyped-call]  # torch's
    for name, buffer in model.named_buffers():
        moved_buffer = buffer.to(placement.device_of(name), copy=True)
        torch.utils.swap_tensors(buffer, moved_buffer)  # type: ignore[no-untyped-call]  # torch's


def encode_masked(language: nn.Module, embeddings_BTD: Tensor, seen: Tensor | None) -> Tensor:
    """A transformers encoder; padding is seen by nobody. `seen` is (B, T)."""
    mask = None if seen is None else _mask(cast(PreTrainedModel, language).config, embeddings_BTD, seen.long())
    hidden_BTD: Tensor = language(inputs_embeds=embeddings_BTD, attention_mask=mask).last_hidden_state
    return hidden_BTD


def _mask(config: Any, embeddings_BTD: Tensor, seen_BT: Tensor) -> Any:
    """As the encoder takes it. Given `seen_BT`, it would ask the device in every forward whether there is padding."""
    if config.model_type not in _TAKES_ITS_MASK or config._attn_implementation != "sdpa":
        return seen_BT
    full = create_bidirectional_mask(config, embeddings_BTD, seen_BT, allow_is_bidirectional_skip=False)
    if config.model_type != "modernbert":
        return full
    near = create_bidirectional_sliding_window_mask(config, embeddings_BTD, seen_BT, allow_is_bidirectional_skip=False)
    return {"full_attention": full, "sliding_attention": near}


def _probe(whole: PreTrainedModel) -> Tensor:
    """(1, L): a text to try a model with, without padding: RoBERTa numbers positions by it."""
    pad = whole.config.get_text_config().pad_token_id
    return torch.tensor([[token for token in range(_PROBE + 1) if token != pad][:_PROBE]])


@torch.no_grad()
def _agrees(model: MaskedLMDenoiser, whole: PreTrainedModel, ids_1L: Tensor) -> bool:
    """Whether the parts, one after the other, give what the whole gives, and can be run beside longer texts."""
    try:
        ours, theirs = _tried(model, ids_1L), whole(input_ids=ids_1L).logits
        _tried(model, ids_1L, ids_1L)
        return ours.shape == theirs.shape and _close(ours, theirs, _CLOSE)
    except _CANNOT_RUN:
        return False


@torch.no_grad()
def _check_padding(model: MaskedLMDenoiser, whole: PreTrainedModel, ids_1L: Tensor, folder: Path) -> None:
    """Padding must change nothing."""
    alone = _tried(model, ids_1L)
    one, other = (_tried(model, ids_1L, padding_1L) for padding_1L in (ids_1L, ids_1L.flip(1)))
    # batches of one shape are rounded alike in every dtype; a text alone is not, by 0.3 % in fp16 at 24 layers
    if not (_close(one, other, _CLOSE) and _close(one, alone, torch.finfo(model.dtype).eps ** 0.5)):
        raise InputError(
            f"{folder}: {type(whole).__name__} mixes the padding behind a text into the text (by convolutions, or "
            "embeddings of neighbours), so that its tokens would depend on the longer texts of a batch: this "
            "architecture is not supported"
        )


def _tried(model: MaskedLMDenoiser, ids_1L: Tensor, padding_1L: Tensor | None = None) -> Tensor:
    """(1, L, V): the logits of a text, alone or with this as padding behind it and a longer text beside it."""
    length = ids_1L.shape[1]
    row_1L = ids_1L if padding_1L is None else torch.cat([ids_1L, padding_1L], dim=1)
    ids_BL = row_1L if padding_1L is None else row_1L.expand(2, -1)
    valid_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    valid_BL[0, length:] = False
    return model.logits(model.hidden(ids_BL, valid_BL=valid_BL, features_BND=None)[:1, :length])


def _close(ours: Tensor, theirs: Tensor, share: float) -> bool:
    """Whether they differ by at most this share of the largest."""
    return bool((ours - theirs).abs().max() <= share * theirs.abs().max())


def _no_dropout(model: nn.Module) -> None:
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for key, value in list(vars(part).items()):
            if "dropout" in key and isinstance(value, float):
                setattr(part, key, 0.0)
