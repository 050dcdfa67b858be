"""A model's ``config.pbtxt``: inputs, outputs, batching, instances.

It is built from Triton's own message types, so a field unknown to Triton cannot be written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from muxserve.triton.settings import ExportSettings

#: Names of the arrays between models; see ``docs/triton.md``.
IDS, TEXT, LOGITS, SCORES = "input_ids", "text", "logits", "scores"
NUM_INSTANCES, TRUNCATED = "num_instances", "truncated"
WORDS, WORD_TOKENS, LABELS, WORD_SCORES = "words", "word_tokens", "labels", "word_scores"
LABELS_FILE = "labels.txt"
WARM_UP_SAMPLE = "full_group"
#: Numbers of whole groups that Triton prefers for one execution; it takes the largest that waits.
_PREFERRED_GROUPS = (*range(1, 17), 24, 32)


@dataclass(frozen=True)
class Array:
    """An input or output: its name, its type, and its dimensions after the batch dimension."""

    name: str
    data_type: int
    dims: Sequence[int]
    label_file: str = ""


def logits_array(labels: int, *, of_tokens: bool) -> Array:
    """The logits of texts or of their tokens."""
    return Array(LOGITS, pb.TYPE_FP32, [-1, labels] if of_tokens else [labels])


def scores_array(labels: int) -> Array:
    """The scores of texts, which Triton's classification extension turns into labels."""
    return Array(SCORES, pb.TYPE_FP32, [labels], LABELS_FILE)


IDS_ARRAY = Array(IDS, pb.TYPE_INT64, [-1])
TEXT_ARRAY = Array(TEXT, pb.TYPE_STRING, [1])
TRUNCATED_ARRAY = Array(TRUNCATED, pb.TYPE_BOOL, [1])
NUM_INSTANCES_ARRAY = Array(NUM_INSTANCES, pb.TYPE_INT32, [1])
WORDS_ARRAY = Array(WORDS, pb.TYPE_STRING, [-1])
WORD_TOKENS_ARRAY = Array(WORD_TOKENS, pb.TYPE_INT64, [-1])
LABELS_ARRAY = Array(LABELS, pb.TYPE_STRING, [-1])
WORD_SCORES_ARRAY = Array(WORD_SCORES, pb.TYPE_FP32, [-1])


def model_config(
    name: str,
    backend: str,
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    *,
    max_batch_size: int,
    parameters: Mapping[str, str] | None = None,
) -> pb.ModelConfig:
    """A model with one version and no batching beyond ``max_batch_size``."""
    config = pb.ModelConfig(name=name, backend=backend, max_batch_size=max_batch_size)
    config.version_policy.latest.num_versions = 1
    for one in inputs:
        config.input.add(name=one.name, data_type=one.data_type, dims=one.dims)
    for one in outputs:
        config.output.add(
            name=one.name, data_type=one.data_type, dims=one.dims, label_filename=one.label_file
        )
    for key, value in (parameters or {}).items():
        config.parameters[key].string_value = value
    return config


def batch(
    config: pb.ModelConfig,
    settings: ExportSettings,
    *,
    n: int | None,
    ragged: bool,
) -> None:
    """Let Triton gather requests while an execution runs.

    There is no queue policy unless the settings ask for one: with any, even one without a bound,
    the batcher of Triton 24.10 misses that an instance has become free, and sleeps for up to half
    a second.

    Args:
        config: of the model.
        settings: of the export.
        n: the fixed N, if there is one: batches are whole groups of it if enough texts wait. With
            None a batch is whatever waits.
        ragged: whether requests of different lengths may share an execution.
    """
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = settings.queue_delay_us
    if n is not None and n > 1:
        groups = [count for count in _PREFERRED_GROUPS if count * n <= config.max_batch_size]
        batching.preferred_batch_size.extend(count * n for count in groups)
    if settings.max_queue_size:
        batching.default_queue_policy.max_queue_size = settings.max_queue_size
    if ragged:
        for one in config.input:
            one.allow_ragged_batch = True


def place(config: pb.ModelConfig, *, instances: int, gpu: bool) -> None:
    """Set how many instances run, and on which kind of device."""
    kind = pb.ModelInstanceGroup.KIND_GPU if gpu else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(count=instances, kind=kind)


def warm_up(config: pb.ModelConfig, texts: int, input_name: str, dims: Sequence[int]) -> None:
    """Have Triton run ``texts`` copies of a stored text before it reports the model ready."""
    sample = config.model_warmup.add(name=WARM_UP_SAMPLE, batch_size=texts)
    data = sample.inputs[input_name]
    data.data_type = next(one.data_type for one in config.input if one.name == input_name)
    data.dims.extend(dims)
    data.input_data_file = input_name


def ensemble(
    config: pb.ModelConfig, steps: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]]
) -> None:
    """Make an ensemble of steps: (model, its input -> array, its output -> array)."""
    config.ClearField("backend")
    config.platform = "ensemble"
    for name, takes, gives in steps:
        step = config.ensemble_scheduling.step.add(model_name=name, model_version=-1)
        step.input_map.update(takes)
        step.output_map.update(gives)


def as_text(config: pb.ModelConfig) -> str:
    """The content of ``config.pbtxt``."""
    text: str = text_format.MessageToString(config)
    return text


def parse_text(text: str) -> pb.ModelConfig:
    """Parse a ``config.pbtxt`` into Triton's message.

    Raises:
        google.protobuf.text_format.ParseError: it is not a valid config.
    """
    return text_format.Parse(text, pb.ModelConfig())
