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
