"""InfoBatch under DistributedDataParallel, on GPUs or CPUs.

torchrun --nproc-per-node 4 examples/ddp.py
"""

import os

import torch
import torch.distributed as dist

# Its functions keep the process group that is up when they are first imported, which else DDP does: then gloo's threads
# outlive destroy_process_group, and one that lets go of a tensor while Python shuts down aborts the process.
import torch.distributed.nn
from digits import accuracy, digits, network
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from curation import InfoBatch
from curation.selectors.samplers import InfoBatchLoader

EPOCHS = 10


def main(device: torch.device) -> None:
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
    seen = torch.tensor([steps, info.kept(EPOCHS - 2), float(info.scores.sum())], dtype=torch.float64, device=device)
    ranks = [torch.empty_like(seen) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, seen)
    assert all(torch.equal(other, seen) for other in ranks), ranks
    if dist.get_rank() == 0:
        score = accuracy(model.module, test_x.to(device), test_y.to(device))
        print(f"{dist.get_world_size()} ranks, {steps} steps each, accuracy {score:.3f}")


cuda = torch.cuda.is_available()
dist.init_process_group("nccl" if cuda else "gloo")
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
if cuda:
    torch.cuda.set_device(device)
main(device)
dist.destroy_process_group()
