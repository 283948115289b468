import pytest
import torch

from core.errors import InputError
from core.models.merging import ImageFeatures, arrange

HOLE = 9
LENGTHS = (3, 1, 2)


def features() -> ImageFeatures:
    """Image i's features are 100 (i + 1), 100 (i + 1) + 1, ... in both dimensions."""
    images = [torch.arange(length)[:, None].expand(-1, 2) + 100.0 * (i + 1) for i, length in enumerate(LENGTHS)]
    return ImageFeatures.of_images(images)


def merged_by_hand(ids_BL, valid_BL, rows):
    """(values, valid) of every row, one token after another; tokens stand for themselves."""
    found = []
    for ids, valid, images in zip(ids_BL.tolist(), valid_BL.tolist(), rows, strict=True):
        values, seen, left = [], [], list(images)
        for token, there in zip(ids, valid, strict=True):
            if token == HOLE:
                image = left.pop(0)
                values += [100.0 * (image + 1) + k for k in range(LENGTHS[image])]
                seen += [True] * LENGTHS[image]
            else:
                values.append(float(token))
                seen.append(there)
        found.append((values, seen))
    return found


def run(ids, shown, valid=None):
    ids_BL = torch.tensor(ids)
    valid_BL = torch.ones_like(ids_BL, dtype=torch.bool) if valid is None else torch.tensor(valid)
    embedded = ids_BL[..., None].expand(-1, -1, 2).float()
    arranged = arrange(ids_BL, valid_BL=valid_BL, features=shown, placeholder=HOLE)
    return arranged.merged(embedded), ids_BL, valid_BL


@pytest.mark.parametrize(
    ("ids", "counts"),
    [
        ([[1, HOLE, 2], [HOLE, 1, 2], [1, 2, HOLE]], [1, 1, 1]),
        ([[1, HOLE, HOLE, 2], [1, 2, 3, 4], [HOLE, 3, 2, 1]], [2, 0, 1]),
        ([[HOLE, HOLE, HOLE, 5, 6]], [3]),
    ],
)
def test_features_take_the_place_of_their_placeholders(ids, counts):
    shown = features().grouped(counts)
    valid = [[True] * (len(ids[0]) - 1) + [row != 1] for row in range(len(ids))]
    merged, ids_BL, valid_BL = run(ids, shown, valid)
    for row, (values, seen) in enumerate(merged_by_hand(ids_BL, valid_BL, shown.rows)):
        assert merged.embeddings_BTD[row, : len(values), 0].tolist() == values
        if merged.valid_BT is not None:
            assert merged.valid_BT[row].tolist() == seen + [False] * (merged.valid_BT.shape[1] - len(seen))
        else:
            assert all(seen)
    text = merged.text_of(merged.embeddings_BTD)[..., 0]
    assert torch.equal(text[ids_BL != HOLE], ids_BL[ids_BL != HOLE].float())


def test_rows_are_picked_as_those_of_a_tensor():
    every = features()
    for rows in (torch.tensor([2, 0, 0]), torch.tensor([True, False, True])):
        picked = every[rows]
        expected = rows.nonzero()[:, 0].tolist() if rows.dtype == torch.bool else rows.tolist()
        assert [picked.of(i).tolist() for i in range(len(expected))] == [every.of(i).tolist() for i in expected]
        ids = [[1, HOLE]] * len(expected)
        merged, _, _ = run(ids, picked)
        for row, image in enumerate(expected):
            assert torch.equal(merged.embeddings_BTD[row, 1 : 1 + LENGTHS[image]], every.of(image))


def test_gradients_reach_text_and_features():
    values = torch.randn(3, 2, requires_grad=True)
    shown = ImageFeatures(values_FD=values, lengths=(3,), rows=((0,), (0,)))
    embedded = torch.randn(2, 3, 2, requires_grad=True)
    ids_BL = torch.tensor([[1, HOLE, 2], [HOLE, 1, 2]])
    merged = arrange(ids_BL, valid_BL=ids_BL > 0, features=shown, placeholder=HOLE).merged(embedded)
    merged.embeddings_BTD.sum().backward()
    assert torch.equal(values.grad, torch.full((3, 2), 2.0))
    assert torch.equal(embedded.grad, (ids_BL != HOLE)[..., None].expand(-1, -1, 2).float())


def test_text_without_images_is_left_as_it_is():
    merged, ids_BL, _ = run([[1, 2], [3, 4]], None)
    assert merged.valid_BT is None
    assert torch.equal(merged.embeddings_BTD[..., 0], ids_BL.float())


def test_counts_that_do_not_add_up_are_refused():
    with pytest.raises(InputError, match="3 images for 2 placeholders of 2 rows"):
        features().grouped([1, 1])
    with pytest.raises(InputError, match="features of 3 rows for a batch of 1"):
        run([[HOLE, 1]], features())
