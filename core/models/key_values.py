"""Keys and values of rows under decoding, kept between forwards: a forward then runs some of the positions alone.

One store serves the exact prompt cache and the approximate ones: they differ in which positions are run, and when.

Shapes: B rows, K rows that stay, L text tokens, T positions of the merged row, A positions that are run, H key heads,
E size of a head, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from core.models.denoiser import Denoiser, Features
from core.models.rows import Rows


@dataclass(frozen=True, kw_only=True)
class KeyValues:
    """(keys, values) of each layer, (B, H, T, E), which forwards write in place. There is room for one such store.

    row_B: which row the keys and values at each place are of: its own, but see `select`. place_BL: the position of each
    text token. valid_BT: the keys that are seen; None: all. before_BD: the final hidden state of the position before
    the response, from when it was read last.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    row_B: Tensor
    place_BL: Tensor
    valid_BT: Tensor | None
    before_BD: Tensor

    @property
    def width(self) -> int:
        """T."""
        return self.layers[0][0].shape[2]

    def at(self, place_BA: Tensor) -> "Slots":
        """A forward of these positions: each sees every position that is valid."""
        return Slots(layers=self.layers, place_BA=place_BA)

    def view(self, rows: slice) -> Self:
        """Rows that follow one another."""
        return replace(
            self,
            layers=tuple((keys[rows], values[rows]) for keys, values in self.layers),
            row_B=self.row_B[rows],
            place_BL=self.place_BL[rows],
            valid_BT=None if self.valid_BT is None else self.valid_BT[rows],
            before_BD=self.before_BD[rows],
        )

    def select(self, rows: Rows) -> Self:
        """Some of the rows, in the same store, at whose front they now are.

        The store of all rows cannot be used before `restore`: a second one may be more than there is room for.
        """
        index_K = rows.index_K
        leaves_B = torch.ones_like(self.row_B).index_fill(0, index_K, 0)
        self._move(torch.cat([index_K, leaves_B.nonzero_static(size=len(leaves_B) - len(rows.numbers))[:, 0]]))
        return replace(
            self.view(slice(len(rows.numbers))),
            place_BL=self.place_BL[index_K],
            valid_BT=None if self.valid_BT is None else self.valid_BT[index_K],
            before_BD=self.before_BD[index_K],
        )

    def restore(self) -> None:
        """After selections: each row to its own place."""
        self._move(self.row_B.argsort())

    def _move(self, order_B: Tensor) -> None:
        """No more than the keys or values of one layer are there twice."""
        for stored in chain.from_iterable(self.layers):
            stored.copy_(stored[order_B.to(stored.device)])
        self.row_B.copy_(self.row_B[order_B])


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Where one forward writes its keys and values. As transformers' attention sees it: a cache.

    place_BA: the positions that are run, which see the whole store; None: the first A, which see one another alone.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    place_BA: Tensor | None = None

    def update(self, keys_BHAE: Tensor, values_BHAE: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of the positions that are run; returns those that they attend to."""
        stored = self.layers[layer]
        if self.place_BA is None:
            for kept_BHTE, new_BHAE in zip(stored, (keys_BHAE, values_BHAE), strict=True):
                kept_BHTE[:, :, : new_BHAE.shape[2]] = new_BHAE
            return keys_BHAE, values_BHAE
        place_BA = self.place_BA.to(keys_BHAE.device)
        rows_B1 = torch.arange(len(place_BA), device=place_BA.device)[:, None]
        for kept_BHTE, new_BHAE in zip(stored, (keys_BHAE, values_BHAE), strict=True):
            kept_BHTE[rows_B1, :, place_BA] = new_BHAE.transpose(1, 2)
        return stored

    def get_query_offset(self, layer: int = 0) -> int:
        """Of transformers' interface: none, positions are given."""
        del layer
        return 0

    def get_mask_sizes(self, queries: int, layer: int = 0) -> tuple[int, int]:
        """Of transformers' interface: how many keys there are, and the first of them."""
        return (queries if self.place_BA is None else self.layers[layer][0].shape[2]), 0


def empty_layers(
    devices: Sequence[torch.device], *, rows: int, heads: int, width: int, size: int, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Room for the keys and values of one layer a device, zero where nothing was written: unseen, but a number."""
    shape = (rows, heads, width, size)
    return tuple(
        (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
        for device in devices
    )


class Remembering(Protocol):
    """A denoiser that can run some of its positions. A row's response follows its prompt, padding follows that."""

    def remember(
        self, ids_BL: Tensor, *, valid_BL: Tensor, features_BND: Features | None, prompt_BL: Tensor
    ) -> tuple[Tensor, KeyValues]:
        """The denoiser's `hidden`, and the keys and values of all positions. For full attention."""
        ...

    def remember_prompt(
        self,
        ids_BL: Tensor,
        *,
        valid_BL: Tensor,
        features_BND: Features | None,
        prompt_BL: Tensor,
        response_length: int,
    ) -> KeyValues:
        """Keys and values of prompt and images, and room for the response's. For prefix attention.

        Behind the longest prompt stands a response, and nothing else.
        """
        ...

    def reread(self, ids_BL: Tensor, known: KeyValues, *, offset_B: Tensor, begin: int, end: int) -> Tensor:
        """`hidden` of the response's tokens [begin, end), (B, A, D): they are run anew, and `known` learns of them.

        The other positions are what they were when they were run last. offset_B: see Canvas.
        """
        ...


@runtime_checkable
class RememberingDenoiser(Denoiser, Protocol):
    """A denoiser that may know how to keep keys and values."""

    def remembering(self) -> Remembering:
        """Raises ConfigError if its architecture cannot."""
        ...
