import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    BartConfig,
    BertConfig,
    ConvBertConfig,
    DistilBertConfig,
    MobileBertConfig,
    ModernBertConfig,
    ModernVBertConfig,
    NystromformerConfig,
    RobertaConfig,
    XLMConfig,
)

from core.corruption.responses import encode_responses
from core.errors import InputError
from core.models.denoiser import load_denoiser, save_denoiser
from core.models.text import decode_response
from tests.core.models.checkpoints import byte_tokenizer, write_config

SIZES = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
IDS = {"pad_token_id": 491, "bos_token_id": 490, "eos_token_id": 491, "cls_token_id": 490, "sep_token_id": 491}
TEXT = ModernBertConfig(**SIZES, **IDS)
EYES = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 32, "patch_size": 8}  # fmt: skip
CONFIGS = {
    "bert": BertConfig(**SIZES, pad_token_id=491),
    "roberta": RobertaConfig(**SIZES, pad_token_id=1),
    "albert": AlbertConfig(**SIZES, embedding_size=32),
    "modernbert": TEXT,
    "distilbert": DistilBertConfig(
        vocab_size=512, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64
    ),
    "xlm": XLMConfig(vocab_size=512, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=64),
    "modernvbert": ModernVBertConfig(
        text_config=TEXT.to_dict(), vision_config=EYES, image_token_id=499, pixel_shuffle_factor=2
    ),
}
TRIGRAMS = {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}
MIXING = {
    "mobilebert": MobileBertConfig(**SIZES, **TRIGRAMS),
    "convbert": ConvBertConfig(**SIZES, embedding_size=32),
}


def written(folder, config):
    """A model of random weights as transformers writes it, and itself."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config)
    model.train(False)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def some_ids(rows=2, length=9):
    return torch.from_numpy(np.random.default_rng(0).integers(2, 480, (rows, length)))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_are_those_of_transformers(tmp_path, name):
    whole = written(tmp_path, CONFIGS[name])
    model = load_denoiser(tmp_path)
    ids_BL = some_ids()
    valid_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    valid_BL[1, 6:] = False
    hidden = model.hidden(ids_BL, valid_BL=valid_BL, features_BND=None)
    expected = whole(input_ids=ids_BL, attention_mask=valid_BL.long()).logits
    assert torch.allclose(model.logits(hidden)[valid_BL], expected[valid_BL], atol=1e-5)
    some = torch.tensor([2, 5])
    assert torch.allclose(model.logits(hidden[0, some]), expected[0, some], atol=1e-5)


@pytest.mark.parametrize(("name", "longest"), [("bert", 64), ("roberta", 62), ("modernbert", 64)])
@torch.no_grad()
def test_a_text_may_have_as_many_tokens_as_there_are_positions(tmp_path, name, longest):
    """RoBERTa's table has two rows more than a text can have tokens: it counts from behind the padding's."""
    written(tmp_path, CONFIGS[name])
    model = load_denoiser(tmp_path)
    assert model.max_positions == longest
    ids_BL = some_ids(1, longest + 1)
    valid_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    assert model.hidden(ids_BL[:, 1:], valid_BL=valid_BL[:, 1:], features_BND=None).isfinite().all()
    with pytest.raises(InputError, match=f"at most {longest}"):
        model.hidden(ids_BL, valid_BL=valid_BL, features_BND=None)


@torch.no_grad()
def test_modernvbert_sees_its_images_where_their_placeholder_stands(tmp_path):
    whole = written(tmp_path, CONFIGS["modernvbert"])
    model = load_denoiser(tmp_path)
    pixels = model.pixels(list(np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)))
    features = model.image_features(pixels)
    assert features.lengths == (4, 4)
    ids_BL = some_ids(2, 6)
    ids_BL[:, 2] = 499
    found = model.logits(model.hidden(ids_BL, valid_BL=ids_BL > 0, features_BND=features))
    expanded = torch.cat([ids_BL[:, :2], torch.full((2, 4), 499), ids_BL[:, 3:]], dim=1)
    expected = whole(input_ids=expanded, pixel_values=pixels[:, None]).logits
    assert torch.allclose(found, torch.cat([expected[:, :3], expected[:, 6:]], dim=1), atol=1e-5)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_the_normalisation_of_images_is_the_checkpoints_and_goes_with_a_saved_model(tmp_path, name):
    written(tmp_path / "a", CONFIGS["modernvbert"])
    said = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (tmp_path / "a" / name).write_text(json.dumps({"image_processor": said} if name.startswith("proc") else said))
    model = load_denoiser(tmp_path / "a")
    images = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    expected = (np.stack(images) / 255 - said["image_mean"]) / said["image_std"]
    assert np.allclose(model.pixels(images), expected.transpose(0, 3, 1, 2), atol=1e-6)
    save_denoiser(model, tmp_path / "b")
    assert torch.equal(load_denoiser(tmp_path / "b").pixels(images), model.pixels(images))
    assert {path.name for path in (tmp_path / "b").iterdir()} == {path.name for path in (tmp_path / "a").iterdir()}


@pytest.mark.parametrize("name", ["bert", "modernvbert", "distilbert"])
@torch.no_grad()
def test_saving_and_loading_gives_equal_logits_and_names(tmp_path, name):
    written(tmp_path / "a", CONFIGS[name])
    model = load_denoiser(tmp_path / "a")
    save_denoiser(model, tmp_path / "b")
    again = load_denoiser(tmp_path / "b")
    ids_BL = some_ids()
    first, second = (m.logits(m.hidden(ids_BL, valid_BL=ids_BL > 0, features_BND=None)) for m in (model, again))
    assert torch.equal(first, second)
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in "ab")
    assert before.keys() == after.keys()
    assert json.loads((tmp_path / "a/config.json").read_text()) == json.loads((tmp_path / "b/config.json").read_text())


def test_the_state_holds_tied_weights_once_and_can_be_loaded(tmp_path):
    written(tmp_path, CONFIGS["bert"])
    model, other = load_denoiser(tmp_path), load_denoiser(tmp_path)
    state = {name: value.clone() + 1 for name, value in model.state_dict().items()}
    assert len({value.data_ptr() for value in model.state_dict().values()}) == len(state)
    save_file(state, tmp_path / "state.safetensors")
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_training_has_no_dropout(tmp_path):
    written(tmp_path, CONFIGS["bert"])
    model = load_denoiser(tmp_path)
    model.train()
    ids_BL = some_ids()
    first, second = (model.hidden(ids_BL, valid_BL=ids_BL > 0, features_BND=None) for _ in range(2))
    assert torch.equal(first, second)


def test_a_bert_as_its_hub_has_it_masks_with_mask_and_ends_with_sep(tmp_path):
    """Its tokenizer_config.json names no token: the class that transformers has for BERT does."""
    written(tmp_path, CONFIGS["bert"])
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ring", "##s"]
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken(word, special=True) for word in words[:5]])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer = load_denoiser(tmp_path).tokenizer
    assert [tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id] == [4, 3, 0]
    ids = encode_responses(tokenizer, ["A red rings"], 8).ids_NL[0].tolist()
    assert ids == [5, 6, 7, 8, 3, 3, 3, 3]
    assert decode_response(tokenizer, ids).text == "a red rings"


def test_a_model_without_a_head_is_refused(tmp_path):
    written(tmp_path, CONFIGS["bert"])
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "cls." not in name}, tmp_path / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(InputError, match=r"missing cls\.predictions.*without a head for masked tokens"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize("name", ["bert", "modernbert", "modernvbert"])
def test_a_config_with_fewer_layers_than_are_stored_is_refused(tmp_path, name):
    written(tmp_path, CONFIGS[name])
    config = json.loads((tmp_path / "config.json").read_text())
    text = config.get("text_config", config)
    text["num_hidden_layers"] = 1
    if "layer_types" in text:
        text["layer_types"] = text["layer_types"][:1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"does not hold the tensors.*unexpected .*\.1\..* and \d+ more"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("bert", "hidden_size", "32"),
        ("bert", "hidden_act", "swirl"),
        ("bert", "num_attention_heads", 0),
        ("modernvbert", "image_token_id", "499"),
    ],
)
def test_a_config_that_no_model_can_be_built_from_is_refused(tmp_path, name, key, value):
    written(tmp_path, CONFIGS[name])
    write_config(tmp_path, **{key: value})
    with pytest.raises(InputError, match=f"no usable {name} checkpoint"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize("name", ["bert", "modernvbert"])
def test_other_heads_of_the_checkpoint_are_left_out(tmp_path, name):
    written(tmp_path, CONFIGS[name])
    tensors = load_file(tmp_path / "model.safetensors")
    others = {"bert.pooler.dense.weight": torch.ones(32, 32), "cls.seq_relationship.weight": torch.ones(2, 32)}
    save_file(tensors | others, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_denoiser(tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_have_the_names_that_transformers_gives_them(tmp_path, name):
    whole = dict(written(tmp_path, CONFIGS[name]).named_parameters())
    model = load_denoiser(tmp_path)
    found = {model.layout.name_of(name): p for name, p in model.named_parameters()}
    assert found.keys() == whole.keys()
    assert all(torch.equal(p, whole[name]) for name, p in found.items())


def test_a_model_that_is_no_base_with_a_head_behind_it_is_refused(tmp_path):
    written(tmp_path, BartConfig(vocab_size=512, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=48,
                                 decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4))  # fmt: skip
    with pytest.raises(InputError, match="BartForConditionalGeneration is not a base model followed by its head"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MIXING)
def test_a_model_that_mixes_padding_into_the_text_is_refused(tmp_path, name, dtype):
    written(tmp_path, MIXING[name])
    with pytest.raises(InputError, match=r"ForMaskedLM mixes the padding behind a text into the text"):
        load_denoiser(tmp_path, dtype=dtype)


def test_a_model_to_which_the_length_of_padding_matters_is_refused(tmp_path):
    """Nystromformer blanks its padding, and takes means over all of a row."""
    written(tmp_path, NystromformerConfig(**SIZES))
    with pytest.raises(InputError, match="mixes the padding"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*CONFIGS, "mobilebert"])
@torch.no_grad()
def test_a_model_that_leaves_padding_out_is_loaded_in_every_dtype(tmp_path, name, dtype):
    written(tmp_path, CONFIGS.get(name) or MobileBertConfig(**SIZES, **TRIGRAMS, trigram_input=False))
    model = load_denoiser(tmp_path, dtype=dtype)
    ids_BL = some_ids(2, 9)
    valid_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    valid_BL[1, 4:] = False
    beside = model.logits(model.hidden(ids_BL, valid_BL=valid_BL, features_BND=None)[1:, :4])
    alone = model.logits(model.hidden(ids_BL[1:, :4], valid_BL=valid_BL[1:, :4], features_BND=None))
    assert torch.allclose(beside, alone, rtol=0, atol=float(8 * torch.finfo(dtype).eps * alone.abs().max()))
