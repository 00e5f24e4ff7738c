"""InfoBatch in a plain PyTorch loop, which may be stopped at any step and started again.

python examples/plain_pytorch.py
python examples/plain_pytorch.py --checkpoint /tmp/run.pt --stop-at 60    # "crash" at step 60
python examples/plain_pytorch.py --checkpoint /tmp/run.pt                 # goes on with step 61
"""

import argparse
from pathlib import Path

import torch
from digits import accuracy, digits, network
from torch.nn.functional import cross_entropy

from curation import InfoBatch
from curation.selectors.infobatch import by_progress, cosine
from curation.selectors.samplers import InfoBatchLoader

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--checkpoint", type=Path)
parser.add_argument("--stop-at", type=int)
args = parser.parse_args()

dataset, test_x, test_y = digits()
model = network()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

info = InfoBatch(size=len(dataset), epochs=args.epochs)
loader = InfoBatchLoader(dataset, info, batch_size=64, num_workers=args.workers)
scheduler = by_progress(optimizer, info.progress, cosine)

saved = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
step = 0
if args.checkpoint and args.checkpoint.exists():
    states = torch.load(args.checkpoint, weights_only=True)
    step = states.pop("step")
    for name, state in states.items():
        saved[name].load_state_dict(state)
    print(f"goes on in epoch {loader.epoch} after step {step}")

for epoch in range(loader.epoch, args.epochs):
    loader.set_epoch(epoch)
    for index, (x, y) in loader:
        loss = info.update(index, cross_entropy(model(x), y, reduction="none")).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        step += 1
        if step == args.stop_at:
            states = {name: part.state_dict() for name, part in saved.items()}
            torch.save({**states, "step": step}, args.checkpoint)
            raise SystemExit(f"stopped in epoch {epoch} after step {step}")

full = args.epochs * -(-len(dataset) // 64)
checksum = sum(float(p.detach().double().sum()) for p in model.parameters())
print(f"accuracy {accuracy(model, test_x, test_y):.3f}, {step} steps, {1 - step / full:.0%} saved")
print(f"checksum {checksum:.9f}")
