"""InfoBatch from the service under torchrun's elastic restarts: ranks die and join, no example is lost or repeated.

curation serve &
torchrun --nnodes 1:4 --nproc-per-node 1 --max-restarts 9 --rdzv-backend c10d --rdzv-endpoint HOST:29400 \
    --rdzv-id run-17 examples/elastic.py http://HOST:8765 run-17 --checkpoint run-17.pt
"""

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn  # see ddp.py: before init_process_group
from digits import accuracy, digits, network
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from curation.selectors.samplers import Indexed
from curation.service.client import Client, RemoteBatchSampler, ServiceError

parser = argparse.ArgumentParser()
parser.add_argument("url", help="where the service is")
parser.add_argument("session", help="a name for this training")
parser.add_argument("--checkpoint", type=Path, required=True, help="a file that all machines see")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--save-every", type=int, default=10, help="steps")
parser.add_argument("--pause", type=float, default=0, help="seconds that a step takes longer")


def main(asked: argparse.Namespace) -> None:
    torch.manual_seed(0)
    dataset, test_x, test_y = digits()
    model = DistributedDataParallel(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    client = Client(asked.url)
    if dist.get_rank() == 0:
        try:
            client.session(asked.session)
        except ServiceError as error:
            if error.kind != "not-found":
                raise
            client.create_session(
                "infobatch",
                size=len(dataset),
                batch_size=16,
                epochs=asked.epochs,
                world_size=dist.get_world_size(),
                id=asked.session,
            )
    dist.barrier()

    # Elastic, because torchrun started it: the first batch resizes the session to the ranks there are now.
    sampler = RemoteBatchSampler(client, asked.session)
    if asked.checkpoint.exists():
        saved = torch.load(asked.checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        sampler.load_state_dict(saved["sampler"])

    loader = DataLoader(Indexed(dataset), batch_sampler=sampler)
    for _ in range(asked.epochs):  # an epoch that is over before this run has no batches left
        for step, (index, (x, y)) in enumerate(loader, 1):
            loss = sampler.update(index, cross_entropy(model(x), y, reduction="none")).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(asked.pause)
            if step % asked.save_every == 0:
                save(asked.checkpoint, model, optimizer, sampler)

    if dist.get_rank() == 0:
        score = accuracy(model.module, test_x, test_y)
        print(f"{dist.get_world_size()} ranks at the end, accuracy {score:.3f}", flush=True)


def save(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, sampler: RemoteBatchSampler) -> None:
    """Whole or not at all, once every rank's losses are with the service."""
    state = sampler.state_dict()
    dist.barrier()
    if dist.get_rank() == 0:
        beside = path.with_suffix(".new")
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "sampler": state},
            beside,
        )
        beside.rename(path)


if __name__ == "__main__":
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    main(arguments)
    dist.destroy_process_group()
