"""The teacher: a plain classifier fine-tuned on labelled texts, and the soft labels it gives."""

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from muxserve.training.data.batches import near_length_batches, pad_batch, token_ids
from muxserve.training.data.labelled import LabelledTexts
from muxserve.training.distil.schedule import linear_schedule
from muxserve.training.work_folder import written_whole

log = logging.getLogger(__name__)

#: Texts whose soft labels are saved together: the most that a stopped run loses.
SOFT_LABEL_PART = 1024
_SOFT_LABEL_BATCH = 64


def fine_tune(
    base: Path,
    tokenizer: Tokenizer,
    texts: LabelledTexts,
    *,
    labels: Sequence[str],
    steps: int,
    batch_size: int,
    learning_rate: float,
    max_length: int,
    bf16: bool = False,
    seed: int,
    device: torch.device,
) -> PreTrainedModel:
    """Fine-tune a pretrained encoder as a classifier; AdamW, linear decay, 6% warm-up."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        base,
        trust_remote_code=False,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
    ).train()
    model.to(device)  # type: ignore[arg-type]
    rows = token_ids(tokenizer, texts.texts, max_length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = linear_schedule(optimizer, steps, warm_up_share=0.06)
    batches = near_length_batches([len(row) for row in rows], batch_size, random.Random(seed))
    progress = tqdm(range(steps), desc="teacher", unit="step")
    for _ in progress:
        picked = next(batches)
        pad_id = model.config.pad_token_id or 0
        ids, mask = pad_batch([rows[i] for i in picked], pad_id, device=device)
        target = torch.tensor([texts.labels[i] for i in picked], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(input_ids=ids, attention_mask=mask).logits
        loss = cross_entropy(logits.float(), target, label_smoothing=0.05)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


@torch.inference_mode()
def soft_labels(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    max_length: int,
    bf16: bool = False,
    progress: bool = True,
) -> list[torch.Tensor]:
    """Compute the teacher's logits of each text, in batches of similar length.

    Returns:
        For each text [labels], or [tokens, labels] where the teacher labels tokens.
    """
    rows = token_ids(tokenizer, texts, max_length)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    logits = [torch.empty(0)] * len(rows)
    starts = range(0, len(order), _SOFT_LABEL_BATCH)
    for start in tqdm(starts, desc="soft labels", unit="batch", disable=not progress):
        picked = order[start : start + _SOFT_LABEL_BATCH]
        pad_id = model.config.pad_token_id or 0
        ids, mask = pad_batch([rows[i] for i in picked], pad_id, device=model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            of_batch = model(input_ids=ids, attention_mask=mask).logits.float().cpu()
        for index, one in zip(picked, of_batch, strict=True):
            logits[index] = one[: len(rows[index])].clone() if one.dim() > 1 else one
    return logits


def kept_soft_labels(
    work: Path,
    teacher: PreTrainedModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    max_length: int,
    bf16: bool = False,
) -> list[torch.Tensor]:
    """The teacher's logits as ``soft_labels`` returns them, each part computed once and saved.

    Args:
        work: the folder of a claimed run, where the parts are saved.

    Raises:
        OSError: naming the file, if a part cannot be written.
    """
    logits: list[torch.Tensor] = []
    with tqdm(total=len(texts), desc="soft labels", unit="text") as bar:
        for start in range(0, len(texts), SOFT_LABEL_PART):
            part = texts[start : start + SOFT_LABEL_PART]
            file = work / f"soft_labels-{start:09}.safetensors"
            if not file.exists():
                made = soft_labels(
                    teacher, tokenizer, part, max_length=max_length, bf16=bf16, progress=False
                )
                _store(made, file)
            logits += _stored(file)
            bar.update(len(part))
    return logits


def _store(logits: Sequence[torch.Tensor], file: Path) -> None:
    rows = torch.tensor([one.shape[0] if one.dim() > 1 else 0 for one in logits])
    stored = torch.cat([one.view(-1, one.shape[-1]) for one in logits])
    with written_whole(file) as temporary:
        save_file({"logits": stored, "tokens": rows}, temporary)


def _stored(file: Path) -> list[torch.Tensor]:
    state = load_file(file)
    if not state["tokens"].any():
        return list(state["logits"])
    return list(state["logits"].split(state["tokens"].tolist()))
