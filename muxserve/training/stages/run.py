"""The three stages of the paper: a recipe in, a trained checkpoint out.

Token-retrieval warm-up, pre-training with retrieval beside masked-language modelling (MUX-BERT) or
replaced-token detection (MUX-ELECTRA), and fine-tuning (Murahari et al., Findings of EMNLP 2023).
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM, PreTrainedModel

from muxserve.errors import first_line
from muxserve.models import MuxConfig, MuxElectraConfig
from muxserve.models.source import fetch
from muxserve.training import checksums
from muxserve.training.curves import Curves
from muxserve.training.data.batches import encoded, token_ids
from muxserve.training.data.corpora import (
    Use,
    class_ids,
    label_names,
    load_corpus,
    numbers,
    used_columns,
)
from muxserve.training.data.labelled import TaggedTexts
from muxserve.training.data.tags import tagged_rows
from muxserve.training.evaluation.examples import Examples, tagged_examples
from muxserve.training.pretrained import Student
from muxserve.training.recipe import StageRecipe
from muxserve.training.saving import save_tokenizer, without_retrieval_head
from muxserve.training.stages.objectives import (
    Labelled,
    MaskedWords,
    Objective,
    ReplacedWords,
    Rows,
    TokenRetrieval,
)
from muxserve.training.stages.start import stage_network, text_length
from muxserve.training.stages.trainer import StageTrainer, last_whole_checkpoint
from muxserve.training.work_folder import built_whole, check_empty, claimed

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)


def run_stage(recipe: StageRecipe) -> dict[str, float]:
    """Run a stage, or resume it, and return its figures on the rows held out.

    ``recipe.out`` gets the checkpoint, its tokenizer and ``stage.json`` (recipe and figures), all
    or nothing. The state of the run is kept in ``recipe.work_folder``.

    Raises:
        ValueError: for data, settings or a start that do not fit, naming which; for a work folder
            of another run.
        FamilyError: for a start that cannot be read.
        OSError: naming the file, if something cannot be written.
    """
    check_empty(recipe.out)
    torch.manual_seed(recipe.seed)
    model, tokenizer, objective, content = _prepare(recipe)
    if len(objective.rows) < recipe.groups * objective.n:
        raise ValueError(
            f"{recipe.data}: {len(objective.rows)} rows are fewer than one batch takes "
            f"({recipe.groups} groups of {objective.n})"
        )
    # Claimed last: a mistake above can be corrected without another work folder.
    with claimed(recipe.work_folder, {**recipe.what_is_computed(), **content}):
        state = recipe.work_folder / "trainer"
        checkpoint = last_whole_checkpoint(state)
        with Curves(state / "tensorboard") as curves:
            trainer = StageTrainer(model, objective, recipe, state, curves)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        model.eval()
        measured = {name: round(value, 4) for name, value in objective.measure(model).items()}
        with built_whole(recipe.out) as building:
            _write(building, model.cpu(), tokenizer, recipe, measured)
        return measured


def _prepare(
    recipe: StageRecipe,
) -> tuple[PreTrainedModel, Tokenizer, Objective, dict[str, str]]:
    """The network, its tokenizer, what it learns, and checksums of everything that was read."""
    use: Use = recipe.task if recipe.stage == "finetune" else "plain"
    train, held = load_corpus(recipe, use, recipe.seed)
    columns = used_columns(recipe, use)
    content = {
        "content of data": checksums.of_dataset(train, columns),
        "content of measured data": checksums.of_dataset(held, columns),
    }
    prepare = _finetuning if recipe.stage == "finetune" else _pretraining
    model, tokenizer, objective = prepare(recipe, train, held)
    content["content of start"] = checksums.of_model(model)
    content["content of tokenizer"] = checksums.of_tokenizer(tokenizer)
    if isinstance(objective, ReplacedWords) and objective.generator is not None:
        content["content of generator"] = checksums.of_model(objective.generator)
    return model, tokenizer, objective, content


def _pretraining(
    recipe: StageRecipe, train: "Dataset", held: "Dataset"
) -> tuple[PreTrainedModel, Tokenizer, Objective]:
    model, tokenizer = stage_network(recipe, None)
    length = text_length(recipe, model)
    rows = _windows(train, recipe.text_column, tokenizer, length)
    held_rows = _windows(held, recipe.text_column, tokenizer, length)
    if recipe.stage == "retrieval":
        return model, tokenizer, TokenRetrieval(rows, held_rows, model.config)
    if not isinstance(model.config, MuxElectraConfig):
        if recipe.generator is not None:
            raise ValueError("generator: only MUX-ELECTRA is pre-trained with one")
        words = MaskedWords(rows, held_rows, model.config, tokenizer, recipe.mask_share)
        return model, tokenizer, words
    replaced = ReplacedWords(
        rows, held_rows, model.config, tokenizer, recipe.mask_share, _generator(recipe, model)
    )
    return model, tokenizer, replaced


def _finetuning(
    recipe: StageRecipe, train: "Dataset", held: "Dataset"
) -> tuple[PreTrainedModel, Tokenizer, Objective]:
    of_tokens = recipe.task == "token-classification"
    column = recipe.tags_column if of_tokens else recipe.label_column
    names = label_names(train, column)
    if names is None and of_tokens:
        raise ValueError(f"column {column!r} has real numbers; token tasks take tags")
    if names is not None and len(names) < 2:
        raise ValueError(f"column {column!r} has one label only: {', '.join(names)}")
    model, tokenizer = stage_network(recipe, names or [])
    length = text_length(recipe, model)
    if names is not None and of_tokens:
        rows = tagged_rows(tokenizer, _tagged(train, recipe, names), length)
        examples = tagged_examples(tokenizer, _tagged(held, recipe, names), length)
        return (
            model,
            tokenizer,
            Labelled(rows.ids, rows.labels, examples, model.config, regression=False),
        )
    ids = token_ids(tokenizer, _texts(train, recipe), length)
    held_ids = token_ids(tokenizer, _texts(held, recipe), length)
    labels, right = (
        numbers(part, column) if names is None else class_ids(part, column, names)
        for part in (train, held)
    )
    examples = Examples(held_ids, torch.tensor(right))
    return model, tokenizer, Labelled(ids, labels, examples, model.config, regression=names is None)


def _texts(part: "Dataset", recipe: StageRecipe) -> Any:
    """Texts, or pairs of them."""
    first = list(part[recipe.text_column])
    if recipe.pair_column is None:
        return first
    return list(zip(first, part[recipe.pair_column], strict=True))


def _tagged(part: "Dataset", recipe: StageRecipe, names: list[str]) -> TaggedTexts:
    return TaggedTexts(list(part[recipe.words_column]), class_ids(part, recipe.tags_column, names))


def _windows(part: "Dataset", column: str, tokenizer: Tokenizer, length: int) -> Rows:
    """Token ids of plain text; a text longer than ``length`` continues in further rows."""

    def windows(texts: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        rows: list[list[int]] = []
        for encoding in encoded(tokenizer, texts[column], length):
            rows += [encoding.ids, *(more.ids for more in encoding.overflowing)]
        return {"input_ids": rows}

    made = part.map(windows, batched=True, remove_columns=part.column_names, desc="tokenizing")
    return cast(Rows, made["input_ids"])


def _generator(recipe: StageRecipe, model: PreTrainedModel) -> PreTrainedModel | None:
    if recipe.generator is None:
        return None
    folder = fetch(recipe.generator, ("*.safetensors", "*.bin", "*.json"))
    try:
        generator = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=False).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"generator: {folder}: {first_line(error)}") from None
    if generator.config.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"generator: {folder} has {generator.config.vocab_size} word pieces, the start "
            f"{model.config.vocab_size}"
        )
    return cast(PreTrainedModel, generator)


def _write(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    recipe: StageRecipe,
    measured: dict[str, float],
) -> None:
    if recipe.stage == "finetune" and isinstance(model.config, MuxConfig):
        model = without_retrieval_head(cast(Student, model))
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    told = {"recipe": recipe.model_dump(mode="json"), "measured": measured}
    (folder / "stage.json").write_text(json.dumps(told, indent=2) + "\n")
