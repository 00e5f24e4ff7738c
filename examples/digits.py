"""What the examples share: handwritten digits (they come with scikit-learn), and a small network."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def digits() -> tuple[TensorDataset, Tensor, Tensor]:
    """1,437 training examples of 64 pixels, and images and labels of 360 for testing."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32) / 16
    y = torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return TensorDataset(x[train], y[train]), x[test], y[test]


def network(seed: int = 0) -> nn.Module:
    """64 pixels to 10 digits."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of ``x`` that the model names right."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())
