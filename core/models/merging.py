"""Images inside a text: features of every length, and the merged sequence that a language model runs on.

A text holds one placeholder token an image. In the merged sequence the image's N features stand in its place.

Shapes: B rows, L text tokens, T positions of the longest merged row, I images, F features of all images, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import torch
from torch import Tensor

from core.errors import InputError
from core.models.rows import Rows


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """Features of images, each of its own length, and the images that each row shows, in reading order.

    Fresh from a model, row i shows image i. Indexed by a bool or index tensor, as a tensor's first axis is, it gives
    those rows; features are not copied.
    """

    values_FD: Tensor
    lengths: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]

    @classmethod
    def of_images(cls, images: Sequence[Tensor]) -> Self:
        """From the (F, D) features of each image; row i shows image i."""
        return cls(
            values_FD=torch.cat(list(images)),
            lengths=tuple(len(image) for image in images),
            rows=tuple((image,) for image in range(len(images))),
        )

    def __getitem__(self, rows: Tensor) -> Self:
        """The features of some rows."""
        return self._of_rows((rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows).tolist())

    def select(self, rows: Rows) -> Self:
        """The features of some rows, for which the host waits for nothing."""
        return self._of_rows(rows.numbers)

    def _of_rows(self, rows: Sequence[int]) -> Self:
        return replace(self, rows=tuple(self.rows[row] for row in rows))

    def filled_with(self, value_D: Tensor) -> Self:
        """As many features, each of them `value_D`."""
        return replace(self, values_FD=value_D.to(self.values_FD).expand_as(self.values_FD))

    def grouped(self, counts: Sequence[int]) -> Self:
        """Rows of several images, or none: counts [2, 0, 1] give row 0 the first two images and row 2 the third.

        Raises:
            InputError: if the counts do not add up to the number of images.
        """
        images = list(chain.from_iterable(self.rows))
        if sum(counts) != len(images):
            raise InputError(f"{len(images)} images for {sum(counts)} placeholders of {len(counts)} rows")
        ends = [sum(counts[: row + 1]) for row in range(len(counts))]
        rows = tuple(tuple(images[end - count : end]) for end, count in zip(ends, counts, strict=True))
        return type(self)(values_FD=self.values_FD, lengths=self.lengths, rows=rows)

    def shown(self) -> Tensor:
        """The features of all rows' images, in reading order, row after row."""
        images = list(chain.from_iterable(self.rows))
        if images == list(range(len(self.lengths))):
            return self.values_FD
        parts = torch.split(self.values_FD, list(self.lengths))
        return torch.cat([parts[image] for image in images])

    def of(self, row: int) -> Tensor:
        """(F, D) features of a row's images, one image after another."""
        parts = torch.split(self.values_FD, list(self.lengths))
        return torch.cat([parts[image] for image in self.rows[row]]) if self.rows[row] else self.values_FD[:0]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The merged sequence. place_BL: where each text token went, a placeholder to its image's first feature.

    valid_BT is None if every position is valid. The sequence ends with its last valid position: of padding that the
    images of other rows left no room for, place_BL is any place. is_text: there are no images.
    """

    embeddings_BTD: Tensor
    valid_BT: Tensor | None
    place_BL: Tensor
    is_text: bool = False

    def spread(self, mask_BL: Tensor) -> Tensor:
        """(B, T) bool: where the text tokens that `mask_BL` marks went; features of images are never marked."""
        counts_BT = torch.zeros(self.embeddings_BTD.shape[:2], dtype=torch.int32, device=mask_BL.device)
        return counts_BT.scatter_add(1, self.place_BL, mask_BL.int()) > 0  # padding may share a place, and marks none

    def text_of(self, hidden_BTD: Tensor) -> Tensor:
        """(B, L, D): the hidden states at the text's tokens."""
        if self.is_text:
            return hidden_BTD
        index_BLD = self.place_BL[..., None].expand(-1, -1, hidden_BTD.shape[-1])
        return hidden_BTD.gather(1, index_BLD)


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """Where the texts and images of some rows go; it holds for any tokens in the place of the texts' own.

    texts: what it is made from. is_image_BL: the placeholders. width: T. valid_BT, place_BL: see `Merged`. slots: None
    if there are no images.
    """

    texts: "_Texts"
    is_image_BL: Tensor
    features: ImageFeatures | None
    width: int
    valid_BT: Tensor | None
    place_BL: Tensor
    slots: "_Slots | None" = None

    def select(self, rows: Rows) -> "Arrangement":
        """The arrangement of some rows, no wider than they need; the host waits for nothing."""
        return _arranged(self.texts.select(rows), None if self.features is None else self.features.select(rows))

    def filled_with(self, value_D: Tensor) -> "Arrangement":
        """With `value_D` for every feature of an image."""
        if self.features is None or self.slots is None:
            return self
        features = self.features.filled_with(value_D)
        return replace(self, features=features, slots=replace(self.slots, values_FD=features.shown()))

    def merged(self, embeddings_BLD: Tensor) -> Merged:
        """The merged sequence of these embeddings of the text; those of placeholders are not looked at."""
        merged_BTD = embeddings_BLD if self.slots is None else self.slots.filled(embeddings_BLD, self.width)
        return Merged(
            embeddings_BTD=merged_BTD, valid_BT=self.valid_BT, place_BL=self.place_BL, is_text=self.slots is None
        )


@dataclass(frozen=True, kw_only=True)
class _Slots:
    """Indices into the flattened merged rows: of each text token, and of each feature. values_FD: those shown."""

    text: Tensor
    features: Tensor
    values_FD: Tensor

    def filled(self, embeddings_BLD: Tensor, width: int) -> Tensor:
        """(B, width, D)."""
        b, _, d = embeddings_BLD.shape
        blank_TD = embeddings_BLD.new_zeros(b * width + 1, d)
        merged_TD = blank_TD.index_copy(0, self.text, embeddings_BLD.flatten(0, 1))
        merged_TD = merged_TD.index_copy(0, self.features, self.values_FD.to(embeddings_BLD))
        return merged_TD[:-1].view(b, width, d)


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """What tells where the tokens of some rows go, kept on the device.

    size_BL: positions that a token takes: one, or those of its image. valid, ends: of each row, its valid tokens and
    the text index behind the last of them.
    """

    is_image_BL: Tensor
    valid_BL: Tensor
    size_BL: Tensor
    valid: tuple[int, ...]
    ends: tuple[int, ...]

    def select(self, rows: Rows) -> "_Texts":
        """Some of the rows."""
        return _Texts(
            is_image_BL=self.is_image_BL[rows.index_K],
            valid_BL=self.valid_BL[rows.index_K],
            size_BL=self.size_BL[rows.index_K],
            valid=tuple(self.valid[row] for row in rows.numbers),
            ends=tuple(self.ends[row] for row in rows.numbers),
        )


def arrange(
    ids_BL: Tensor, *, valid_BL: Tensor, features: ImageFeatures | None, placeholder: int | None
) -> Arrangement:
    """The images' features go in the place of their placeholders. One synchronisation with the host.

    Raises:
        InputError: if a row has more or fewer placeholders than images.
    """
    is_image_BL = torch.zeros_like(valid_BL) if placeholder is None else ids_BL == placeholder
    rows = ((),) * len(ids_BL) if features is None else features.rows
    if len(rows) != len(ids_BL):
        raise InputError(f"features of {len(rows)} rows for a batch of {len(ids_BL)}")
    end_B = (torch.arange(1, ids_BL.shape[1] + 1, device=ids_BL.device) * valid_BL).amax(dim=1)
    counts, valid, ends = torch.stack([is_image_BL.sum(dim=1), valid_BL.sum(dim=1), end_B]).tolist()
    for row, (count, images) in enumerate(zip(counts, rows, strict=True)):
        if count != len(images):
            raise InputError(f"row {row} has {count} image placeholders for {len(images)} images: one each is needed")
    size_BL = torch.ones_like(is_image_BL, dtype=torch.int64)
    if features is not None and any(rows):
        lengths_I = torch.tensor([features.lengths[image] for image in chain.from_iterable(rows)])
        size_BL = size_BL.masked_scatter(is_image_BL, lengths_I.to(ids_BL.device, non_blocking=True))
    texts = _Texts(is_image_BL=is_image_BL, valid_BL=valid_BL, size_BL=size_BL, valid=tuple(valid), ends=tuple(ends))
    return _arranged(texts, features)


def _arranged(texts: _Texts, features: ImageFeatures | None) -> Arrangement:
    """What is known of the rows, laid out: nothing is asked of the device, and nothing sent to it."""
    b, length = texts.is_image_BL.shape
    device = texts.is_image_BL.device
    if features is None or not any(features.rows):
        return Arrangement(
            texts=texts,
            is_image_BL=texts.is_image_BL,
            features=features,
            width=length,
            valid_BT=None if sum(texts.valid) == b * length else texts.valid_BL,
            place_BL=torch.arange(length, device=device).expand(b, -1),
        )
    lengths = [features.lengths[image] for image in chain.from_iterable(features.rows)]
    more = [sum(features.lengths[image] - 1 for image in row) for row in features.rows]
    width = max(end + extra for end, extra in zip(texts.ends, more, strict=True))
    place_BL = texts.size_BL.cumsum(dim=1) - texts.size_BL
    flat_BL = place_BL + torch.arange(b, device=device)[:, None] * width
    flat_BL = torch.where(place_BL < width, flat_BL, b * width)  # padding without room: to a place behind all rows
    holder_I = texts.is_image_BL.flatten().nonzero_static(size=len(lengths))[:, 0]
    lengths_I = texts.size_BL.flatten()[holder_I]
    first_I = flat_BL.flatten()[holder_I] - (lengths_I.cumsum(0) - lengths_I)
    total = sum(lengths)
    flat_F = first_I.repeat_interleave(lengths_I, output_size=total) + torch.arange(total, device=device)
    valid_T = torch.zeros(b * width + 1, dtype=torch.bool, device=device)
    valid_T = valid_T.index_copy(0, flat_BL.flatten(), texts.valid_BL.flatten()).index_fill(0, flat_F, True)
    full = sum(texts.valid) + sum(more) == b * width
    return Arrangement(
        texts=texts,
        is_image_BL=texts.is_image_BL,
        features=features,
        width=width,
        valid_BT=None if full else valid_T[:-1].view(b, width),
        place_BL=place_BL.clamp(max=width - 1),
        slots=_Slots(text=flat_BL.flatten(), features=flat_F, values_FD=features.shown()),
    )
