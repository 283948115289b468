"""SceneDenoiser, running some of its positions.

Shapes: B rows, L text tokens, T positions (image, then text), A positions that are run, P rotary pairs, D hidden size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from core.models.key_values import KeyValues, Slots, empty_layers
from core.models.scene_denoiser import SceneDenoiser, no_padding


@dataclass(frozen=True, kw_only=True)
class SceneMemory:
    """See core.models.key_values.Remembering. A few rows are run at a time, as in the model."""

    model: SceneDenoiser

    @torch.no_grad()
    def remember(
        self, ids_BL: Tensor, *, valid_BL: Tensor, features_BND: Tensor | None, prompt_BL: Tensor
    ) -> tuple[Tensor, KeyValues]:
        """`hidden`, and the keys and values of all positions."""
        del prompt_BL
        x_BTD, images = self.model.embedded(ids_BL, features_BND)
        known = self._empty(x_BTD, valid_BL, images)
        return self._fill(x_BTD, known.valid_BT, known, images)[:, images:], known

    @torch.no_grad()
    def remember_prompt(
        self,
        ids_BL: Tensor,
        *,
        valid_BL: Tensor,
        features_BND: Tensor | None,
        prompt_BL: Tensor,
        response_length: int,
    ) -> KeyValues:
        """Keys and values of prompt and image alone."""
        x_BTD, images = self.model.embedded(ids_BL, features_BND)
        known = self._empty(x_BTD, valid_BL, images)
        longest = max(x_BTD.shape[1] - response_length, 1)
        read_BT = nn.functional.pad(prompt_BL, (images, 0), value=True).clone()
        read_BT[:, 0].fill_(True)  # an empty prompt's row has to see something; what it then knows is written over
        self._fill(x_BTD[:, :longest], read_BT[:, :longest], known, images)
        return known

    @torch.no_grad()
    def reread(self, ids_BL: Tensor, known: KeyValues, *, offset_B: Tensor, begin: int, end: int) -> Tensor:
        """`hidden` of the response's tokens [begin, end), run alone."""
        model, length = self.model, ids_BL.shape[1]
        columns_BA = offset_B[:, None] + torch.arange(begin, end, device=ids_BL.device)
        position_BAD = model.text_position[columns_BA] + model.text_type
        x_BAD = model.token_embedding(ids_BL.gather(1, columns_BA)) + position_BAD
        place_BA = known.place_BL.gather(1, columns_BA)
        rotation_BAP = model.rotation(known.width - length, length)[place_BA]
        parts = []
        for rows in self._rows(len(ids_BL)):
            part = known.view(rows)
            parts.append(self._run(x_BAD[rows], rotation_BAP[rows], part.valid_BT, part.at(place_BA[rows])))
        return torch.cat(parts)

    def _empty(self, x_BTD: Tensor, valid_BL: Tensor, images: int) -> KeyValues:
        b, width, d = x_BTD.shape
        config = self.model.config
        layers = empty_layers(
            [x_BTD.device] * config.num_hidden_layers,
            rows=b,
            heads=config.num_attention_heads,
            width=width,
            size=d // config.num_attention_heads,
            dtype=x_BTD.dtype,
        )
        return KeyValues(
            layers=layers,
            row_B=torch.arange(b, device=x_BTD.device),
            place_BL=torch.arange(images, width, device=x_BTD.device).expand(b, -1),
            valid_BT=None if no_padding(valid_BL) else nn.functional.pad(valid_BL, (images, 0), value=True),
            before_BD=x_BTD.new_empty(b, 0),
        )

    def _fill(self, x_BAD: Tensor, seen_BA: Tensor | None, known: KeyValues, images: int) -> Tensor:
        """Run the first A positions, which see one another as far as `seen_BA` goes."""
        length = x_BAD.shape[1]
        rotation_AP = self.model.rotation(images, length - images)
        parts = []
        for rows in self._rows(len(x_BAD)):
            seen = None if seen_BA is None else seen_BA[rows]
            parts.append(self._run(x_BAD[rows], rotation_AP, seen, Slots(layers=known.view(rows).layers)))
        return torch.cat(parts)

    def _run(self, x_BAD: Tensor, rotation: Tensor, seen_BT: Tensor | None, slots: Slots) -> Tensor:
        barred_B1T = None if seen_BT is None else ~seen_BT[:, None]
        for layer, block in enumerate(self.model.blocks):
            x_BAD = block(x_BAD, rotation, barred_B1T, partial(slots.update, layer=layer))
        hidden_BAD: Tensor = self.model.final_norm(x_BAD)
        return hidden_BAD

    def _rows(self, rows: int) -> Iterator[slice]:
        together = self.model.rows_together(rows)
        return (slice(first, first + together) for first in range(0, rows, together))
