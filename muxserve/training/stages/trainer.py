"""``transformers.Trainer`` for multiplexed batches: whole groups, and resumed runs end the same.

A batch is a function of the seed and its number, so a resumed run sees the same batches as one that
was not stopped; dropout continues from the saved state of the random generators.
"""

import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import Dataset, SequentialSampler
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from muxserve.training.curves import Curves
from muxserve.training.data.batches import near_length_epoch
from muxserve.training.recipe import StageRecipe
from muxserve.training.stages.objectives import Batch, Objective
from muxserve.training.work_folder import unwritten

log = logging.getLogger(__name__)


class NumberedBatches(Dataset[Batch]):
    """Batches by number: of similar length, in another order every epoch."""

    def __init__(self, objective: Objective, size: int, count: int, seed: int) -> None:
        """Make ``count`` batches of ``size`` rows each."""
        self.objective = objective
        self.size = size
        self.count = count
        self.seed = seed
        self.lengths = [len(row) for row in objective.rows]
        self.epoch = -1
        self.picks: list[list[int]] = []
        self._enter(0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        epoch, place = divmod(number, len(self.picks))
        if epoch != self.epoch:
            self._enter(epoch)
        generator = torch.Generator().manual_seed((self.seed << 32) + number)
        return self.objective.batch(self.picks[place], generator)

    def _enter(self, epoch: int) -> None:
        rng = random.Random(f"{self.seed} {epoch}")
        self.epoch, self.picks = epoch, list(near_length_epoch(self.lengths, self.size, rng))


class StageTrainer(Trainer):
    """``Trainer`` with an objective's batches, loss and figures."""

    objective: Objective

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        recipe: StageRecipe,
        state: Path,
        curves: Curves,
    ) -> None:
        """Train ``model`` towards ``objective``; checkpoints go under ``state``."""
        self.objective = objective
        self.progress = Progress(curves)
        every = min(recipe.evaluate_every, recipe.steps)
        keep_best = recipe.stage == "finetune"
        arguments = TrainingArguments(
            output_dir=str(state),
            max_steps=recipe.steps,
            per_device_train_batch_size=1,  # NumberedBatches makes whole batches
            gradient_accumulation_steps=recipe.gradient_accumulation,
            learning_rate=recipe.peak_learning_rate,
            warmup_steps=int(recipe.warm_up_share * recipe.steps),
            bf16=recipe.bf16,
            seed=recipe.seed,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            eval_strategy="steps",
            eval_steps=every,
            save_strategy="steps",
            save_steps=every,
            save_total_limit=2,
            load_best_model_at_end=keep_best,
            metric_for_best_model=f"eval_{objective.metric}" if keep_best else None,
            greater_is_better=True if keep_best else None,
            logging_steps=min(50, every),
            remove_unused_columns=False,
            disable_tqdm=True,
            report_to=[],
        )
        if arguments.n_gpu > 1:
            # Several GPUs would split a batch without regard to its groups.
            arguments._n_gpu = 1
        size = recipe.groups * objective.n
        batches = NumberedBatches(
            objective, size, recipe.steps * recipe.gradient_accumulation, recipe.seed
        )
        super().__init__(
            model=model,
            args=arguments,
            data_collator=_only,
            train_dataset=batches,
            eval_dataset=objective.held,  # Trainer needs one; the objective measures
            callbacks=[self.progress],
        )
        self.remove_callback(PrinterCallback)
        # The objective's loss is a mean over its batch, whatever arguments the model accepts.
        self.model_accepts_loss_kwargs = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            self.progress.close()

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        return self.objective.loss(model, inputs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            state = Path(str(self.args.output_dir))
            last_whole_checkpoint(state)  # removes the unfinished one
            told = unwritten(state, error)
            raise OSError(f"{told}; the same command goes on from the state before") from None

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        self.model.eval()  # type: ignore[union-attr]
        measured = self.objective.measure(self.model)
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


class Progress(TrainerCallback):
    """A bar of steps, curves, a line per evaluation, and an evaluation after the last step."""

    bar: "tqdm[Any] | None" = None

    def __init__(self, curves: Curves) -> None:
        self.curves = curves

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        if state.global_step == state.max_steps:
            control.should_evaluate = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}")
        self.curves.add(state.global_step, logs or {})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        figures = " ".join(
            f"{name.removeprefix('eval_')} {value:.4f}" for name, value in (metrics or {}).items()
        )
        log.info("step %d %s", state.global_step, figures)

    def close(self) -> None:
        """End the bar, however the run ended."""
        if self.bar is not None:
            self.bar.close()


def last_whole_checkpoint(state: Path) -> Path | None:
    """The newest checkpoint that was written to its end; unfinished ones are removed."""
    whole: list[tuple[int, Path]] = []
    for folder in state.glob("checkpoint-*"):
        try:
            # Trainer writes this file last.
            step = json.loads((folder / "trainer_state.json").read_text())["global_step"]
        except (OSError, ValueError, KeyError):
            shutil.rmtree(folder)
            continue
        whole.append((int(step), folder))
    return max(whole)[1] if whole else None


def _only(batches: list[Batch]) -> Batch:
    (batch,) = batches
    return batch
