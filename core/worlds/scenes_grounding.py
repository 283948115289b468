"""Which image region each word of a text speaks of, given the scene that it should describe."""

from core.worlds.scenes import Span, scene_of
from core.worlds.scenes_grammar import ObjectClause, RelationClause, parse
from core.worlds.scenes_graph import Identity


def ground(reference: str, text: str) -> list[Span]:
    """Char spans of the colour, shape and size words of `text` with the cell of the object that they name.

    `reference` determines the scene; words that name no object of it, and texts of other worlds, have no span.
    "a red ring ..." of a scene with a red ring in cell 4 -> [{start 2, end 5, region 4}, {start 6, end 10, region 4}].
    """
    scene = scene_of(reference)
    if scene is None:
        return []
    cells: dict[Identity, int] = {thing.identity: thing.cell for thing in scene.objects}
    words = text.split()
    starts = [sum(len(word) + 1 for word in words[:i]) for i in range(len(words))]
    spans: list[Span] = []
    for clause in parse(text):
        match clause:
            case ObjectClause():
                named = dict.fromkeys(("COLOUR", "SHAPE", "SIZE"), clause.object.identity)
            case RelationClause():
                _, first, second = clause.relation
                named = {"COLOUR": first, "SHAPE": first, "COLOUR2": second, "SHAPE2": second}
            case _:
                continue
        for i, slot in enumerate(clause.template.slots):
            if slot in named and named[slot] in cells:
                start = starts[clause.start + i]
                end = start + len(words[clause.start + i])
                spans.append({"start": start, "end": end, "region": cells[named[slot]]})
    return spans
