"""InfoBatch in Ray Train, two workers on CPUs.

    python examples/ray_train.py

``prepare_data_loader(..., add_dist_sampler=False)``: the loader already knows the ranks.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.train
import torch
from digits import accuracy, digits, network
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch.nn.functional import cross_entropy

from curation import InfoBatch
from curation.selectors.samplers import InfoBatchLoader


def train(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    dataset, test_x, test_y = digits()
    model = prepare_model(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    info = InfoBatch(size=len(dataset), epochs=config["epochs"])
    loader = InfoBatchLoader(dataset, info, batch_size=32)
    batches = prepare_data_loader(loader, add_dist_sampler=False)
    saved = {"model": model, "optimizer": optimizer, "loader": loader}

    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            states = torch.load(Path(folder) / "state.pt", weights_only=True)
        for name, part in saved.items():
            part.load_state_dict(states[name])

    for epoch in range(loader.epoch, config["epochs"]):
        loader.set_epoch(epoch)
        for index, (x, y) in batches:
            loss = info.update(index, cross_entropy(model(x), y, reduction="none")).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        report = {"epoch": epoch, "kept": info.kept(epoch), "accuracy": accuracy(model, test_x, test_y)}
        with tempfile.TemporaryDirectory() as folder:
            if ray.train.get_context().get_world_rank() == 0:
                states = {name: part.state_dict() for name, part in saved.items()}
                torch.save(states, Path(folder) / "state.pt")
                ray.train.report(report, checkpoint=Checkpoint.from_directory(folder))
            else:
                ray.train.report(report)


if __name__ == "__main__":
    ray.init(os.environ.get("RAY_ADDRESS", "local"), log_to_driver=False)
    trainer = TorchTrainer(
        train,
        train_loop_config={"epochs": 10},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=tempfile.mkdtemp()),
    )
    metrics = trainer.fit().metrics
    ray.shutdown()
    print(f"accuracy {metrics['accuracy']:.3f}, {metrics['kept']} examples in epoch {metrics['epoch']}")
