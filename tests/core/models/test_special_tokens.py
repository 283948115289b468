import json

import pytest

from core.alignment import DraftTokens, align
from core.corruption.responses import encode_responses, prompt_ids
from core.errors import InputError
from core.models import checkpoint
from core.models.denoiser import load_denoiser, save_denoiser
from core.models.special_tokens import end_of_turn, image_placeholder, set_system_turn, system_turn
from core.models.text import decode_response
from core.models.tokenizer import load_tokenizer
from core.rediff import TextCodec
from tests.core.models.checkpoints import PARTS_CHAT, SPECIAL, as_transformers_4, byte_tokenizer, published

WEIGHTS_AND_CONFIG = ("model.safetensors", "config.json", "siglip-tiny-patch14-56")


def test_the_mask_is_what_config_json_says(tmp_path):
    model = load_denoiser(published(tmp_path, "llada_tiny", mask_token_id=494))
    assert (model.tokenizer.mask_token, model.tokenizer.mask_token_id) == ("<|eot_id|>", 494)


def test_without_a_word_in_config_json_the_mask_is_the_special_token_of_that_name(tmp_path):
    model = load_denoiser(published(tmp_path, "llada_v_tiny", mask_token_id=None))
    assert model.tokenizer.mask_token == "<|mdm_mask|>"


@pytest.mark.parametrize("name", ["llada_tiny", "llada_v_tiny"])
def test_what_was_found_is_saved_with_the_tokenizer(tmp_path, name):
    model = load_denoiser(published(tmp_path, name))
    save_denoiser(model, tmp_path / "saved")
    tokenizer = load_tokenizer(tmp_path / "saved")
    assert [tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id] == [500, 491, 491]
    assert image_placeholder(tokenizer) == (-200 if name == "llada_v_tiny" else None)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in WEIGHTS_AND_CONFIG}


@pytest.mark.parametrize("name", ["llada_tiny", "llada_v_tiny"])
def test_a_tokenizer_that_was_written_by_transformers_4_stays_as_it_was(tmp_path, name):
    """The published code runs with version 4, which knows neither the class nor the template's file of version 5."""
    folder = published(tmp_path, name)
    config = as_transformers_4(folder)
    model = load_denoiser(folder)
    save_denoiser(model, tmp_path / "saved")
    written = json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
    ours = {"mask_token": "<|mdm_mask|>", "pad_token": "<|endoftext|>", "end_of_turn_id": 494}
    seeing = {"image_placeholder_id": -200, "system_turn": system_turn(model.tokenizer)}
    assert written == config | ours | (seeing if name == "llada_v_tiny" else {})
    assert {**files(folder), "tokenizer_config.json": b""} == {
        **files(tmp_path / "saved"),
        "tokenizer_config.json": b"",
    }
    again = load_denoiser(tmp_path / "saved")
    save_denoiser(again, tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "saved")
    for tokenizer in (again.tokenizer, load_tokenizer(tmp_path / "again")):
        assert tokenizer.special_tokens_map == model.tokenizer.special_tokens_map
        assert (end_of_turn(tokenizer), image_placeholder(tokenizer)) == (494, model.layout.placeholder)
        assert prompt_ids(tokenizer, "Hi") == prompt_ids(model.tokenizer, "Hi")


def test_an_old_list_of_special_tokens_does_not_gainsay_what_config_json_says(tmp_path):
    folder = published(tmp_path, "llada_tiny", mask_token_id=494)
    as_transformers_4(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["added_tokens_decoder"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    named = {"eos_token": "<|endoftext|>", "mask_token": {"content": "<|mdm_mask|>", "lstrip": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    save_denoiser(load_denoiser(folder), tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").mask_token_id == 494
    assert json.loads((tmp_path / "saved/special_tokens_map.json").read_text()) == named | {"mask_token": "<|eot_id|>"}


def test_the_placeholder_is_what_config_json_says_or_llavas(tmp_path):
    model = load_denoiser(published(tmp_path, "llada_v_tiny", image_token_index=499))
    assert image_placeholder(model.tokenizer) == model.layout.placeholder == 499


def test_an_image_stands_on_a_line_before_the_prompt_inside_the_chat_template(tmp_path):
    tokenizer = load_denoiser(published(tmp_path, "llada_v_tiny")).tokenizer
    ids = prompt_ids(tokenizer, "Hi", with_image=True)
    before, after = ids[: ids.index(-200)], ids[ids.index(-200) + 1 :]
    assert tokenizer.decode(before) == f"{SPECIAL[490]}{SPECIAL[492]}user{SPECIAL[493]}\n\n"
    assert tokenizer.decode(after) == f"\nHi{SPECIAL[494]}{SPECIAL[492]}assistant{SPECIAL[493]}\n\n"
    assert -200 not in prompt_ids(tokenizer, "Hi")
    assert prompt_ids(tokenizer, "\ufffc", with_image=True).count(-200) == 1


def test_a_published_llava_begins_with_the_system_turn_of_its_code_unless_another_is_asked_for(tmp_path):
    folder = published(tmp_path, "llada_v_tiny")
    about = json.loads((folder / "tokenizer_config.json").read_text())
    del about["system_turn"]
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    model = load_denoiser(folder)
    assert system_turn(model.tokenizer).startswith("You are a helpful language and vision assistant. You are able to")
    save_denoiser(model, tmp_path / "saved")
    for tokenizer in (model.tokenizer, load_denoiser(tmp_path / "saved").tokenizer):
        text = tokenizer.decode(prompt_ids(tokenizer, "Hi"))
        said = f"{SPECIAL[492]}system{SPECIAL[493]}\n\n{system_turn(tokenizer)}{SPECIAL[494]}"
        assert text == f"{SPECIAL[490]}{said}{SPECIAL[492]}user{SPECIAL[493]}\n\nHi{SPECIAL[494]}" + (
            f"{SPECIAL[492]}assistant{SPECIAL[493]}\n\n"
        )
    for turn, marks in (("Be brief.", 2), ("", 1)):
        set_system_turn(model.tokenizer, turn)
        save_denoiser(model, tmp_path / "saved")
        again = load_denoiser(tmp_path / "saved").tokenizer
        assert system_turn(again) == turn
        assert prompt_ids(again, "Hi").count(494) == marks
    assert system_turn(load_denoiser(published(tmp_path / "text", "llada_tiny")).tokenizer) == ""


def test_a_system_turn_needs_a_chat_template():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    set_system_turn(tokenizer, "")
    with pytest.raises(InputError, match="no chat template"):
        set_system_turn(tokenizer, "Be brief.")


def test_an_answer_ends_as_the_chat_template_ends_it_and_then_the_text_does(tmp_path):
    tokenizer = load_denoiser(published(tmp_path, "llada_v_tiny")).tokenizer
    assert end_of_turn(tokenizer) == 494
    ids = encode_responses(tokenizer, ["Hi"], 6).ids_NL[0].tolist()
    assert ids == [*tokenizer("Hi")["input_ids"], 494, 491, 491, 491]
    assert encode_responses(tokenizer, ["Hello", "Hello!"], 6).reason_N == [None, "too_long"]
    answer = decode_response(tokenizer, [*ids[:3], 70, 70, 70])
    assert (answer.text, answer.char_start) == ("Hi", [0, 1, -1, -1, -1, -1])


def test_an_aligned_answer_ends_its_turn_once(tmp_path):
    tokenizer = load_denoiser(published(tmp_path, "llada_v_tiny")).tokenizer
    ids = [*tokenizer("a red ring")["input_ids"], 494, 70, 491, 70, 491, 491]
    text = decode_response(tokenizer, ids)
    draft = DraftTokens(text=text.text, prompt="", token_ids=ids, char_start=text.char_start, char_end=text.char_end)
    found = align(draft, [("red", "blue")], codec=TextCodec.of(tokenizer))
    assert found.target_ids == [*tokenizer("a blue ring")["input_ids"], 494, 491, 491, 491, 491]


def test_without_a_chat_template_an_answer_ends_with_the_text(tmp_path):
    folder = published(tmp_path, "llada_tiny")
    (folder / "chat_template.jinja").unlink()
    tokenizer = load_denoiser(folder).tokenizer
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id == 491


def test_a_chat_template_that_cannot_be_applied_is_refused(tmp_path):
    folder = published(tmp_path, "llada_tiny")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system') }}")
    with pytest.raises(InputError, match="chat template cannot be applied: no system"):
        load_denoiser(folder)


def dreams(folder):
    """Give a checkpoint the tokenizer that Dream publishes."""
    vocabulary = {token: index for token, index in byte_tokenizer().get_vocab().items() if index < 256}
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = {
        str(index): {"content": token, "special": True, "lstrip": False, "rstrip": False, "normalized": False,
                     "single_word": False}
        for index, token in enumerate(["<|endoftext|>", "<|mask|>"], start=256)
    }  # fmt: skip
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": added,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenization_dream.py").write_text("raise SystemExit")
    (folder / "chat_template.jinja").unlink()


def test_a_chat_template_that_takes_a_content_in_parts_gets_it_so(tmp_path):
    folder = published(tmp_path, "llada_v_tiny")
    (folder / "chat_template.jinja").write_text(PARTS_CHAT)
    tokenizer = load_denoiser(folder).tokenizer
    assert end_of_turn(tokenizer) == 494
    for prompt in (" Hi", "User", "A"):  # two of which the template has words of
        assert tokenizer.decode(prompt_ids(tokenizer, prompt)) == f"User: {prompt}{SPECIAL[494]}\nAssistant:"
    ids = prompt_ids(tokenizer, "Hi", with_image=True)
    before, after = ids[: ids.index(-200)], ids[ids.index(-200) + 1 :]
    assert (tokenizer.decode(before), tokenizer.decode(after)) == ("User: ", f"\nHi{SPECIAL[494]}\nAssistant:")


def test_a_chat_template_may_trim(tmp_path):
    folder = published(tmp_path, "llada_tiny")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}")
    tokenizer = load_denoiser(folder).tokenizer
    assert tokenizer.decode(prompt_ids(tokenizer, " Hi\n")) == "[Hi]"


def test_a_chat_template_that_leaves_the_text_out_is_refused(tmp_path):
    folder = published(tmp_path, "llada_tiny")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['role'] }}{% endfor %}")
    with pytest.raises(InputError, match="chat template leaves out the question"):
        load_denoiser(folder)


@pytest.mark.parametrize("name", ["spm.model", "bpe.codes", "sentencepiece.model", "tokenizer_config.json"])
def test_a_tokenizers_files_go_with_a_saved_model_whatever_their_size(tmp_path, monkeypatch, name):
    monkeypatch.setattr(checkpoint, "_KEPT_BYTES", 0)
    folder = published(tmp_path, "llada_tiny")
    if name != "tokenizer_config.json":
        (folder / name).write_bytes(b"words")
    before = (folder / name).read_bytes()
    save_denoiser(load_denoiser(folder), tmp_path / "saved")
    written = (tmp_path / "saved" / name).read_bytes()
    assert written == before or json.loads(written) | json.loads(before) == json.loads(written)


def test_dreams_tokenizer_is_read_without_its_code(tmp_path):
    """Dream publishes vocab.json, merges.txt and a class of its own that transformers does not have."""
    folder = published(tmp_path, "dream_tiny")
    dreams(folder)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_token_id, tokenizer.mask_token_id) == (256, 257)
    assert tokenizer("Hi <|mask|>")["input_ids"][-1] == 257
    assert tokenizer.decode(tokenizer("a ring, été")["input_ids"]) == "a ring, été"


def test_dreams_tokenizer_goes_with_a_saved_model_whatever_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_KEPT_BYTES", 1000)
    folder = published(tmp_path, "dream_tiny", mask_token_id=257, eos_token_id=256)
    dreams(folder)
    model = load_denoiser(folder)
    save_denoiser(model, tmp_path / "saved")
    assert (folder / "vocab.json").stat().st_size > 1000
    assert files(tmp_path / "saved") == files(folder), "it says all by itself"
    assert load_tokenizer(tmp_path / "saved").get_vocab() == model.tokenizer.get_vocab()
