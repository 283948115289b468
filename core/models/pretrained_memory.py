"""A published language model that runs some of its positions, on transformers' own layers.

Shapes: B rows, L text tokens, T positions of the merged row, A positions that are run, D hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.models.key_values import KeyValues, Slots, empty_layers
from core.models.merging import Arrangement, ImageFeatures, Merged
from core.models.pretrained import PretrainedDenoiser, by_head


@dataclass(frozen=True, kw_only=True)
class PretrainedMemory:
    """See core.models.key_values.Remembering."""

    model: PretrainedDenoiser

    @torch.no_grad()
    def remember(
        self,
        ids_BL: Tensor,
        *,
        valid_BL: Tensor,
        features_BND: ImageFeatures | Arrangement | None,
        prompt_BL: Tensor,
    ) -> tuple[Tensor, KeyValues]:
        """`hidden`, and the keys and values of all positions."""
        merged = self.model.merged(ids_BL, valid_BL, features_BND)
        hidden_BTD, known = self._fill(merged, merged.embeddings_BTD, merged.valid_BT, prompt_BL)
        return merged.text_of(self.model.aligned(hidden_BTD, hidden_BTD[:, :1])), known

    @torch.no_grad()
    def remember_prompt(
        self,
        ids_BL: Tensor,
        *,
        valid_BL: Tensor,
        features_BND: ImageFeatures | Arrangement | None,
        prompt_BL: Tensor,
        response_length: int,
    ) -> KeyValues:
        """Keys and values of prompt and images alone."""
        merged = self.model.merged(ids_BL, valid_BL, features_BND)
        longest = max(merged.embeddings_BTD.shape[1] - response_length, 1)
        seen_BT = None
        if merged.valid_BT is not None:
            seen_BT = (merged.valid_BT & ~merged.spread(~prompt_BL))[:, :longest]
            seen_BT[:, 0].fill_(True)  # an empty prompt's row has to see something; what it then knows is written over
        return self._fill(merged, merged.embeddings_BTD[:, :longest], seen_BT, prompt_BL)[1]

    def _fill(
        self, merged: Merged, embeddings_BAD: Tensor, seen_BA: Tensor | None, prompt_BL: Tensor
    ) -> tuple[Tensor, KeyValues]:
        """Run the first A positions, which see one another as far as `seen_BA` goes."""
        language: Any = self.model.language
        config = language.config
        layers = empty_layers(
            [next(layer.parameters()).device for layer in language.layers],
            rows=len(embeddings_BAD),
            heads=config.num_key_value_heads,
            width=merged.embeddings_BTD.shape[1],
            size=language.layers[0].self_attn.head_dim,
            dtype=embeddings_BAD.dtype,
        )
        hidden_BAD = _run(language, embeddings_BAD, seen_BA, Slots(layers=layers))
        start_B1 = merged.place_BL.gather(1, prompt_BL.sum(dim=1, keepdim=True))
        before_B1D = (start_B1 - 1).clamp(min=0)[..., None].expand(-1, -1, hidden_BAD.shape[-1])
        known = KeyValues(
            layers=layers,
            row_B=torch.arange(len(embeddings_BAD), device=embeddings_BAD.device),
            place_BL=merged.place_BL,
            valid_BT=merged.valid_BT,
            before_BD=hidden_BAD.gather(1, before_B1D)[:, 0],
        )
        return hidden_BAD, known

    @torch.no_grad()
    def reread(self, ids_BL: Tensor, known: KeyValues, *, offset_B: Tensor, begin: int, end: int) -> Tensor:
        """`hidden` of the response's tokens [begin, end). With shifted logits the token before them is run too.

        Before the response that is the prompt's last token, which is not run: its hidden state is known.
        """
        model = self.model
        earlier = int(model.layout.shifted and begin > 0)
        columns_BA = offset_B[:, None] + torch.arange(begin - earlier, end, device=ids_BL.device)
        place_BA = known.place_BL.gather(1, columns_BA)
        embeddings_BAD = model.get_input_embeddings()(ids_BL.gather(1, columns_BA))
        hidden_BAD = _run(model.language, embeddings_BAD, known.valid_BT, known.at(place_BA))
        before_BD = known.before_BD
        if begin == 0:  # a response without a prompt has nothing before it: as in `hidden`
            before_BD = torch.where(place_BA[:, :1] == 0, hidden_BAD[:, 0], before_BD)
        return model.aligned(hidden_BAD, before_BD[:, None])[:, earlier:]


def _run(language: nn.Module, embeddings_BAD: Tensor, seen_BT: Tensor | None, slots: Slots) -> Tensor:
    """(B, A, D): as `encode_bidirectionally`, with the keys and values that `slots` gives."""
    place_BA = slots.place_BA
    if place_BA is None:
        place_BA = torch.arange(embeddings_BAD.shape[1], device=embeddings_BAD.device)[None]
    output = language(
        inputs_embeds=embeddings_BAD,
        attention_mask=by_head(seen_BT),
        position_ids=place_BA,
        past_key_values=slots,
        use_cache=False,
    )
    hidden_BAD: Tensor = output.last_hidden_state
    return hidden_BAD
