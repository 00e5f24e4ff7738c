"""InfoBatchTrainer beside the Trainer it stands for; its crash and resume are tested with the example."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from curation import InfoBatch
from curation.selectors.samplers.transformers import InfoBatchTrainer

ROWS = 48


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.layer(x)
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}


def rows() -> Dataset:
    x = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    return Dataset.from_dict({"x": x.tolist(), "labels": (x[:, 0] > 0).astype(int).tolist()})


def common(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_train_epochs=1,
        learning_rate=0.1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    return {"model": Classifier(), "args": args, "train_dataset": rows(), "eval_dataset": rows()}


def test_evaluation_is_the_trainers_own(tmp_path: Path) -> None:
    ours = InfoBatchTrainer(InfoBatch(size=ROWS, epochs=4), **common(tmp_path))
    ours.train()
    theirs = Trainer(**{**common(tmp_path), "model": ours.model})
    recorded = ours.info.state_dict()["scores"]
    found, expected = ours.evaluate(), theirs.evaluate()
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"])
    assert torch.equal(ours.info.state_dict()["scores"], recorded)
    assert ours.info.progress() == 1


def test_a_checkpoint_without_the_state_is_refused(tmp_path: Path) -> None:
    trainer = InfoBatchTrainer(InfoBatch(size=ROWS, epochs=2), **common(tmp_path))
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match="has no curation.pt: InfoBatchTrainer did not write it"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_data_set_of_another_size_is_refused(tmp_path: Path) -> None:
    trainer = InfoBatchTrainer(InfoBatch(size=ROWS + 1, epochs=2), **common(tmp_path))
    with pytest.raises(ValueError, match=f"the dataset has {ROWS} items, but InfoBatch was made for size={ROWS + 1}"):
        trainer.train()


@pytest.mark.parametrize(
    ("batch_size", "ranks", "drop_last", "steps"),
    [(8, 1, False, 6), (8, 5, False, 2), (8, 5, True, 1), (9, 5, False, 1), (9, 5, True, 1), (8, 7, True, 1)],
)
def test_the_loaders_length_is_that_of_a_whole_epoch(
    tmp_path: Path, batch_size: int, ranks: int, drop_last: bool, steps: int
) -> None:
    """Of 48 rows in a step of 5 times 9 three are left: fewer than ranks, which join that step."""
    options = common(tmp_path)
    options["args"].per_device_train_batch_size = batch_size
    options["args"].dataloader_drop_last = drop_last
    loader = InfoBatchTrainer(InfoBatch(size=ROWS, epochs=4), **options).get_train_dataloader()
    loader.batch_sampler._rank, loader.batch_sampler._world_size = 0, ranks
    assert len(loader) == len(loader.batch_sampler) == steps
