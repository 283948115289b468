"""Scene graphs: what is in a picture, which relations hold in it, and which split it belongs to."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from core.seeds import stream_key

GRID = 3
CELLS = GRID * GRID
COLOURS = ("red", "green", "blue", "yellow", "purple", "white", "orange", "pink")
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
SIZES = ("small", "large")
BACKGROUNDS = ("black", "gray", "brown", "teal")
OBJECT_COUNTS = (2, 3)

Split = Literal["train", "dev", "test"]
Identity = tuple[str, str]
"""(colour, shape): no two objects of a scene share it, so it names one of them."""
Relation = tuple[str, Identity, Identity]
"""(relation, first, second), e.g. ("left", ("red", "ring"), ("blue", "cross"))."""

INVERSE = {
    "left": "right",
    "right": "left",
    "above": "below",
    "below": "above",
    "bigger": "smaller",
    "smaller": "bigger",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One object; `row` and `column` count from the top left."""

    colour: str
    shape: str
    size: str
    row: int
    column: int

    @property
    def identity(self) -> Identity:
        """(colour, shape)."""
        return self.colour, self.shape

    @property
    def cell(self) -> int:
        """row * 3 + column: the index of its image patch."""
        return self.row * GRID + self.column


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture's facts; `objects` are in the order of their cells, so that equal scenes compare equal.

    Raises:
        ValueError: if two objects share a cell or an identity, if there are too few or too many, or out of order.
    """

    background: str
    objects: tuple[SceneObject, ...]

    def __post_init__(self) -> None:
        cells = [thing.cell for thing in self.objects]
        distinct = len({*cells}) == len({thing.identity for thing in self.objects}) == len(cells)
        if not distinct or len(cells) not in OBJECT_COUNTS or cells != sorted(cells):
            raise ValueError(f"not a scene: {self.objects}")


def relations(scene: Scene) -> Iterator[Relation]:
    """Every relation that holds in the scene, each also in its inverse wording."""
    for first in scene.objects:
        for second in scene.objects:
            if first is second:
                continue
            if first.column != second.column:
                yield "left" if first.column < second.column else "right", first.identity, second.identity
            if first.row != second.row:
                yield "above" if first.row < second.row else "below", first.identity, second.identity
            if first.size != second.size:
                yield "bigger" if first.size == "large" else "smaller", first.identity, second.identity


def canonical(relation: Relation) -> Relation:
    """One wording of a relation and its inverse: ("right", a, b) -> ("left", b, a)."""
    name, first, second = relation
    return (INVERSE[name], second, first) if name in {"right", "below", "smaller"} else relation


def split_of(scene: Scene) -> Split:
    """The split that a scene belongs to, by a hash of the scene itself: 1/10 dev, 1/10 test, the rest train.

    Whatever the seed, index or number of samples: a scene of one split never turns up in another.
    """
    objects = (f"{o.size} {o.colour} {o.shape} {o.cell}" for o in scene.objects)
    match stream_key("scene split", scene.background, *objects) % 10:
        case 0:
            return "dev"
        case 1:
            return "test"
        case _:
            return "train"
