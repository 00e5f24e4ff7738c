"""InfoBatch with Lightning.

    python examples/lightning_loop.py

``use_distributed_sampler=False``: the loader already knows the ranks. ``reload_dataloaders_every_n_epochs=1``:
epochs differ in length, and Lightning asks for it only then. Losses and position travel in the checkpoint.
"""

import argparse
from typing import Any

import torch
from digits import accuracy, digits, network
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy

from curation import InfoBatch
from curation.selectors.samplers import InfoBatchLoader


class Classifier(LightningModule):
    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.model = network()
        self.dataset, self.test_x, self.test_y = digits()
        info = InfoBatch(size=len(self.dataset), epochs=epochs)
        self.loader = InfoBatchLoader(self.dataset, info, batch_size=64)

    def train_dataloader(self) -> InfoBatchLoader:
        return self.loader

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        index, (x, y) = batch
        return self.loader.info.update(index, cross_entropy(self.model(x), y, reduction="none")).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["loader"] = self.loader.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loader.load_state_dict(checkpoint["loader"])


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--checkpoint", help="save here after --stop-after epochs, or go on from it")
parser.add_argument("--stop-after", type=int)
args = parser.parse_args()

module = Classifier(args.epochs)
trainer = Trainer(
    max_epochs=args.stop_after or args.epochs,
    accelerator="cpu",
    use_distributed_sampler=False,
    reload_dataloaders_every_n_epochs=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, ckpt_path=None if args.stop_after else args.checkpoint)
if args.stop_after:
    trainer.save_checkpoint(args.checkpoint)
checksum = sum(float(p.detach().double().sum()) for p in module.model.parameters())
print(f"accuracy {accuracy(module.model, module.test_x, module.test_y):.3f}, {trainer.global_step} steps")
print(f"checksum {checksum:.9f}")
