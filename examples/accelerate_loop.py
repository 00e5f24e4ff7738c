"""InfoBatch with Accelerate, with gradient accumulation and a checkpoint.

    accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py

The loader is left out of ``prepare``: the sampler already knows the ranks, and Accelerate would share its
batches among them a second time (accelerate #4075). Losses and position are saved with the checkpoint, so
there are no batches to skip when it resumes (accelerate #2016).
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from digits import accuracy, digits, network
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from curation import InfoBatch
from curation.selectors.samplers import Indexed, InfoBatchSampler

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--checkpoint", type=Path)
parser.add_argument("--stop-at", type=int)
args = parser.parse_args()

accelerator = Accelerator(gradient_accumulation_steps=2, cpu=not torch.cuda.is_available())
dataset, test_x, test_y = digits()
model = network()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
model, optimizer = accelerator.prepare(model, optimizer)

info = InfoBatch(size=len(dataset), epochs=args.epochs)
sampler = InfoBatchSampler(info, batch_size=32)
loader = DataLoader(Indexed(dataset), batch_sampler=sampler)
accelerator.register_for_checkpointing(info, sampler)

if args.checkpoint and args.checkpoint.exists():
    accelerator.load_state(str(args.checkpoint))
    accelerator.print(f"goes on in epoch {sampler.epoch}")

step = 0
for epoch in range(sampler.epoch, args.epochs):
    sampler.set_epoch(epoch)
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
