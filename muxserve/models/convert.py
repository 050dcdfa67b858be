"""A checkpoint in, a member of a family out: official MUX-PLMs and plain classifiers.

Read from a folder or from the Hugging Face hub; pickled weights are read as tensors only. Nothing
is left half-written: files are made under a temporary name and ``family.json`` comes last.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers.modeling_utils import PreTrainedModel

from muxserve.errors import FamilyError
from muxserve.models.checkpoint import check_shapes, empty_model, model_config, read_config
from muxserve.models.claims import label_fault
from muxserve.models.config import MuxConfig
from muxserve.models.family import (
    AUTO_MODELS,
    FAMILY_FILE,
    FamilySpec,
    Member,
    Task,
    check_family,
    read_spec,
    usable_positions,
    write_spec,
)
from muxserve.models.files import check_links
from muxserve.models.official import is_official, load_official
from muxserve.models.tokenizer_file import built_tokenizer, read_tokenizer_file

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class Converted:
    """What ``convert`` made.

    Attributes:
        kind: what the checkpoint is, in words.
        num_instances: its N.
        folder: where its weights were written.
        served: whether it is a member of a family now (classifiers of texts or tokens are).
    """

    kind: str
    num_instances: int
    folder: Path
    served: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def convert(
    source: str,
    out: Path,
    *,
    tokenizer: str | None = None,
    labels: Sequence[str] | None = None,
) -> Converted:
    """Make a checkpoint a member of the family in folder ``out``, a new one or one that is there.

    Args:
        source: a folder, or a model's name on the hub.
        out: the family's folder.
        tokenizer: folder, ``tokenizer.json`` or hub name; by default the checkpoint's own.
        labels: label names in the order of the logits; by default the checkpoint's own.

    Raises:
        FamilyError: for a checkpoint that cannot be read or served, or does not fit the family.
    """
    folder = fetch(source, (*WEIGHTS, "*.json", "*.txt", "*.model"))
    config = read_config(folder)
    if is_official(config):
        kind = f"official {config['architectures'][0]}" if config.get("architectures") else "?"
        try:
            model: PreTrainedModel = load_official(config, read_state(folder))
        except ValueError as error:
            raise FamilyError(f"{folder}: {error}") from None
    else:
        model = plain_classifier(folder, config)
        kind = f"plain {type(model).__name__}"
    n = model.config.num_instances if isinstance(model.config, MuxConfig) else 1
    task = task_of(type(model).__name__)

    if task is None:
        if labels is not None:
            raise FamilyError(f"{folder}: labels are for classifiers; this is a {kind}")
        if (out / "config.json").exists() or (out / FAMILY_FILE).exists():
            raise FamilyError(f"{out}: there is a model already; choose another folder")
        made = None if tokenizer is None else read_tokenizer(tokenizer, model)
        _write(model, out, made)
        return Converted(kind, n, out, served=False)

    names = label_names(model, labels, folder)
    if (out / FAMILY_FILE).exists():
        if tokenizer is not None:
            raise FamilyError(f"{out}: the family has its tokenizer; leave --tokenizer out")
        _widen(out, model, n, names, task)
    elif out.exists() and any(out.iterdir()):
        raise FamilyError(f"{out}: not empty and no family; choose another folder")
    else:
        _new_family(out, model, n, names, task, read_tokenizer(tokenizer or str(folder), model))
    return Converted(kind, n, out / _member_folder(n), served=True)


def fetch(source: str, patterns: Sequence[str]) -> Path:
    """``source`` as a folder: one that is here, or the files of these patterns from the hub.

    Raises:
        FamilyError: where there is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise FamilyError(f"{source}: expected a folder with config.json and weights, got a file")
    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except HFValidationError:
        raise FamilyError(f"{source}: no such folder, and no name of a model either") from None
    except (HfHubHTTPError, OSError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FamilyError(
            f"{source}: no such folder here, and the hub did not give it: {why}"
        ) from None


def read_state(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's folder; FamilyError for none, or more than tensors."""
    safe, pickled = (folder / name for name in WEIGHTS)
    try:
        if safe.is_file():
            return load_file(safe)
        state = torch.load(pickled, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FamilyError(f"{folder}: no weights; expected {' or '.join(WEIGHTS)}") from None
    except SafetensorError as error:
        raise FamilyError(f"{safe}: not a safetensors file: {error}") from None
    except Exception as error:  # a file that is no pickle makes the reader raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FamilyError(f"{pickled}: refused, it is not tensors alone: {first}") from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise FamilyError(f"{pickled}: expected a dictionary of tensors")
    return state


def task_of(architecture: str) -> Task | None:
    """The task of a class of ``transformers`` or ours, where it is one that families have."""
    endings: dict[str, Task] = {
        "ForSequenceClassification": "sequence-classification",
        "ForTokenClassification": "token-classification",
    }
    return next((task for end, task in endings.items() if architecture.endswith(end)), None)


def plain_classifier(folder: Path, config: dict[str, Any]) -> PreTrainedModel:
    """The ``transformers`` classifier of texts or tokens in a folder, in eval mode.

    Raises:
        FamilyError: for another architecture, or tensors that do not fit its config.
    """
    architecture = (config.get("architectures") or ["(none)"])[0]
    task = task_of(architecture)
    if task is None:
        raise FamilyError(
            f"{folder / 'config.json'}: field architectures: {architecture!r} is neither an "
            "official MUX-PLM nor a classifier of texts or tokens",
            field="architectures",
        )
    made = model_config(config, folder)
    expected = empty_model(AUTO_MODELS[task], made, folder).state_dict()
    state = {k: v for k, v in read_state(folder).items() if not k.endswith("position_ids")}
    check_shapes(
        {key: tensor.shape for key, tensor in state.items()},
        {key: tensor.shape for key, tensor in expected.items()},
        folder,
    )
    model = AUTO_MODELS[task].from_config(made)
    report = model.load_state_dict(state, strict=False)
    tied = set(model.all_tied_weights_keys)
    missing = [key for key in report.missing_keys if key not in tied]
    for what, keys in (("lacks", missing), ("has unexpected", report.unexpected_keys)):
        if keys:
            raise FamilyError(f"{folder}: the checkpoint {what} {', '.join(sorted(keys)[:5])}")
    plain: PreTrainedModel = model.eval()
    return plain


def label_names(model: PreTrainedModel, labels: Sequence[str] | None, folder: Path) -> list[str]:
    count = int(model.config.num_labels or 0)
    names: dict[Any, str] = model.config.id2label or {}
    if sorted(names) != list(range(count)):
        raise FamilyError(
            f"{folder / 'config.json'}: field id2label: expected names of 0 to {count - 1}",
            field="id2label",
        )
    own = [names[index] for index in range(count)]
    if labels is None:
        if own == [f"LABEL_{index}" for index in range(count)] and count > 1:
            raise FamilyError(
                f"{folder}: its {count} labels have no names; give them with --labels, in the "
                "order of the logits",
                field="labels",
            )
        if fault := label_fault(own):
            raise FamilyError(f"{folder}: id2label: {fault}; give --labels", field="labels")
        return own
    if len(labels) != count or len(set(labels)) != count or not all(labels):
        raise FamilyError(
            f"labels: expected {count} different names, got {', '.join(labels)}", field="labels"
        )
    return list(labels)


def read_tokenizer(source: str, model: PreTrainedModel) -> Tokenizer:
    """The tokenizer of a folder, a ``tokenizer.json`` or a name on the hub, for ``model``.

    Raises:
        FamilyError: where there is none, or it has more pieces than the model.
    """
    file = Path(source)
    if not file.is_file():
        folder = fetch(source, ("*.json", "*.txt", "*.model"))
        file = folder / "tokenizer.json"
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise FamilyError(
                f"{folder}: no tokenizer; name one with --tokenizer (official MUX-BERT "
                "checkpoints use bert-base-uncased)",
                field="tokenizer",
            )
        check_links(folder, TOKENIZER_FILES)
    rows = int(model.config.vocab_size)
    if file.is_file():
        # A stored tokenizer.json is taken as it is: AutoTokenizer would rebuild it by model type.
        made = read_tokenizer_file(file, rows=rows)
    else:
        made = built_tokenizer(file.parent, rows=rows)
    made.no_truncation()
    made.no_padding()
    if made.get_vocab_size() > model.config.vocab_size:
        raise FamilyError(
            f"{source}: the tokenizer has {made.get_vocab_size():,} pieces, the weights "
            f"{model.config.vocab_size:,}: it is another model's",
            field="tokenizer",
        )
    return made


def _member_folder(n: int) -> str:
    return f"n{n}"


def _length(model: PreTrainedModel) -> int:
    config = model.config
    return config.trained_length if isinstance(config, MuxConfig) else usable_positions(config)


def _write(model: PreTrainedModel, folder: Path, tokenizer: Tokenizer | None = None) -> None:
    """A checkpoint's folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save(str(Path(temporary) / "tokenizer.json"))
        shutil.copytree(temporary, folder, dirs_exist_ok=True)


def _new_family(
    out: Path, model: PreTrainedModel, n: int, labels: list[str], task: Task, tokenizer: Tokenizer
) -> None:
    spec = FamilySpec(
        name=out.resolve().name,
        task=task,
        problem_type=problem_type(model),
        labels=labels,
        max_length=_length(model),
        members=[Member(num_instances=n, path=_member_folder(n))],
    )
    _write(model, out / _member_folder(n))
    tokenizer.save(str(out / "tokenizer.json"))
    write_spec(out, spec)
    check_family(out)


def _widen(out: Path, model: PreTrainedModel, n: int, labels: list[str], task: Task) -> None:
    """Add a member to a family that is there, or change nothing."""
    spec = read_spec(out)
    if task != spec.task:
        raise FamilyError(
            f"{out / FAMILY_FILE}: field task: the family's is {spec.task}, this checkpoint's "
            f"{task}",
            field="task",
        )
    if n in [member.num_instances for member in spec.members]:
        raise FamilyError(f"{out / FAMILY_FILE}: there is a member with N={n} already")
    if labels != spec.labels:
        raise FamilyError(
            f"{out / FAMILY_FILE}: field labels: the family has {', '.join(spec.labels)}; this "
            f"checkpoint has {', '.join(labels)}",
            field="labels",
        )
    # Only a plain model may be served at another length than its own, and only at a shorter one.
    if isinstance(model.config, MuxConfig):
        spec.max_length = min(spec.max_length, model.config.trained_length)
    member = Member(num_instances=n, path=_member_folder(n))
    spec.members = sorted([*spec.members, member], key=lambda one: one.num_instances)
    folder = out / member.path
    if folder.exists():
        raise FamilyError(f"{folder}: in the way; {FAMILY_FILE} does not name it")
    before = read_spec(out)
    _write(model, folder)
    try:
        write_spec(out, spec)
        check_family(out)
    except FamilyError:
        write_spec(out, before)
        shutil.rmtree(folder)
        raise


def problem_type(model: PreTrainedModel) -> Any:
    """The checkpoint's, or what ``transformers`` makes of the task and the number of labels."""
    if task_of(type(model).__name__) == "token-classification":
        return "single_label_classification"  # whatever the config says: no token loss reads it
    if model.config.problem_type is not None:
        return model.config.problem_type
    return "regression" if model.config.num_labels == 1 else "single_label_classification"
