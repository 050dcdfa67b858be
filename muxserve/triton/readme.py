"""The README.md and requirements.txt that an export writes beside its models."""

from collections.abc import Sequence

from muxserve.models.family import FamilySpec
from muxserve.triton.settings import ExportSettings

#: The newest server that exports are tested against.
IMAGE = "nvcr.io/nvidia/tritonserver:24.10-py3"

_ABOUT = {
    "elastic": "takes token ids; chooses N by how much waits: {widths}",
    "member": "takes token ids; N={widths}",
    "text front": "takes texts; N of {widths}",
    "tokenizer": "texts to token ids, for the text fronts",
    "tagger": "logits of tokens to labels of words, for the text fronts",
}


def requirements(settings: ExportSettings) -> str:
    """The packages that Triton's Python needs; empty if the models need none."""
    lines = []
    if settings.backend == "python" or settings.text:
        lines += [
            "# numpy 2 reads as zeros in Triton's Python backend before release 24.11.",
            "numpy>=1.22,<2",
        ]
    if settings.backend == "python":
        runtime = "onnxruntime-gpu" if settings.device == "gpu" else "onnxruntime"
        lines.append(f"{runtime}>=1.17")
    if settings.text:
        lines.append("tokenizers>=0.20")
    return "".join(f"{line}\n" for line in lines)


def readme(
    spec: FamilySpec, models: Sequence[tuple[str, str, list[int]]], settings: ExportSettings
) -> str:
    """The repository's README in Markdown."""
    rows = "\n".join(
        f"| `{name}` | {_ABOUT[kind].format(widths=', '.join(map(str, widths)))} |"
        for name, kind, widths in models
    )
    of_tokens = spec.of_tokens
    shape = "[texts, tokens, labels]" if of_tokens else "[texts, labels]"
    outputs = [f"| `logits` | FP32 {shape} | in the order of the labels: {_listed(spec.labels)} |"]
    if not of_tokens:
        outputs.append(
            "| `scores` | FP32 [texts, labels] | probabilities; ask for `classification` to get "
            "`score:index:label` |"
        )
    if settings.backend == "python":
        outputs.append("| `num_instances` | INT32 [texts, 1] | the N that served each text |")
    text = [
        "A text front takes `text` (BYTES [texts, 1], UTF-8) instead, and also returns `truncated` "
        "(BOOL [texts, 1]);",
        "the request parameter `truncate: false` refuses a text that is too long instead of "
        "cutting it.",
    ]
    if of_tokens:
        text.append(
            "It returns `words`, `labels` (BYTES) and `word_scores` (FP32), all "
            "[texts, most words]; entries past a text's last word are empty."
        )
    install = (
        "pip install -r requirements.txt\n" if requirements(settings) else ""
    ) + "tritonserver --model-repository=$PWD --disable-auto-complete-config\n"
    parts = [
        f"# {spec.name}, multiplexed, for Triton",
        "Made by `muxserve export triton`. A multiplexed model puts N texts through one forward; "
        "Triton's dynamic\nbatcher gathers them from all clients.",
        f"| model | what it does |\n| --- | --- |\n{rows}",
        "## Run",
        f"In Triton's container (`{IMAGE}`), or anywhere with `tritonserver`, in this folder:",
        f"```\n{install}```",
        "## Ask",
        f"| input | type | meaning |\n| --- | --- | --- |\n"
        f"| `input_ids` | INT64 [texts, tokens] | at most {spec.max_length} tokens, special ones "
        f"included; end shorter texts with padding |",
        "| output | type | meaning |\n| --- | --- | --- |\n" + "\n".join(outputs),
        *(["\n".join(text)] if settings.text else []),
        _tuning(settings),
    ]
    return "\n\n".join(parts) + "\n"


def _tuning(settings: ExportSettings) -> str:
    lines = [
        "## Tune, in `config.pbtxt`",
        "- `max_batch_size`, `preferred_batch_size`: keep them multiples of N.",
        "- `max_queue_delay_microseconds`: with 0, requests that arrive during one execution form "
        "the next. A delay fills\n  groups under light load, but lone requests always wait for it.",
        "- `default_queue_policy`: leave it out if you can. With any policy, the batcher of Triton "
        "24.10 sleeps for up to\n  half a second now and then.",
        "- `instance_group`: more instances share the requests among them, so each sees fewer.",
        "- Leave `response_cache` off: an answer depends on the texts that share its group.",
    ]
    if settings.backend == "python":
        lines.append(
            "- `parameters`: `max_waiting_texts` (texts beyond it are refused with UNAVAILABLE, "
            "HTTP 503),\n  `latency_target_ms`, `threads` (0: every core), `warm_up_s`, "
            "`max_groups`.\n\n"
            "Request parameters: `max_num_instances` caps N for a request (elastic models), and "
            "requests with different\n`isolation_key` never share a group."
        )
    else:
        lines.append(
            "- Requests share a batch only if their texts have the same number of tokens: send "
            "lengths in steps,\n  such as multiples of 16."
        )
    return "\n".join(lines[:1]) + "\n\n" + "\n".join(lines[1:])


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels)
