"""One object inside another: B3's communities, InfoBatch's pruning, JEST's choice and a draw by running losses.

    python examples/composition.py

A two-tower model learns to match the left half of a digit to its right half. Each arrangement is a
``batch_sampler`` like any other, and its state nests as it does.
"""

from typing import Any

import torch
from digits import digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from curation import B3, JEST, BatchPlan, InfoBatch, Pair, StochasticAcquisition
from curation.selectors.samplers import AcquisitionSampler, InfoBatchSampler, JESTBatchSampler, PlanBatchSampler

EPOCHS, SCALE = 4, 10.0

images = digits()[0].tensors[0].reshape(-1, 8, 8)
left, right = images[:, :, :4].reshape(-1, 32), images[:, :, 4:].reshape(-1, 32)
SIZE = len(left)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(2))

    def forward(self, positions: Any) -> tuple[Tensor, Tensor]:
        return normalize(self.a(left[positions])), normalize(self.b(right[positions]))


def train(name: str, batches: Any, model: nn.Module, info: InfoBatch | None = None, epochs: int = EPOCHS) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    seen = 0
    for epoch in range(batches.epoch, epochs):
        batches.set_epoch(epoch)
        for batch in batches:
            a, b = model(torch.tensor(batch))
            losses = cross_entropy(SCALE * a @ b.T, torch.arange(len(batch)), reduction="none")
            loss = (info.update(batch, losses) if info else losses).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(batch)
    with torch.no_grad():
        a, b = model(torch.arange(SIZE))
    recall = float(((a @ b.T).topk(10).indices == torch.arange(SIZE)[:, None]).any(1).float().mean())
    print(f"{name:45} {seen:6} examples, recall@10 {recall:.3f}, loss {loss.item():.6f}")


def towers(seed: int = 0) -> Towers:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Towers()


def embed(model: Towers, positions: Any) -> Pair:
    with torch.no_grad():
        a, b = model(torch.as_tensor(positions))
    return Pair(a, b, scale=SCALE)


# B3 over a batch plan: communities of hard negatives, regrouped in every epoch.
b3 = B3(batch_size=64, cluster_size=8, ranks=(5, 55))
found = b3.mine(left.numpy(), right.numpy(), seed=0)


def communities(epoch: int) -> BatchPlan:
    return b3.batches(found, seed=0, epoch=epoch)


teacher = towers(1)
train("B3", PlanBatchSampler(communities), teacher)

# InfoBatch over B3's plan: what is learned is skipped, and batches stay full, filled up from others of the plan. What
# B3 keeps apart (data sets, rows with equal ids) stays apart, because its plans say what that is.
info = InfoBatch(size=SIZE, epochs=EPOCHS, delta=1.0)
train("InfoBatch over B3", InfoBatchSampler(info, batch_size=64, plan=communities), towers(), info)

# JEST over super-batches made of B3's communities, with the first model as its reference.
supers = B3(batch_size=256, cluster_size=8, ranks=(5, 55))
wide = supers.mine(left.numpy(), right.numpy(), seed=0)


def super_batches(epoch: int) -> BatchPlan:
    return supers.batches(wide, seed=0, epoch=epoch)


model = towers()
source = PlanBatchSampler(super_batches)
jest = JEST(loss="softmax", filter_ratio=0.75, chunks=4)
chosen = JESTBatchSampler(source, jest, lambda positions: (embed(model, positions), embed(teacher, positions)))
train("JEST over B3", chosen, model)

# JEST over what InfoBatch keeps, over B3's plan; stopped and gone on with: one state within the other.
model = towers()


def stack() -> tuple[JESTBatchSampler, InfoBatch]:
    info = InfoBatch(size=SIZE, epochs=EPOCHS, delta=1.0)
    source = InfoBatchSampler(info, batch_size=256, plan=super_batches)
    return JESTBatchSampler(source, jest, lambda positions: (embed(model, positions), embed(teacher, positions))), info


sampler, info = stack()
train("JEST over InfoBatch over B3, half", sampler, model, info, epochs=EPOCHS // 2)
states = sampler.state_dict(), info.state_dict()
sampler, info = stack()
sampler.load_state_dict(states[0])
info.load_state_dict(states[1])
train("JEST over InfoBatch over B3, the rest", sampler, model, info)

# A draw by any running score: here the losses that InfoBatch keeps.
draw = AcquisitionSampler(info.scores, StochasticAcquisition(kind="power"), size=SIZE, batch_size=64, budget=512)
train("power draw by InfoBatch's losses", draw, model, epochs=1)
