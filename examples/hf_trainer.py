"""InfoBatch in the Hugging Face Trainer.

    python examples/hf_trainer.py

The Trainer counts epochs by a fixed number of steps, which InfoBatch's epochs do not have. So the sampler keeps
count (``ignore_data_skip=True``), its state lies beside the Trainer's in each checkpoint, and the callback ends
the training after the last epoch.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from digits import accuracy, digits, network
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from curation import InfoBatch
from curation.selectors.infobatch import by_progress, cosine
from curation.selectors.samplers import InfoBatchSampler


class Rows(Dataset[dict[str, Any]]):
    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        x, y = self.dataset[index]
        return {"x": x, "labels": y, "index": index}


class Loader(DataLoader):
    def __len__(self) -> int:
        """The longest epoch's steps: the Trainer asks once, and cuts off longer epochs."""
        return -(-self.batch_sampler.info.size // self.batch_sampler.batch_size)


class InfoBatchTrainer(Trainer):
    def __init__(self, *args: Any, sampler: InfoBatchSampler, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sampler = sampler

    def get_train_dataloader(self) -> DataLoader:
        return Loader(self.train_dataset, batch_sampler=self.sampler, collate_fn=self.data_collator)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        losses = cross_entropy(model(inputs["x"]), inputs["labels"], reduction="none")
        return self.sampler.info.update(inputs["index"], losses).mean()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = by_progress(self.optimizer, self.sampler.info.progress, cosine)
        return self.lr_scheduler


class KeepState(TrainerCallback):
    def __init__(self, sampler: InfoBatchSampler, resume: Path | None) -> None:
        self.sampler = sampler
        if resume is not None:
            state = torch.load(resume / "curation.pt", weights_only=True)
            sampler.info.load_state_dict(state["info"])
            sampler.load_state_dict(state["sampler"])
            sampler.set_epoch(sampler.epoch)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        states = {"info": self.sampler.info.state_dict(), "sampler": self.sampler.state_dict()}
        torch.save(states, folder / "curation.pt")

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop |= self.sampler.info.progress() == 1
        return control


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "x": torch.stack([row["x"] for row in rows]),
        "labels": torch.stack([row["labels"] for row in rows]),
        "index": torch.tensor([row["index"] for row in rows]),
    }


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--output", default=tempfile.mkdtemp())
parser.add_argument("--stop-at", type=int, default=-1)
parser.add_argument("--resume", type=Path, help="a checkpoint folder to go on from")
args = parser.parse_args()

dataset, test_x, test_y = digits()
info = InfoBatch(size=len(dataset), epochs=args.epochs)
sampler = InfoBatchSampler(info, batch_size=64)
trainer = InfoBatchTrainer(
    model=network(),
    args=TrainingArguments(
        output_dir=args.output,
        num_train_epochs=args.epochs,
        max_steps=args.stop_at,
        save_steps=max(args.stop_at, 1) if args.stop_at > 0 else 10_000,
        learning_rate=0.01,
        ignore_data_skip=True,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    ),
    train_dataset=Rows(dataset),
    data_collator=collate,
    sampler=sampler,
)
trainer.add_callback(KeepState(sampler, args.resume))
trainer.train(resume_from_checkpoint=str(args.resume) if args.resume else None)

checksum = sum(float(p.detach().double().sum()) for p in trainer.model.parameters())
print(f"accuracy {accuracy(trainer.model, test_x, test_y):.3f}, {trainer.state.global_step} steps")
print(f"checksum {checksum:.9f}")
