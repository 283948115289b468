"""Vision warm-up: before any text is masked, each image region learns to name the words that speak of it.

Without it a small model learns colours and places long before shapes. The labels are the samples' grounding: char spans
of the references with the region they speak of.

Shapes: I images of a batch, N regions, K words that are grounded anywhere, D hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.corruption.responses import encode_responses
from core.corruption.rows import token_regions
from core.errors import InputError
from core.ingest.images import LoadImage
from core.models.denoiser import TrainableDenoiser
from core.training.image_cache import ImageCache
from core.training.optim import learning_rate
from core.training.order import DataOrder
from core.training.settings import UpdateSettings

_SCALE = 20.0  # few of the words are true of a region: the mean loss is small
_BIAS = -2.0


@dataclass(frozen=True, kw_only=True)
class GroundedWords:
    """The words that speak of each region of each image: G entries, words as indices of the vocabulary."""

    images: list[str]
    vocabulary_K: NDArray[np.int64]
    image_G: NDArray[np.int64]
    region_G: NDArray[np.int64]
    word_G: NDArray[np.int64]

    def targets(self, rows: NDArray[np.int64], regions: int) -> Tensor:
        """1 where a word speaks of a region, (I, N, K), for the images with these numbers."""
        place = np.full(len(self.images), -1)
        place[rows] = np.arange(len(rows))
        inside = place[self.image_G] >= 0
        targets_INK = torch.zeros(len(rows), regions, len(self.vocabulary_K))
        targets_INK[place[self.image_G[inside]], self.region_G[inside], self.word_G[inside]] = 1.0
        return targets_INK


def warm_up_vision(
    model: TrainableDenoiser,
    samples: pl.DataFrame,
    settings: UpdateSettings,
    *,
    response_length: int,
    load_image: LoadImage,
    seed: int,
    on_loss: Callable[[int, float], None] = lambda _step, _loss: None,
) -> float:
    """Train image features and word embeddings so that a region's feature scores its words; returns the last loss.

    Raises:
        InputError: no sample is grounded, or the model has no vision.
    """
    known = grounded_words(samples, model, response_length)
    cache = ImageCache(load_image, max_bytes=2**30)
    order = DataOrder(rows=len(known.images), batch_size=min(settings.batch_size, len(known.images)), seed=seed)
    embedding = model.get_input_embeddings().weight
    words = torch.from_numpy(known.vocabulary_K).to(embedding.device)
    bias = nn.Parameter(torch.tensor(_BIAS, device=embedding.device))
    optimizer = torch.optim.AdamW([*model.vision_parameters(), embedding, bias], lr=settings.lr, weight_decay=0.0)
    value = float("nan")
    for step in range(settings.steps):
        rows = np.unique(order.step(step))
        features_IND = model.image_features(model.pixels([cache(known.images[row]) for row in rows]))
        if not isinstance(features_IND, Tensor):
            raise InputError("this model has no patches of fixed places to warm up: set vision.steps = 0")
        scores_INK = features_IND @ embedding[words].T + bias
        targets_INK = known.targets(rows, features_IND.shape[1]).to(embedding.device)
        loss = _SCALE * nn.functional.binary_cross_entropy_with_logits(scores_INK, targets_INK)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
        value = float(loss.detach())
        on_loss(step + 1, value)
    return value


def grounded_words(samples: pl.DataFrame, model: TrainableDenoiser, response_length: int) -> GroundedWords:
    """The grounding of all captions of an image together. Captions that cannot be encoded are left out."""
    rows = samples.filter(pl.col("grounding").is_not_null() & pl.col("image_sha").is_not_null())
    if rows.height == 0:
        raise InputError("no sample is grounded: set vision.steps = 0")
    encoded = encode_responses(model.tokenizer, rows["reference"].to_list(), response_length)
    regions_RL = token_regions(rows["grounding"], encoded.start_NL, encoded.end_NL)
    regions_RL[[reason is not None for reason in encoded.reason_N]] = -1
    images = rows["image_sha"].unique(maintain_order=True)
    image_R = rows["image_sha"].replace_strict(images, np.arange(images.len()), return_dtype=pl.Int64).to_numpy()
    row_G, column_G = np.nonzero(regions_RL >= 0)
    vocabulary_K, word_G = np.unique(encoded.ids_NL[row_G, column_G], return_inverse=True)
    return GroundedWords(
        images=images.to_list(),
        vocabulary_K=vocabulary_K.astype(np.int64),
        image_G=image_R[row_G],
        region_G=regions_RL[row_G, column_G].astype(np.int64),
        word_G=word_G.astype(np.int64),
    )
