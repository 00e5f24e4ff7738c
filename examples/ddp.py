"""InfoBatch under DistributedDataParallel, on GPUs or CPUs.

torchrun --nproc-per-node 4 examples/ddp.py
"""

import os

import torch
import torch.distributed as dist
from digits import accuracy, digits, network
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from curation import InfoBatch
from curation.selectors.samplers import InfoBatchLoader

EPOCHS = 10

cuda = torch.cuda.is_available()
dist.init_process_group("nccl" if cuda else "gloo")
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
if cuda:
    torch.cuda.set_device(device)

dataset, test_x, test_y = digits()
model = DistributedDataParallel(network().to(device))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

info = InfoBatch(size=len(dataset), epochs=EPOCHS)
loader = InfoBatchLoader(dataset, info, batch_size=16)  # rank and world size come from torch.distributed

steps = 0
for epoch in range(EPOCHS):
    loader.set_epoch(epoch)
    for index, (x, y) in loader:
        loss = info.update(index, cross_entropy(model(x.to(device)), y.to(device), reduction="none")).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1

# Every rank must have seen every loss and made as many steps, or the next epoch would part them.
mine = torch.tensor([steps, info.kept(EPOCHS - 2), float(info.scores.sum())], dtype=torch.float64, device=device)
everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
dist.all_gather(everyone, mine)
assert all(torch.equal(other, mine) for other in everyone), everyone
if dist.get_rank() == 0:
    score = accuracy(model.module, test_x.to(device), test_y.to(device))
    print(f"{dist.get_world_size()} ranks, {steps} steps each, accuracy {score:.3f}")
dist.destroy_process_group()
