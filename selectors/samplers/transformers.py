"""InfoBatch in Hugging Face's Trainer. The Trainer counts epochs in a fixed number of steps, and InfoBatch's differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from curation.selectors.infobatch import InfoBatch, by_progress
from curation.selectors.samplers.loader import InfoBatchLoader
from curation.selectors.samplers.split import RowSplit

Losses = Callable[[Any, Tensor], Tensor]
"""(the model's outputs, labels) -> one loss an example."""

_FILE = "curation.pt"


def classification_losses(outputs: Any, labels: Tensor) -> Tensor:
    """[b]: cross entropy of each example, from ``logits`` [b, classes] and ``labels`` int64[b]."""
    return cross_entropy(outputs["logits"], labels, reduction="none")


class InfoBatchTrainer(Trainer):
    """A Trainer that skips part of what is learned.

    ::

        info = InfoBatch(size=len(train_set), epochs=3)
        trainer = InfoBatchTrainer(info, model=model, args=args, train_dataset=train_set)

    Everything else is the Trainer's: evaluation, logging, mixed precision, gradient accumulation, several
    processes. Checkpoints hold InfoBatch's state too, and ``train(resume_from_checkpoint=...)`` goes on with the very
    next batch. The learning rate's schedule, if it is one of factors (all named ones but
    ``reduce_lr_on_plateau`` are), follows the share of the training that is done, not the count of steps. Training
    ends after ``info.epochs`` epochs, or at ``max_steps``.

    Sets ``args.num_train_epochs`` to ``info.epochs`` and ``args.ignore_data_skip``, since the sampler itself knows
    where it stands.

    Args:
        info: the losses, of ``len(train_dataset)`` examples.
        losses: how to get one loss for each example; see :func:`classification_losses`, the default. For a language
            model average over each example's tokens.
        arguments: the Trainer's, by name.

    Raises:
        ValueError: the data set has another size than ``info``; or ``train`` resumes from a checkpoint without the
            state.
    """

    def __init__(self, info: InfoBatch, *, losses: Losses = classification_losses, **arguments: Any) -> None:
        # Ahead of the caller's callbacks: one of them may stop the process once a checkpoint is there.
        callbacks = [_KeepsState(self), *(arguments.pop("callbacks", None) or [])]
        super().__init__(callbacks=callbacks, **arguments)
        self.info, self.losses = info, losses
        # What compute_loss returns is a mean over the examples of one micro-batch.
        self.loss_is_scaled_for_ga = False
        self.args.num_train_epochs, self.args.ignore_data_skip = info.epochs, True
        self._loader: InfoBatchLoader | None = None

    def get_train_dataloader(self) -> InfoBatchLoader:
        """This rank's batches; one object for the whole training."""
        if self._loader is None:
            dataset, collate = self.train_dataset, self.data_collator
            if isinstance(dataset, datasets.Dataset):
                dataset = self._remove_unused_columns(dataset, description="training")
            else:
                collate = self._get_collator_with_removed_columns(collate, description="training")
            args = self.args
            self._loader = _Loader(
                dataset,
                self.info,
                batch_size=self._train_batch_size,
                drop_last=args.dataloader_drop_last,
                collate_fn=_Collate(collate),
                num_workers=args.dataloader_num_workers,
                pin_memory=args.dataloader_pin_memory,
                persistent_workers=args.dataloader_persistent_workers,
                prefetch_factor=args.dataloader_prefetch_factor,
            )
        return self._loader

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean of the weighted losses in training; the Trainer's own in evaluation."""
        if "index" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        index, labels = inputs.pop("index"), inputs["labels"]
        outputs = model(**inputs)
        loss = self.info.update(index, self.losses(outputs, labels)).mean()
        return (loss, outputs) if return_outputs else loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule that the arguments name, read at ``info.progress() * num_training_steps``."""
        made = super().create_scheduler(num_training_steps, optimizer)
        if type(made) is LambdaLR:
            curve = cast("Callable[[float], float]", made.lr_lambdas[0])
            made = by_progress(made.optimizer, self.info.progress, lambda share: curve(share * num_training_steps))
            self.lr_scheduler = made
        return made

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """See the Trainer's; from a checkpoint InfoBatch's state is loaded as well."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        if folder:
            path = Path(folder) / _FILE
            if not path.exists():
                raise ValueError(f"{folder} has no {_FILE}: InfoBatchTrainer did not write it; start anew")
            self.get_train_dataloader().load_state_dict(torch.load(path, weights_only=True))
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)


class _Loader(InfoBatchLoader):
    def __len__(self) -> int:
        """The longest epoch's steps: the Trainer asks once, and would cut off longer epochs."""
        sampler = self.batch_sampler
        return RowSplit(self.info.size, sampler.batch_size, sampler.ranks[1], sampler.drop_last).steps


class _Collate:
    """The data collator over pairs (index, row); the positions come as ``index``."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, pairs: list[tuple[int, Any]]) -> dict[str, Any]:
        return {**self.collate([row for _, row in pairs]), "index": torch.tensor([index for index, _ in pairs])}


class _KeepsState(TrainerCallback):
    def __init__(self, trainer: InfoBatchTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.info.synchronize()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            torch.save(self.trainer.get_train_dataloader().state_dict(), folder / _FILE)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop |= self.trainer.info.progress() == 1
        return control
