"""InfoBatch with Accelerate, with gradient accumulation and a checkpoint.

    accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py

``prepare`` leaves the loader as it is: it already knows the ranks, and Accelerate would share its batches among
them a second time (accelerate #4075). So batches are moved to the device here. Losses and position are saved with
the checkpoint, and there are no batches to skip when it resumes (accelerate #2016).
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from digits import accuracy, digits, network
from torch.nn.functional import cross_entropy

from curation import InfoBatch
from curation.selectors.samplers import InfoBatchLoader

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--checkpoint", type=Path)
parser.add_argument("--stop-at", type=int)
args = parser.parse_args()

accelerator = Accelerator(gradient_accumulation_steps=2, cpu=not torch.cuda.is_available())
dataset, test_x, test_y = digits()
model = network()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
info = InfoBatch(size=len(dataset), epochs=args.epochs)
loader = InfoBatchLoader(dataset, info, batch_size=32)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
accelerator.register_for_checkpointing(loader)

if args.checkpoint and args.checkpoint.exists():
    accelerator.load_state(str(args.checkpoint))
    accelerator.print(f"goes on in epoch {loader.epoch}")

step = 0
for epoch in range(loader.epoch, args.epochs):
    loader.set_epoch(epoch)
    for index, (x, y) in loader:
        with accelerator.accumulate(model):
            losses = cross_entropy(model(x.to(accelerator.device)), y.to(accelerator.device), reduction="none")
            accelerator.backward(info.update(index, losses).mean())
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if step == args.stop_at:
            accelerator.save_state(str(args.checkpoint))
            raise SystemExit(f"stopped in epoch {epoch} after {step} batches")

model = accelerator.unwrap_model(model).cpu()
checksum = sum(float(p.detach().double().sum()) for p in model.parameters())
accelerator.print(f"accuracy {accuracy(model, test_x, test_y):.3f}, {step} batches on each rank")
accelerator.print(f"checksum {checksum:.9f}")
