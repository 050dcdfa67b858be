"""One set of weights for every N: multiplexed distillation from soft labels.

Each step trains N=1 and one larger N on different texts (the sandwich rule of slimmable networks,
Yu and Huang, ICCV 2019; MIMONets, Menet et al., NeurIPS 2023, switches N within one network the
same way). The targets are a teacher's soft labels; the token-retrieval loss of the paper leads at
the start, as its warm-up stage does, and fades to an auxiliary one. A run can be stopped and
resumed: its state is written to one file, under a temporary name first.
"""

import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from torch.nn.functional import log_softmax, softmax
from tqdm import tqdm

from muxserve.models import MuxBertForSequenceClassification
from muxserve.training.data import near_length_batches, pad_batch

log = logging.getLogger(__name__)


class DistillSettings(BaseModel):
    """Settings of one multiplexed distillation run."""

    steps: int = Field(3000, ge=1, description="Optimiser steps.")
    groups: int = Field(32, ge=1, description="Groups per step of the larger N.")
    single_texts: int = Field(24, ge=1, description="Texts per step at N=1.")
    encoder_learning_rate: float = Field(3e-4, gt=0, description="Peak, for what was pretrained.")
    new_learning_rate: float = Field(1e-3, gt=0, description="Peak, for keys, gates and heads.")
    warm_up_share: float = Field(0.04, gt=0, lt=1, description="Share of steps to the peak rate.")
    retrieval_share: float = Field(0.3, ge=0, le=1, description="Share of steps led by retrieval.")
    retrieval_weight: float = Field(0.1, ge=0, description="Weight of retrieval after its lead.")
    temperature: float = Field(
        1.0, gt=0, description="Softening of both sides of the distillation."
    )
    seed: int = Field(0, description="Of batches, picks and dropout.")
    save_every_s: float = Field(300, gt=0, description="Seconds between two saved states.")


def distill(
    model: MuxBertForSequenceClassification,
    rows: Sequence[Sequence[int]],
    targets: torch.Tensor,
    settings: DistillSettings,
    state_file: Path,
    *,
    evaluate: Callable[[int], None] | None = None,
    evaluate_every: int = 500,
) -> MuxBertForSequenceClassification:
    """Train every width of ``model`` on token ids ``rows`` towards ``targets`` [rows, labels].

    Args:
        model: a multiplexed classifier with a retrieval head; trained in place.
        rows: token ids of each text.
        targets: the teacher's logits.
        settings: see DistillSettings.
        state_file: where the run's state is kept; an existing one is resumed.
        evaluate: called with the step, every ``evaluate_every`` steps.
    """
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    optimizer = torch.optim.AdamW(_parameter_groups(model, settings), weight_decay=0.01)
    warm_up = max(1, int(settings.warm_up_share * settings.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warm_up, (settings.steps - s) / (settings.steps - warm_up)),
    )
    first = _resume(state_file, model, optimizer, schedule)
    # Batches are a function of the seed and the step, so a resumed run goes on where it stopped.
    lengths = [len(row) for row in rows]
    wide = [n for n in model.config.served_widths if n > 1]
    batches = {
        n: near_length_batches(lengths, settings.groups * n, random.Random(settings.seed + n))
        for n in wide
    }
    singles = near_length_batches(lengths, settings.single_texts, random.Random(settings.seed + 1))
    saved_at = time.monotonic()
    running: dict[str, float] = {}
    progress = tqdm(range(settings.steps), desc="distil", unit="step", mininterval=2)
    for step in progress:
        n = _width_of_step(wide, step, settings, rng)
        picked, alone = next(batches[n]), next(singles)
        if step < first:
            continue
        model.train()
        lead = step < settings.retrieval_share * settings.steps
        task, retrieval = _losses(model, rows, targets, picked, n, settings)
        single, _ = _losses(model, rows, targets, alone, 1, settings, retrieve=False)
        retrieval_weight = 1.0 if lead else settings.retrieval_weight
        task_weight = 0.3 if lead else 1.0
        loss = task_weight * task + retrieval_weight * retrieval + single
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        for name, value in (("1", single), (f"{n}", task), (f"r{n}", retrieval)):
            running[name] = 0.95 * running.get(name, value.item()) + 0.05 * value.item()
        progress.set_postfix({name: f"{value:.3f}" for name, value in sorted(running.items())})
        if time.monotonic() - saved_at > settings.save_every_s:
            _save(state_file, step + 1, model, optimizer, schedule)
            saved_at = time.monotonic()
        if evaluate and (step + 1) % evaluate_every == 0:
            log.info("step %d losses %s", step + 1, running)
            model.eval()
            evaluate(step + 1)
    _save(state_file, settings.steps, model, optimizer, schedule)
    return model.eval()


def _width_of_step(
    wide: list[int], step: int, settings: DistillSettings, rng: random.Random
) -> int:
    """Narrow widths first: unmixing two texts is learnt quickly, and ten starts from it."""
    share = step / max(1, settings.retrieval_share * settings.steps)
    pick = rng.random()
    if share < 0.15:
        return wide[0]
    if share < 0.4 and len(wide) > 1:
        return wide[0] if pick < 0.25 else wide[1]
    return wide[int(pick * len(wide))]


def _losses(
    model: MuxBertForSequenceClassification,
    rows: Sequence[Sequence[int]],
    targets: torch.Tensor,
    picked: list[int],
    n: int,
    settings: DistillSettings,
    *,
    retrieve: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distillation and retrieval loss of one batch of ``len(picked)`` texts at N=n."""
    ids, mask = pad_batch([rows[i] for i in picked], model.config.pad_token_id or 0)
    output = model(ids, mask, num_instances=n)
    t = settings.temperature
    target = softmax(targets[picked] / t, dim=-1)
    task = -(target * log_softmax(output.logits / t, dim=-1)).sum(-1).mean() * t * t
    if not retrieve:
        return task, task.new_zeros(())
    return task, model.retrieval_loss(output.encoder_output, ids, n)


def _parameter_groups(
    model: MuxBertForSequenceClassification, settings: DistillSettings
) -> list[dict[str, object]]:
    pretrained = [p for name, p in model.named_parameters() if name.startswith("bert.")]
    new = [
        p
        for name, p in model.named_parameters()
        if not name.startswith("bert.") and p.requires_grad
    ]
    return [
        {"params": pretrained, "lr": settings.encoder_learning_rate},
        {"params": new, "lr": settings.new_learning_rate},
    ]


def _save(
    file: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    torch.save(
        {
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "rng": torch.get_rng_state(),
        },
        temporary,
    )
    os.replace(temporary, file)


def _resume(
    file: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> int:
    """Load a saved state if there is one; the step to go on with."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["rng"])
    log.info("resumed %s at step %d", file, state["step"])
    return int(state["step"])
