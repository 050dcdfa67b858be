"""A checkpoint in, a member of a family out: official MUX-PLMs and plain classifiers.

A plain classifier is run first to find out how it can be served. Nothing is left half-written: a
new family is made and checked under a temporary name, and a family that gets one more member gets
its new ``family.json`` last.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save_file
from transformers.modeling_utils import PreTrainedModel

from muxserve.errors import FamilyError
from muxserve.models.asking import DEFAULT_TOKENS, MOST_ASKED, ask, stated_positions
from muxserve.models.checkpoint import read_config
from muxserve.models.config import MuxConfig
from muxserve.models.family import (
    FAMILY_FILE,
    FamilySpec,
    Member,
    Task,
    check_family,
    read_spec,
    write_spec,
)
from muxserve.models.official import dropped_tensors, is_official, load_official
from muxserve.models.plain import label_names, problem_type, read_plain, task_of
from muxserve.models.source import fetch, read_state
from muxserve.models.source_tokenizer import SourceTokenizer, read_source_tokenizer


@dataclass(frozen=True)
class Converted:
    """What ``convert`` made.

    Attributes:
        kind: what the checkpoint is, in words.
        num_instances: its N.
        folder: where its weights were written.
        served: whether it is a member of a family now (classifiers of texts or tokens are).
        dropped: tensors of the checkpoint that the model does not use and that were left out.
        max_length: most tokens of a text that the family takes; None if it is not served.
    """

    kind: str
    num_instances: int
    folder: Path
    served: bool
    dropped: tuple[str, ...] = ()
    max_length: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def convert(
    source: str,
    out: Path,
    *,
    tokenizer: str | None = None,
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
) -> Converted:
    """Make a checkpoint a member of the family in folder ``out``, a new or an existing one.

    Args:
        source: a folder, or a model's name on the hub.
        out: the family's folder.
        tokenizer: folder, ``tokenizer.json`` or hub name; by default the checkpoint's own.
        labels: label names in the order of the logits; by default the checkpoint's own.
        max_length: most tokens of a text of a new family; by default what its tokenizer states and
            its model takes.

    Raises:
        FamilyError: for a checkpoint that cannot be read or served, or does not fit the family.
    """
    folder = fetch(source)
    kind, model, dropped = _read_model(folder)
    n = model.config.num_instances if isinstance(model.config, MuxConfig) else 1
    task = task_of(type(model).__name__)

    if task is None:
        if labels is not None:
            raise FamilyError(f"{folder}: labels are for classifiers; this is a {kind}")
        if (out / "config.json").exists() or (out / FAMILY_FILE).exists():
            raise FamilyError(f"{out}: there is a model already; choose another folder")
        made = None if tokenizer is None else read_source_tokenizer(tokenizer, model)
        _write_unserved(model, out, made)
        return Converted(kind, n, out, served=False, dropped=dropped)

    names = label_names(model, labels, folder)
    if (out / FAMILY_FILE).exists():
        for option, given in (("--tokenizer", tokenizer), ("--max-length", max_length)):
            if given is not None:
                name = option.removeprefix("--").replace("-", "_")
                raise FamilyError(f"{out}: the family has its {name}; leave {option} out")
        spec = _widen(out, folder, model, n, names, task)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FamilyError(f"{out}: not empty and no family; choose another folder")
    else:
        own = read_source_tokenizer(tokenizer or str(folder), model)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = own.pad_id
        length = _length(folder, model, own, max_length)
        spec = _new_family(out, model, n, names, task, own, length)
    return Converted(kind, n, out / _member_folder(n), True, dropped, spec.max_length)


def _read_model(folder: Path) -> tuple[str, PreTrainedModel, tuple[str, ...]]:
    """What a checkpoint is, in words, its model, and the names of dropped tensors."""
    config = read_config(folder)
    if not is_official(config):
        plain = read_plain(folder, config)
        return f"plain {type(plain.model).__name__}", plain.model, plain.dropped
    state = read_state(folder)
    try:
        model = load_official(config, state)
    except ValueError as error:
        raise FamilyError(f"{folder}: {error}") from None
    return f"official {config['architectures'][0]}", model, dropped_tensors(model, state)


def _member_folder(n: int) -> str:
    return f"n{n}"


def _length(
    folder: Path, model: PreTrainedModel, tokenizer: SourceTokenizer, wanted: int | None
) -> int:
    """Most tokens of a text of a new family.

    Raises:
        FamilyError: for a plain model that cannot be served, or not at ``wanted`` tokens.
    """
    config = model.config
    if isinstance(config, MuxConfig):
        if config.padding == "max_length":
            most = config.trained_length
        else:
            most = min(config.trained_length, tokenizer.max_length or config.trained_length)
        if (
            wanted is not None
            and wanted != most
            and (config.padding == "max_length" or wanted > most)
        ):
            raise FamilyError(
                f"max_length: these weights take texts of {most} tokens, got {wanted}",
                field="max_length",
            )
        return wanted or most
    stated = stated_positions(config)
    if wanted is None:
        limits = [one for one in (tokenizer.max_length, stated) if one is not None]
        limit = min(*limits, MOST_ASKED) if limits else DEFAULT_TOKENS
    else:
        limit = wanted
    length = _ask(folder, model, limit, shortest=_shortest(tokenizer))
    if wanted is not None and length < wanted:
        raise FamilyError(
            f"max_length: this model takes texts of {length} tokens, got {wanted}",
            field="max_length",
        )
    return length


def _ask(folder: Path, model: PreTrainedModel, limit: int, *, shortest: int = 1) -> int:
    """``ask`` a model, naming its folder in the error."""
    try:
        return ask(model, limit, shortest=shortest)
    except FamilyError as error:
        file = folder / "config.json"
        raise FamilyError(f"{file}: field model_type: {error}", field="model_type") from None


def _shortest(tokenizer: SourceTokenizer) -> int:
    """Tokens of the shortest text: one and the special ones."""
    return tokenizer.tokenizer.num_special_tokens_to_add(False) + 1


def _write(model: PreTrainedModel, folder: Path) -> None:
    """Write a checkpoint's files as ``Family.load`` reads them."""
    if isinstance(model.config, MuxConfig):
        model.save_pretrained(folder)
        return
    # Not save_pretrained: it leaves out tensors that are tied to others, and writes tensors of some
    # types under the names of older releases.
    model.config.architectures = [type(model).__name__]
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Yield a new folder on the disk of ``out``, removed at the end unless it was moved."""
    home = next(parent for parent in out.absolute().parents if parent.is_dir())
    with TemporaryDirectory(dir=home, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary) / "made"
        folder.mkdir()
        yield folder


def _move(made: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    made.rename(out)  # replaces an empty folder too


def _write_unserved(model: PreTrainedModel, out: Path, tokenizer: SourceTokenizer | None) -> None:
    """Write a checkpoint into a folder, beside whatever else is there."""
    with _beside(out) as made:
        _write(model, made)
        if tokenizer is not None:
            tokenizer.tokenizer.save(str(made / "tokenizer.json"))
        if out.exists():
            shutil.copytree(made, out, dirs_exist_ok=True)
        else:
            _move(made, out)


def _new_family(
    out: Path,
    model: PreTrainedModel,
    n: int,
    labels: list[str],
    task: Task,
    tokenizer: SourceTokenizer,
    max_length: int,
) -> FamilySpec:
    spec = FamilySpec(
        name=out.resolve().name,
        task=task,
        problem_type=problem_type(model),
        labels=labels,
        max_length=max_length,
        truncation_side=tokenizer.truncation_side,
        members=[Member(num_instances=n, path=_member_folder(n))],
    )
    with _beside(out) as made:
        _write(model, made / _member_folder(n))
        tokenizer.tokenizer.save(str(made / "tokenizer.json"))
        write_spec(made, spec)
        check_family(made)
        _move(made, out)
    return spec


def _widen(
    out: Path, folder: Path, model: PreTrainedModel, n: int, labels: list[str], task: Task
) -> FamilySpec:
    """Add a member to an existing family, or change nothing."""
    before = read_spec(out)
    spec = before.model_copy(deep=True)
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
    # Only a plain model can be served at another length than its own, and only at a shorter one.
    if isinstance(model.config, MuxConfig):
        spec.max_length = min(spec.max_length, model.config.trained_length)
    elif (length := _ask(folder, model, spec.max_length)) < spec.max_length:
        raise FamilyError(
            f"{out / FAMILY_FILE}: field max_length: the family takes {spec.max_length} tokens, "
            f"this checkpoint {length}",
            field="max_length",
        )
    member = Member(num_instances=n, path=_member_folder(n))
    spec.members = sorted([*spec.members, member], key=lambda one: one.num_instances)
    place = out / member.path
    if place.exists():
        raise FamilyError(f"{place}: in the way; {FAMILY_FILE} does not name it")
    with _beside(place) as made:
        _write(model, made)
        _move(made, place)
    try:
        write_spec(out, spec)
        check_family(out)
    except BaseException:
        write_spec(out, before)
        shutil.rmtree(place)
        raise
    return spec
