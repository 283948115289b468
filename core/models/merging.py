"""Images inside a text: features of every length, and the merged sequence that a language model runs on.

A text holds one placeholder token an image. In the merged sequence the image's N features stand in its place.

Shapes: B rows, L text tokens, T positions of the longest merged row, I images, F features of all images, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import torch
from torch import Tensor

from core.errors import InputError


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
        chosen = (rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows).tolist()
        return type(self)(values_FD=self.values_FD, lengths=self.lengths, rows=tuple(self.rows[row] for row in chosen))

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


def merge(
    ids_BL: Tensor,
    embeddings_BLD: Tensor,
    *,
    valid_BL: Tensor,
    features: ImageFeatures | None,
    placeholder: int | None,
) -> Merged:
    """Put the images' features in the place of their placeholders. One synchronisation with the host.

    Raises:
        InputError: if a row has more or fewer placeholders than images.
    """
    is_image_BL = torch.zeros_like(valid_BL) if placeholder is None else ids_BL == placeholder
    rows = ((),) * len(ids_BL) if features is None else features.rows
    if len(rows) != len(ids_BL):
        raise InputError(f"features of {len(rows)} rows for a batch of {len(ids_BL)}")
    end_B = (torch.arange(1, ids_BL.shape[1] + 1, device=ids_BL.device) * valid_BL).amax(dim=1)
    valid, *found = torch.cat([valid_BL.sum()[None], is_image_BL.sum(dim=1), end_B]).tolist()
    counts, ends = found[: len(rows)], found[len(rows) :]
    for row, (count, images) in enumerate(zip(counts, rows, strict=True)):
        if count != len(images):
            raise InputError(f"row {row} has {count} image placeholders for {len(images)} images: one each is needed")
    if features is None or not any(rows):
        place_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)
        valid_BT = None if valid == valid_BL.numel() else valid_BL
        return Merged(embeddings_BTD=embeddings_BLD, valid_BT=valid_BT, place_BL=place_BL, is_text=True)
    return _interleave(is_image_BL, embeddings_BLD, valid_BL, features, ends, valid=valid)


def _interleave(
    is_image_BL: Tensor,
    embeddings_BLD: Tensor,
    valid_BL: Tensor,
    features: ImageFeatures,
    ends: list[int],
    *,
    valid: int,
) -> Merged:
    """`ends`: of each row, the text index behind its last valid token. `valid`: all valid tokens."""
    b, _, d = embeddings_BLD.shape
    device = embeddings_BLD.device
    shown = list(chain.from_iterable(features.rows))
    lengths = [features.lengths[image] for image in shown]
    more = [sum(features.lengths[image] - 1 for image in row) for row in features.rows]
    width = max(end + extra for end, extra in zip(ends, more, strict=True))
    lengths_I = torch.tensor(lengths, device=device)
    width_BL = torch.ones_like(is_image_BL, dtype=torch.int64).masked_scatter(is_image_BL, lengths_I)
    place_BL = width_BL.cumsum(dim=1) - width_BL
    flat_BL = place_BL + torch.arange(b, device=device)[:, None] * width
    flat_BL = torch.where(place_BL < width, flat_BL, b * width)  # padding without room: to a place behind all rows
    holder_I = is_image_BL.flatten().nonzero_static(size=len(shown))[:, 0]
    first_I = flat_BL.flatten()[holder_I] - (lengths_I.cumsum(0) - lengths_I)
    total = sum(lengths)
    flat_F = first_I.repeat_interleave(lengths_I, output_size=total) + torch.arange(total, device=device)
    values_FD = features.values_FD
    if shown != list(range(len(features.lengths))):
        parts = torch.split(values_FD, list(features.lengths))
        values_FD = torch.cat([parts[image] for image in shown])
    blank_TD = embeddings_BLD.new_zeros(b * width + 1, d)
    merged_TD = blank_TD.index_copy(0, flat_BL.flatten(), embeddings_BLD.flatten(0, 1))
    merged_TD = merged_TD.index_copy(0, flat_F, values_FD.to(embeddings_BLD))
    valid_T = torch.zeros(b * width + 1, dtype=torch.bool, device=device)
    valid_T[flat_BL.flatten()] = valid_BL.flatten()
    valid_T[flat_F] = True
    full = valid + sum(more) == b * width
    return Merged(
        embeddings_BTD=merged_TD[:-1].view(b, width, d),
        valid_BT=None if full else valid_T[:-1].view(b, width),
        place_BL=place_BL.clamp(max=width - 1),
    )
