import core.protocol
from core.metrics.facts import measure
from core.protocol import protocol_digest


def test_the_protocol_is_the_same_from_call_to_call():
    assert protocol_digest({}) == protocol_digest({})
    assert protocol_digest({}) != protocol_digest({"arms": ["one"]})


def test_a_changed_score_changes_the_protocol(monkeypatch):
    before = protocol_digest({})
    monkeypatch.setattr(core.protocol, "measure", lambda reference, text: {**measure(reference, text), "score": 1.0})
    assert protocol_digest({}) != before


def test_a_changed_caption_changes_the_protocol(monkeypatch):
    before = protocol_digest({})
    original = core.protocol.synthesize

    def synthesize(**values):
        samples, images = original(**values)
        return samples.with_columns(reference=samples["reference"].str.replace("a ", "one ")), images

    monkeypatch.setattr(core.protocol, "synthesize", synthesize)
    monkeypatch.setattr(core.protocol, "controls", lambda *_: {})
    assert protocol_digest({}) != before


def test_changed_scores_of_odd_texts_averages_and_intervals_change_the_protocol(monkeypatch):
    seen = {protocol_digest({})}

    def kinder(reference, text):
        return measure(reference, text) | ({"score": 1.0} if text == f"{reference} {reference}" else {})

    summarize, central = core.protocol.summarize, core.protocol.central
    for name, other in (
        ("measure", kinder),
        ("summarize", lambda rows: summarize(rows) | {"place_accuracy": 1.0}),
        ("central", lambda values: (central(values)[0] + 0.01, central(values)[1])),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(core.protocol, name, other)
            seen.add(protocol_digest({}))
    assert len(seen) == 4
