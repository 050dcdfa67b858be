"""Classifiers of many types: at N=1 they answer as ``transformers``' pipelines, or are refused.

Every model is tiny and random; what it can be served with is found by running it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast, pipeline

from muxserve.engine.forward import TorchExecutor
from muxserve.engine.scores import label_scores, word_labels
from muxserve.engine.tokens import TextEncoder
from muxserve.errors import FamilyError
from muxserve.models.convert import convert
from muxserve.models.family import AUTO_MODELS, Family, Task
from tests.conftest import tiny_tokenizer

TEXTS: Task = "sequence-classification"
WORDS: Task = "token-classification"
LABELS = ["bad", "fair", "good"]
POSITIONS = 40
SMALL: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "embedding_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "id2label": dict(enumerate(LABELS)),
    "label2id": {name: index for index, name in enumerate(LABELS)},
}
DECODER = {"decoder_layers": 2, "encoder_layers": 2, "d_model": 32, "decoder_attention_heads": 2}
DECODER |= {"encoder_attention_heads": 2, "decoder_ffn_dim": 32, "encoder_ffn_dim": 32}
WITHOUT_TABLE = {"max_position_embeddings": None}
#: What a type wants beside that, to be tiny or to be made at all; None takes a field away.
SPECIAL: dict[str, dict[str, Any]] = {
    "bart": DECODER,
    "mbart": DECODER,
    "mvp": DECODER,
    "plbart": DECODER,
    "falcon": {"head_dim": None},
    "gptj": {"rotary_dim": 8},
    "longformer": {"attention_window": 8},
    "funnel": {
        **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "hidden_size")),
        **{"block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 32},
    },
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 8},
    "lilt": {"num_attention_heads": 4},
    "markuplm": {"max_xpath_tag_unit_embeddings": 8, "max_xpath_subs_unit_embeddings": 8}
    | {"tag_pad_id": 7, "subs_pad_id": 7, "xpath_unit_hidden_size": 4},
    "openai-gpt": {"eos_token_id": None},
    "t5": {"decoder_start_token_id": 0, "d_model": 32, "d_kv": 16, "d_ff": 32},
    "mt5": {"d_kv": 16, "d_ff": 32},
    "umt5": {"d_kv": 16, "d_ff": 32},
    "xlnet": {**WITHOUT_TABLE, "d_model": 32, "n_head": 2, "d_inner": 32},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}
#: Types that are served, and what they take where it is not all of their positions.
SERVED = [
    *("albert", "arcee", "bert", "biogpt", "bloom", "camembert", "ctrl", "data2vec-text"),
    *(
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "esm",
        "eurobert",
        "falcon",
        "funnel",
    ),
    *("flaubert", "gemma", "gemma2", "glm", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "gte"),
    *("ibert", "layoutlm", "llama", "longformer", "luke", "markuplm", "megatron-bert"),
    *("mistral", "mixtral", "modernbert", "mpnet", "mpt", "nemotron", "nomic_bert", "olmo"),
    *("openai-gpt", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3", "rembert", "roberta"),
    *("roberta-prelayernorm", "roformer", "squeezebert", "stablelm", "xlm", "xlm-roberta"),
    *("xlm-roberta-xl", "xmod"),
]
SERVED_OF_WORDS = [
    *("bert", "bloom", "data2vec-text", "deberta-v2", "distilbert", "electra", "esm", "gpt2"),
    *("longformer", "luke", "modernbert", "mpnet", "mt5", "roberta", "t5", "xlm-roberta", "xmod"),
]
FROM_PADDING = {
    **dict.fromkeys(
        (
            *("camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "markuplm"),
            *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
        ),
        POSITIONS - 1,
    ),
    "mpnet": POSITIONS - 2,
}
REFUSED = {
    "bart": "has the end token 3 in it makes the texts beside it fail",
    "mbart": "has the end token 3 in it makes the texts beside it fail",
    "plbart": "has the end token 3 in it makes the texts beside it fail",
    "t5": "has the end token 3 in it makes the texts beside it fail",
    "convbert": "padding or the other text changes its result",
    # Of texts it is served: its pooling leaves out whatever has padding in it.
    "funnel": "padding or the other text changes its result",
    "fnet": "it takes no attention mask",
    "nystromformer": "padding or the other text changes its result",
    "xlnet": "padding or the other text changes its result",
    "yoso": "padding or the other text changes its result",
    "canine": "padding or the other text changes its result",
}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of tiny forwards would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checkpoint(kind: str, task: Task, folder: Path, **changes: Any) -> Any:
    """A tiny random classifier of a type, written as a fine-tuning script leaves it."""
    fields = {**SMALL, **SPECIAL.get(kind, {}), **changes}
    config = CONFIG_MAPPING[kind](**{k: v for k, v in fields.items() if v is not None})
    torch.manual_seed(0)
    model = AUTO_MODELS[task].from_config(config).eval()
    with torch.no_grad():
        for one in model.parameters():
            # Drawn at 0.02, every text would have nearly the same answer.
            one.add_(torch.randn_like(one) * 0.05)
    model.save_pretrained(folder)
    tokenizer(folder)
    return model


def tokenizer(folder: Path, **settings: Any) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(),
        pad_token="[PAD]",
        model_input_names=["input_ids", "attention_mask"],
        **settings,
    )
    made.save_pretrained(folder)
    return made


def served(family: Family, texts: list[str]) -> list[Any]:
    """Scores of each text from one padded batch, as the engine computes it."""
    tokens = TextEncoder.of_family(family).encode(texts)
    executor = TorchExecutor(
        family.models, pad_id=family.pad_id, padded_length=family.padded_length, threads=1
    )
    logits = executor.run(1, [one.ids for one in tokens])
    if not family.spec.of_tokens:
        return [{one.label: one.score for one in label_scores(row, family.spec)} for row in logits]
    return [
        [(one.label, one.score) for one in word_labels(row, own.words, family.spec)]
        for row, own in zip(logits, tokens, strict=True)
    ]


LONG = "a bad film " * 30
READ = ["a good film", "not a very good film, the zebra", LONG]


@pytest.mark.parametrize("kind", SERVED)
def test_a_text_classifier_answers_as_its_pipeline(kind, tmp_path):
    model = checkpoint(kind, TEXTS, tmp_path / "plain")
    made = convert(str(tmp_path / "plain"), tmp_path / "family")
    assert made.max_length == FROM_PADDING.get(kind, POSITIONS)
    ask = pipeline("text-classification", model=model, tokenizer=tokenizer(tmp_path / "tokenizer"))
    answers = served(Family.load(tmp_path / "family"), READ)
    for text, answer in zip(READ, answers, strict=True):
        expected = ask(text, top_k=None, truncation=True, max_length=made.max_length)
        assert answer == pytest.approx({one["label"]: one["score"] for one in expected}, abs=1e-5)


@pytest.mark.parametrize("kind", SERVED_OF_WORDS)
def test_a_word_classifier_answers_as_its_pipeline(kind, tmp_path):
    model = checkpoint(kind, WORDS, tmp_path / "plain")
    convert(str(tmp_path / "plain"), tmp_path / "family")
    own = tokenizer(tmp_path / "tokenizer")
    ask = pipeline("token-classification", model=model, tokenizer=own, ignore_labels=[])
    family = Family.load(tmp_path / "family")
    for text, answer in zip(READ[:2], served(family, READ)[:2], strict=True):
        expected = {one["start"]: one for one in ask(text)}
        starts = [one.start for one in TextEncoder.of_family(family).encode([text])[0].words]
        assert [label for label, _ in answer] == [expected[start]["entity"] for start in starts]
        scores = [float(expected[start]["score"]) for start in starts]
        assert [score for _, score in answer] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "task"), [*((kind, TEXTS) for kind in REFUSED if kind != "funnel"), ("funnel", WORDS)]
)
def test_what_cannot_be_served_is_refused_by_name_and_leaves_nothing(kind, task, tmp_path):
    checkpoint(kind, task, tmp_path / "plain")
    before = sorted(tmp_path.rglob("*"))
    why = f"field model_type: {kind} cannot be served: .*{REFUSED[kind]}"
    with pytest.raises(FamilyError, match=why):
        convert(str(tmp_path / "plain"), tmp_path / "new" / "family")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_changes_for_good_with_a_short_text_is_refused(tmp_path):
    """BigBird's sparse attention is switched off by the first short text."""
    checkpoint("big_bird", TEXTS, tmp_path / "sparse", max_position_embeddings=256, block_size=8)
    with pytest.raises(FamilyError, match="big_bird cannot be served"):
        convert(str(tmp_path / "sparse"), tmp_path / "family")
    full = {"max_position_embeddings": 256, "attention_type": "original_full"}
    checkpoint("big_bird", TEXTS, tmp_path / "full", **full)
    assert convert(str(tmp_path / "full"), tmp_path / "family").max_length == 256


def test_a_type_that_lacks_an_input_is_refused_with_what_it_says(tmp_path):
    checkpoint("xmod", TEXTS, tmp_path / "plain", default_language=None)
    with pytest.raises(FamilyError, match=r"xmod cannot be served: .*Input language unknown"):
        convert(str(tmp_path / "plain"), tmp_path / "family")


def test_a_family_that_promises_more_tokens_than_a_type_takes_is_refused(tmp_path):
    """Where somebody writes the config's own number into family.json."""
    checkpoint("mpnet", TEXTS, tmp_path / "plain")
    convert(str(tmp_path / "plain"), tmp_path / "family")
    file = tmp_path / "family" / "family.json"
    spec = json.loads(file.read_text())
    file.write_text(json.dumps({**spec, "max_length": POSITIONS}))
    with pytest.raises(FamilyError, match="field max_length: 40 is over the 38 tokens"):
        Family.load(tmp_path / "family")


def test_a_decoder_without_padding_takes_its_tokenizers(tmp_path):
    checkpoint("gpt2", TEXTS, tmp_path / "plain", pad_token_id=None)
    stored = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert stored.get("pad_token_id") is None
    convert(str(tmp_path / "plain"), tmp_path / "family")
    family = Family.load(tmp_path / "family")
    assert family.models[1].config.pad_token_id == tiny_tokenizer().token_to_id("[PAD]")
    together = served(family, READ)
    for text, answer in zip(READ, together, strict=True):
        assert answer == pytest.approx(served(family, [text])[0], abs=1e-5)
    (tmp_path / "plain" / "tokenizer_config.json").unlink()
    with pytest.raises(FamilyError, match=r"gpt2 cannot be served: .*padding token"):
        convert(str(tmp_path / "plain"), tmp_path / "without")


def test_a_limit_is_where_the_table_of_positions_ends(tmp_path):
    model = checkpoint("luke", TEXTS, tmp_path / "plain")
    length = convert(str(tmp_path / "plain"), tmp_path / "family").max_length
    assert length == POSITIONS - 1
    ids = np.full((1, length + 1), 5)
    with pytest.raises(IndexError), torch.inference_mode():
        model(input_ids=torch.from_numpy(ids))
