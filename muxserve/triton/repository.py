"""A family in, a Triton model repository out: whole or not at all.

The repository has one model for each N and, with the Python backend, an elastic model that chooses
N by how much waits. With a text front it also has a tokenizer, and an ensemble for each model. The
models run without muxserve.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from tritonclient.grpc import model_config_pb2 as pb

from muxserve.engine.config import EngineConfig
from muxserve.engine.widths import allowed_widths
from muxserve.errors import InvalidInput
from muxserve.models.family import Family, resolve
from muxserve.triton import model_config as mc
from muxserve.triton.copied_modules import write_model_code
from muxserve.triton.graph import check_graph, export_graph
from muxserve.triton.identity import identity
from muxserve.triton.readme import readme, requirements
from muxserve.triton.runtime.facts import Facts
from muxserve.triton.settings import ExportSettings
from muxserve.triton.weights import store_graphs

_RUNTIME = "muxserve.triton.runtime"
#: Encoder rows of one forward, as in the engine.
_MOST_GROUPS = EngineConfig().max_groups
_WARM_UP_TEXT = "a text to warm up with"
#: The only version that an export writes.
_VERSION = "1"


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """One model of a repository.

    Attributes:
        name: its name in Triton.
        kind: "elastic", "member", "text front", "tokenizer" or "tagger".
        widths: every N that it may run at; empty if it runs no forward itself.
    """

    name: str
    kind: str
    widths: list[int]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    folder: Path
    models: list[ExportedModel]


def export(
    family: str | Path,
    repository: Path,
    settings: ExportSettings | None = None,
    *,
    on_progress: Callable[[str, float], None] | None = None,
) -> Exported:
    """Write a repository that a stock Triton server can load.

    Args:
        family: a shipped family's name, or a folder.
        repository: the folder to create; it may exist if it is empty.
        settings: by default the default settings.
        on_progress: called with what is being written and the share done.

    Raises:
        FamilyError: the family cannot be loaded or written as ONNX.
        InvalidInput: the folder is not empty.
    """
    settings = settings or ExportSettings()
    if repository.exists() and (not repository.is_dir() or any(repository.iterdir())):
        raise InvalidInput(
            f"{repository} is not empty: name a new folder; its model folders can be moved into "
            "another repository afterwards"
        )
    source = resolve(family)
    loaded = Family.load(source, settings.num_instances)
    repository.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(
        tempfile.mkdtemp(prefix=f".{repository.name}.", dir=repository.absolute().parent)
    )
    try:
        writer = _Writer(loaded, temporary, settings, on_progress or (lambda _, __: None))
        models = writer.write()
        temporary.chmod(0o755)  # mkdtemp restricts it to one user; Triton may run as another
        temporary.rename(repository)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Exported(repository, models)


class _Writer:
    """Writes one repository into an empty folder."""

    def __init__(
        self,
        family: Family,
        folder: Path,
        settings: ExportSettings,
        on_progress: Callable[[str, float], None],
    ) -> None:
        self._family = family
        self._folder = folder
        self._settings = settings
        self._on_progress = on_progress
        self._name = re.sub(r"[^A-Za-z0-9_.-]", "-", family.spec.name)
        self._vocab_size = min(int(one.config.vocab_size) for one in family.models.values())
        self._parameters = {**identity(family), "pad_id": str(family.pad_id)}
        self._models: list[ExportedModel] = []

    def write(self) -> list[ExportedModel]:
        """Write every model, the README and the requirements."""
        widths = self._family.widths
        graphs: dict[int, onnx.ModelProto] = {}
        of_scores = self._settings.backend == "onnxruntime" and not self._family.spec.of_tokens
        for done, n in enumerate(widths):
            self._on_progress(f"graph of N={n}", done / len(widths))
            graphs[n] = export_graph(self._family, n, with_scores=of_scores)
        self._on_progress("models", 1.0)
        if self._settings.backend == "onnxruntime":
            for n in widths:
                self._onnx_model(n, graphs[n])
        else:
            elastic = allowed_widths(
                self._family.spec,
                widths,
                EngineConfig(max_quality_loss=self._settings.max_quality_loss),
            )
            if len(elastic) > 1:
                self._python_model(self._name, elastic, graphs)
            for n in widths:
                self._python_model(f"{self._name}_n{n}", [n], graphs)
        if self._settings.text:
            self._text_front()
        spec = self._family.spec
        (self._folder / "README.md").write_text(
            readme(spec, [(one.name, one.kind, one.widths) for one in self._models], self._settings)
        )
        (self._folder / "requirements.txt").write_text(requirements(self._settings))
        return self._models

    def _python_model(
        self, name: str, widths: Sequence[int], graphs: dict[int, onnx.ModelProto]
    ) -> None:
        """Write a Python-backend model that fills slots at one or several N."""
        fixed = widths[0] if len(widths) == 1 else None
        settings = self._settings
        outputs = [*self._outputs(), mc.NUM_INSTANCES_ARRAY]
        tuning = {
            "max_waiting_texts": str(settings.max_waiting_texts),
            "latency_target_ms": f"{settings.latency_target_ms:g}",
            "max_groups": str(min(_MOST_GROUPS, self._batch_size(widths[0]))),
            "threads": str(settings.threads),
            "warm_up_s": f"{settings.warm_up_s:g}",
        }
        config = mc.model_config(
            name,
            "python",
            [mc.IDS_ARRAY],
            outputs,
            max_batch_size=self._batch_size(widths[-1]),
            parameters={**self._parameters, **self._widths(widths), **tuning},
        )
        mc.batch(config, settings, n=fixed, ragged=True)
        mc.place(config, instances=settings.instances, gpu=settings.device == "gpu")
        version = self._write_model(config, "elastic" if fixed is None else "member", widths)
        self._warm_up_with_ids(config, widths[-1], self._sample_ids())
        write_model_code(f"{_RUNTIME}.mux_model", version)
        self._facts(widths).write(version)
        self._store({f"n{n}.onnx": graphs[n] for n in widths}, version)

    def _onnx_model(self, n: int, graph: onnx.ModelProto) -> None:
        """Write a graph for Triton's own ONNX Runtime backend."""
        settings = self._settings
        length = self._family.padded_length
        ids = mc.Array(mc.IDS, pb.TYPE_INT64, [length or -1])
        config = mc.model_config(
            f"{self._name}_n{n}",
            "onnxruntime",
            [ids],
            self._outputs(),
            max_batch_size=self._batch_size(n),
            parameters={
                **self._parameters,
                **self._widths([n]),
                "intra_op_thread_count": str(settings.threads),
            },
        )
        mc.batch(config, settings, n=n, ragged=False)
        mc.place(config, instances=settings.instances, gpu=settings.device == "gpu")
        version = self._write_model(config, "member", [n])
        sample = self._sample_ids()
        if length is not None:
            sample = np.pad(sample, (0, length - len(sample)), constant_values=self._family.pad_id)
        self._warm_up_with_ids(config, n, sample)
        self._store({"model.onnx": graph}, version)

    def _text_front(self) -> None:
        """Write the tokenizer, and for each model an ensemble of both."""
        of_tokens = self._family.spec.of_tokens
        models = list(self._models)
        largest = max(self._batch_size(one.widths[-1]) for one in models)
        tokenizer = f"{self._name}_tokenizer"
        words = [mc.WORDS_ARRAY, mc.WORD_TOKENS_ARRAY] if of_tokens else []
        config = mc.model_config(
            tokenizer,
            "python",
            [mc.TEXT_ARRAY],
            [mc.IDS_ARRAY, mc.TRUNCATED_ARRAY, *words],
            max_batch_size=largest,
        )
        mc.batch(config, self._settings, n=None, ragged=False)
        mc.place(config, instances=self._settings.instances, gpu=False)
        mc.warm_up(config, 1, mc.TEXT, [1])
        version = self._write_model(config, "tokenizer", [])
        text = _WARM_UP_TEXT.encode()
        self._sample(config, mc.TEXT, len(text).to_bytes(4, "little") + text)
        write_model_code(f"{_RUNTIME}.tokenizer_model", version)
        self._facts([]).write(version)
        (version / "tokenizer.json").write_text(self._family.tokenizer.to_str(), encoding="utf-8")
        tagger = f"{self._name}_tagger"
        if of_tokens:
            self._tagger(tagger, largest)
        for one in models:
            self._ensemble(one, tokenizer, tagger if of_tokens else None)

    def _tagger(self, name: str, largest: int) -> None:
        """Write the model that reads a label for each word from the logits of its tokens."""
        config = mc.model_config(
            name,
            "python",
            [*self._outputs(), mc.WORD_TOKENS_ARRAY],
            [mc.LABELS_ARRAY, mc.WORD_SCORES_ARRAY],
            max_batch_size=largest,
        )
        mc.batch(config, self._settings, n=None, ragged=True)
        mc.place(config, instances=self._settings.instances, gpu=False)
        version = self._write_model(config, "tagger", [])
        write_model_code(f"{_RUNTIME}.tagger_model", version)
        self._facts([]).write(version)

    def _ensemble(self, model: ExportedModel, tokenizer: str, tagger: str | None) -> None:
        """Write an ensemble: texts in, labels with scores out.

        Multiplexing stays within one step: only a model that sees the requests of many callers can
        put them into one group.
        """
        words = [mc.WORDS_ARRAY, mc.LABELS_ARRAY, mc.WORD_SCORES_ARRAY]
        of_model = [] if tagger else self._outputs()
        if self._settings.backend == "python":
            of_model = [*of_model, mc.NUM_INSTANCES_ARRAY]
        config = mc.model_config(
            f"{model.name}_text",
            "",
            [mc.TEXT_ARRAY],
            [*of_model, mc.TRUNCATED_ARRAY, *(words if tagger else [])],
            max_batch_size=self._batch_size(model.widths[-1]),
            parameters={**self._parameters, **self._widths(model.widths)},
        )
        tokens = {one.name: one.name for one in (mc.IDS_ARRAY, mc.TRUNCATED_ARRAY)}
        logits = {one.name: one.name for one in of_model}
        steps = [
            (tokenizer, {mc.TEXT: mc.TEXT}, tokens),
            (model.name, {mc.IDS: mc.IDS}, logits),
        ]
        if tagger:
            tokens.update({mc.WORDS: mc.WORDS, mc.WORD_TOKENS: mc.WORD_TOKENS})
            logits[mc.LOGITS] = mc.LOGITS
            takes = {mc.LOGITS: mc.LOGITS, mc.WORD_TOKENS: mc.WORD_TOKENS}
            gives = {mc.LABELS: mc.LABELS, mc.WORD_SCORES: mc.WORD_SCORES}
            steps.append((tagger, takes, gives))
        mc.ensemble(config, steps)
        self._write_model(config, "text front", model.widths)

    def _write_model(self, config: pb.ModelConfig, kind: str, widths: Sequence[int]) -> Path:
        """Create the model's folder with its config; return the empty version folder."""
        folder = self._folder / str(config.name)
        (folder / _VERSION).mkdir(parents=True)
        self._write_config(config)
        if any(one.label_filename for one in config.output):
            labels = "".join(f"{label}\n" for label in self._family.spec.labels)
            (folder / mc.LABELS_FILE).write_text(labels, encoding="utf-8")
        self._models.append(ExportedModel(config.name, kind, list(widths)))
        return folder / _VERSION

    def _write_config(self, config: pb.ModelConfig) -> None:
        (self._folder / config.name / "config.pbtxt").write_text(
            mc.as_text(config), encoding="utf-8"
        )

    def _warm_up_with_ids(self, config: pb.ModelConfig, texts: int, ids: np.ndarray) -> None:
        mc.warm_up(config, texts, mc.IDS, [len(ids)])
        self._write_config(config)
        self._sample(config, mc.IDS, ids.astype(np.int64).tobytes())

    def _sample(self, config: pb.ModelConfig, name: str, data: bytes) -> None:
        folder = self._folder / config.name / "warmup"
        folder.mkdir()
        (folder / name).write_bytes(data)

    def _store(self, graphs: dict[str, onnx.ModelProto], version: Path) -> None:
        copies = {}
        for name, graph in graphs.items():
            copies[name] = onnx.ModelProto()
            copies[name].CopyFrom(graph)
        store_graphs(copies, version)
        for name in graphs:
            check_graph(version / name)

    def _outputs(self) -> list[mc.Array]:
        """Logits, and scores if the family labels texts."""
        spec = self._family.spec
        logits = mc.logits_array(len(spec.labels), of_tokens=spec.of_tokens)
        return [logits] if spec.of_tokens else [logits, mc.scores_array(len(spec.labels))]

    def _facts(self, widths: Sequence[int]) -> Facts:
        spec = self._family.spec
        return Facts(
            labels=spec.labels,
            problem_type=spec.problem_type,
            of_tokens=spec.of_tokens,
            max_length=spec.max_length,
            truncation_side=spec.truncation_side,
            padded_length=self._family.padded_length,
            pad_id=self._family.pad_id,
            vocab_size=self._vocab_size,
            widths=list(widths),
        )

    def _widths(self, widths: Sequence[int]) -> dict[str, str]:
        return {"num_instances": ",".join(map(str, widths))}

    def _batch_size(self, n: int) -> int:
        return max(1, self._settings.max_batch_size // n) * n

    def _sample_ids(self) -> np.ndarray:
        ids = self._family.tokenizer.encode(_WARM_UP_TEXT).ids[: self._family.spec.max_length]
        return np.array(ids, dtype=np.int64)
