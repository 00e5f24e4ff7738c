"""InfoBatch in the Hugging Face Trainer: ``InfoBatchTrainer`` stands where ``Trainer`` stood.

python examples/hf_trainer.py
python examples/hf_trainer.py --output /tmp/run --stop-at 50                          # "crash" at step 50
python examples/hf_trainer.py --output /tmp/run --resume /tmp/run/checkpoint-50       # goes on with step 51
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from digits import accuracy, digits, network
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from curation import InfoBatch
from curation.selectors.samplers.transformers import InfoBatchTrainer


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.network(pixels)}


class Crash(TrainerCallback):
    def on_save(self, *_: Any, **__: Any) -> None:
        raise SystemExit("stopped after the checkpoint")


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--output", default=tempfile.mkdtemp())
parser.add_argument("--stop-at", type=int, help="save at this step, and crash")
parser.add_argument("--resume", type=Path, help="a checkpoint folder to go on from")
args = parser.parse_args()

train, test_x, test_y = digits()
dataset = Dataset.from_dict({"pixels": train.tensors[0].numpy(), "labels": train.tensors[1].numpy()})
dataset = dataset.with_format("torch")
model = Classifier()
trainer = InfoBatchTrainer(
    InfoBatch(size=len(dataset), epochs=args.epochs),
    model=model,
    args=TrainingArguments(
        output_dir=args.output,
        per_device_train_batch_size=64,
        save_steps=args.stop_at or 10_000,
        learning_rate=0.01,
        lr_scheduler_type="cosine",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    ),
    train_dataset=dataset,
    callbacks=[Crash()] if args.stop_at else [],
)
trainer.train(resume_from_checkpoint=str(args.resume) if args.resume else None)

checksum = sum(float(p.detach().double().sum()) for p in model.parameters())
print(f"accuracy {accuracy(model.network, test_x, test_y):.3f}, {trainer.state.global_step} steps")
print(f"checksum {checksum:.9f}")
