"""Every device path on one card, beside plain torch and the card's own ceilings. Run from the checkout's root:

    python -m benchmarks.gpu               all of it, some minutes; needs PyTorch and Triton and nothing else
    python -m benchmarks.gpu --only knn,gumbel
    python -m benchmarks.gpu --dry-run     every part on tiny sizes on the CPU, kernels in Triton's interpreter

Inputs are fresh random numbers; every result is checked before it is timed, and a part whose check fails makes the
command fail. A time is the median of events. The ceilings are a large matrix product and a large copy in the same
run; a product's share is of the product's rate in the type named, anything else's of the copy's bytes per second.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Check = tuple[bool, str]


@dataclass(frozen=True)
class Row:
    """A line of the table. ``work`` is FLOP or bytes, as ``unit`` says; ``ceiling`` names what it is a share of."""

    part: str
    size: str
    seconds: float
    work: float
    unit: str
    ceiling: str
    plain: float | None = None
    note: str = ""


class Bench:
    """The device, the clock, the ceilings and the rows so far."""

    def __init__(self, *, dry: bool, repeats: int) -> None:
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.repeats = repeats
        self.generator = torch.Generator(self.device).manual_seed(0)
        self.ceilings: dict[str, float] = {}
        self.rows: list[Row] = []
        self.failed: list[str] = []

    def pick(self, full: int, tiny: int) -> int:
        """A size: the real one, or the dry run's."""
        return tiny if self.dry else full

    def time(self, run: Callable[[], object], *, repeats: int | None = None, warm: int = 1) -> float:
        """Median seconds of ``run`` on the device."""
        if self.dry:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        for _ in range(warm):
            run()
        seconds = []
        for _ in range(repeats or self.repeats):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            run()
            after.record()
            after.synchronize()
            seconds.append(before.elapsed_time(after) / 1e3)
        return statistics.median(seconds)

    def peak(self, run: Callable[[], object]) -> int:
        """Bytes of device memory beyond what is held already; 0 on the CPU, which keeps no such count."""
        if self.dry:
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held

    def check(self, part: str, checks: list[Check]) -> None:
        """Print what was compared; remember what failed."""
        for good, text in checks:
            print(f"  {'ok  ' if good else 'FAIL'} {part}: {text}", flush=True)
            if not good:
                self.failed.append(f"{part}: {text}")

    def normal(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        """[rows, width] of unit length, made in parts so that no float32 copy of all stands beside it."""
        out = torch.empty(rows, width, dtype=dtype, device=self.device)
        for start in range(0, rows, 1 << 17):
            part = torch.randn(min(1 << 17, rows - start), width, generator=self.generator, device=self.device)
            out[start : start + len(part)] = torch.nn.functional.normalize(part, dim=1)
        return out

    def free(self) -> None:
        """Give memory back between parts."""
        if not self.dry:
            torch.cuda.empty_cache()


def ceilings(bench: Bench) -> None:
    """The rates of a large product in each type, and of a large copy, counting bytes read and written."""
    n = bench.pick(8192, 64)
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("fp16", torch.float16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(n, n, generator=bench.generator, device=bench.device).to(dtype) for _ in range(2))
        out = torch.empty(n, n, dtype=dtype, device=bench.device)
        seconds = bench.time(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), repeats=10, warm=3)  # type: ignore[misc]
        bench.ceilings[name] = 2 * n**3 / seconds
        bench.rows.append(Row(f"ceiling {name}", f"{n}³", seconds, 2 * n**3, "FLOP", name))
    torch.backends.cuda.matmul.allow_tf32 = False
    count = bench.pick(1 << 30, 1 << 14)
    source = torch.randn(count, generator=bench.generator, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.time(lambda: target.copy_(source), repeats=10, warm=3)
    bench.ceilings["copy"] = 8 * count / seconds
    bench.rows.append(Row("ceiling copy", f"{4 * count / 1e9:.3g} GB", seconds, 8 * count, "B", "copy"))


def learnability(bench: Bench) -> None:
    """JEST's kernel at one round of the paper's size: what 2,048 new examples add to 163,840 candidates."""
    from curation.gpu.learnability import accumulate

    taken_count, count, width = bench.pick(2048, 20), bench.pick(163_840, 40), bench.pick(512, 16)
    scale, bias = 10.0, -10.0
    for loss in ("sigmoid", "softmax"):
        for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "tf32")):
            taken, rows = bench.normal(taken_count, width, dtype), bench.normal(count, width, dtype)

            def ours(taken: Any = taken, rows: Any = rows, loss: Any = loss) -> torch.Tensor:
                begin = 0.0 if loss == "sigmoid" else -torch.inf
                out = torch.full((len(rows),), begin, dtype=torch.float64, device=rows.device)
                accumulate(taken, rows, out, loss=loss, scale=scale, bias=bias, backend="triton")
                return out

            def plain(taken: Any = taken, rows: Any = rows, loss: Any = loss) -> torch.Tensor:
                parts = []
                for start in range(0, len(rows), 16_384):
                    z = (taken @ rows[start : start + 16_384].T).float() * scale + bias
                    parts.append(torch.nn.functional.softplus(z).sum(0) if loss == "sigmoid" else z.logsumexp(0))
                return torch.cat(parts)

            sample = torch.randperm(count, generator=bench.generator, device=bench.device)[:512]
            z = scale * taken.double().cpu().numpy() @ rows[sample].double().cpu().numpy().T + bias
            expected = np.logaddexp(0, z).sum(0) if loss == "sigmoid" else np.logaddexp.reduce(z, axis=0)
            error = np.abs(ours()[sample].cpu().numpy() / expected - 1).max()
            part = f"JEST kernel {loss} {'bf16' if name == 'bf16' else 'fp32'}"
            bench.check(part, [(bool(error < 1e-3), f"largest relative error {error:.1e} against float64")])
            bench.rows.append(
                Row(part, f"S={taken_count} B={count} D={width}", bench.time(ours), 2 * taken_count * count * width,
                    "FLOP", name, bench.time(plain, repeats=2))
            )  # fmt: skip


def jest(bench: Bench) -> None:
    """A whole selection at the paper's size, and beside the published pseudocode at a size that it can hold."""
    from curation.pair import Pair
    from curation.selectors.jest import JEST

    width = bench.pick(512, 16)
    backend: Any = "triton"
    full, small = bench.pick(163_840, 30), bench.pick(32_768, 20)
    for loss in ("sigmoid", "softmax"):
        for size in (full, small):
            selector = JEST(loss=loss, chunks=bench.pick(16, 2), backend=backend)  # type: ignore[arg-type]
            pairs = []
            for scale in (10.0, 8.0):
                a = bench.normal(size, width, torch.float32)
                b = torch.nn.functional.normalize(a + 1.5 * bench.normal(size, width, torch.float32), dim=1)
                pairs.append(Pair(a.bfloat16(), b.bfloat16(), scale, -10.0 if loss == "sigmoid" else 0.0))
            del a, b

            def select(selector: Any = selector, pairs: Any = pairs) -> Any:
                noise = torch.Generator(bench.device).manual_seed(1)
                return selector.draw(*pairs, generator=noise)

            picks, scores = select()
            bench.check(f"JEST select {loss} B={size}", _check_jest(selector, pairs, picks, scores, bench))
            held = bench.peak(select)
            rounds = selector.rounds(size)
            flop = 8 * width * size * (sum(rounds) - rounds[-1])
            plain = None
            note = f"{held / 2**30:.2f} GiB beyond the embeddings"
            if size == small:
                plain = bench.time(lambda s=selector, p=pairs: _plain_jest(s, p, bench), repeats=1)  # type: ignore[misc]
            else:
                note += f"; two B×B matrices would be {8 * size**2 / 1e9:.0f} GB"
            bench.rows.append(
                Row(f"JEST select {loss}", f"B={size} b={sum(rounds)} D={width}", bench.time(select), flop, "FLOP",
                    "bf16", plain, note)
            )  # fmt: skip
            bench.free()


def _check_jest(selector: Any, pairs: Any, picks: torch.Tensor, scores: torch.Tensor, bench: Bench) -> list[Check]:
    """The logits of the third round's picks, in float64 on the CPU, given the first two rounds."""
    rounds = selector.rounds(len(pairs[0]))
    before = min(2, len(rounds) - 1)
    done = int(sum(rounds[:before]))
    taken, fresh = picks[:done], picks[done : done + min(256, rounds[before])]
    expected = np.zeros(len(fresh))
    for sign, pair in zip((1, -1), pairs, strict=True):
        a, b = (side.double().cpu().numpy() for side in (pair.a, pair.b))
        new, old = fresh.cpu().numpy(), taken.cpu().numpy()
        own = pair.scale * (a[new] * b[new]).sum(1) + pair.bias
        down, across = (pair.scale * x[old] @ y[new].T + pair.bias for x, y in ((a, b), (b, a)))
        if selector.loss == "sigmoid":
            part = np.logaddexp(0, -own) + np.logaddexp(0, down).sum(0) + np.logaddexp(0, across).sum(0)
        else:
            part = -own + 0.5 * (np.logaddexp.reduce(down, 0) + np.logaddexp.reduce(across, 0))
        expected += sign * part
    got = scores[done : done + len(fresh)].cpu().numpy()
    error = np.abs(got - expected).max() / max(1.0, np.abs(expected).max())
    distinct = len(torch.unique(picks)) == len(picks) == sum(rounds)
    return [
        (distinct, f"{len(picks)} distinct picks"),
        (bool(error < 2e-3), f"round {before + 1}'s logits within {error:.1e} of float64"),
    ]


def _plain_jest(selector: Any, pairs: Any, bench: Bench) -> torch.Tensor:
    """The paper's pseudocode: both B×B matrices, and all of them summed again in each round."""
    size = len(pairs[0])
    eye = torch.eye(size, dtype=torch.bool, device=bench.device)
    total: torch.Tensor | None = None
    logits = []
    for pair in pairs:
        z = (pair.a @ pair.b.T).float().mul_(pair.scale).add_(pair.bias)
        logits.append(z)
        if selector.loss == "sigmoid":
            z = torch.nn.functional.softplus(torch.where(eye, -z, z))
            total = z if total is None else total.sub_(z)
            logits.clear()
    taken = torch.zeros(size, dtype=torch.bool, device=bench.device)
    picks = []
    for place, count in enumerate(selector.rounds(size)):
        if total is not None and selector.loss == "sigmoid":
            mask = taken.float()
            score = total.diagonal() + total @ mask + mask @ total
        elif place == 0:
            score = logits[1].diagonal() - logits[0].diagonal()
        else:
            chosen = torch.cat(picks)
            score = sum(
                sign * (-z.diagonal() + 0.5 * (z[:, chosen].logsumexp(1) + z[chosen].logsumexp(0)))
                for sign, z in zip((1, -1), logits, strict=True)
            )  # type: ignore[assignment]
        noise = -torch.empty(size, device=bench.device).exponential_(generator=bench.generator).log()
        picks.append((score + noise).masked_fill(taken, -torch.inf).topk(count).indices)
        taken[picks[-1]] = True
    return torch.cat(picks)


def knn(bench: Bench) -> None:
    """Exact self-search, 10^6 × 768, 130 neighbours of each, against float64 and plain torch (and FAISS)."""
    from curation.gpu.knn import nearest as module
    from curation.gpu.knn.nearest import nearest, shorten

    count, width, ranks = bench.pick(1_000_000, 70), bench.pick(768, 8), bench.pick(130, 10)
    if bench.dry:
        # The kernels' path, which CPU tensors do not take by themselves.
        module.kernels_run = lambda rows: True  # type: ignore[assignment]
        module.TILE = 32
    rows = bench.normal(count, width, torch.float32)
    own = torch.arange(count, device=bench.device)
    found = nearest(rows, rows, count=ranks, exclude=own)
    asked = torch.randperm(count, generator=bench.generator, device=bench.device)[: bench.pick(64, 20)]
    wanted, ties = _float64_ranks(rows, asked, ranks)
    ids, scores = found.ids[asked].cpu().numpy(), found.scores[asked].cpu().numpy()
    same = (ids == wanted) | ties
    bench.check(
        "kNN",
        [
            (
                bool(same.all()),
                f"{len(asked)} queries' ranks are those of float64 on the CPU ({int(ties.sum())} tied places)",
            ),
            (bool((ids != asked.cpu().numpy()[:, None]).all()), "no row is its own neighbour"),
            (bool((np.diff(scores, axis=1) <= 0).all()), "scores fall"),
            (True, f"{found.again[0]} queries searched twice, {found.again[1]} ranked in full"),
        ],
    )
    del found
    seconds = bench.time(lambda: nearest(rows, rows, count=ranks, exclude=own), repeats=2, warm=0)
    flop = 2 * count * count * width

    def plain(queries: torch.Tensor) -> Any:
        half = rows.half()
        best = ids = None
        for block in queries.half().split(4096):
            best, ids = torch.empty(len(block), 0, device=bench.device), torch.empty(len(block), 0, device=bench.device)
            for start in range(0, count, 65_536):
                top, where = (block @ half[start : start + 65_536].T).float().topk(min(ranks + 1, count), dim=1)
                best, order = torch.cat([best, top], 1).topk(ranks + 1, dim=1)
                ids = torch.cat([ids, (where + start).float()], 1).gather(1, order)
        return best, ids

    few = rows[: bench.pick(16_384, 32)]
    share = count / len(few)
    slow = bench.time(lambda: plain(few), repeats=1) * share
    note = f"plain torch (half, not re-ranked) from {len(few)} queries"
    size = f"{count}² × {width}, k={ranks}"
    bench.rows.append(Row("kNN exact", size, seconds, flop, "FLOP", "fp16", slow, note))

    half = shorten(rows, "float16")[0].rows
    tile = module.TILE
    out = torch.empty(min(tile, count), min(tile, count), dtype=half.dtype, device=bench.device)

    def product() -> None:
        for start in range(0, count // tile * tile, tile):
            torch.mm(half[:tile], half[start : start + tile].T, out=out)

    made = 2 * tile * (count // tile * tile) * width
    bench.rows.append(
        Row("kNN product alone", f"{tile} × {count} × {width}", bench.time(product), made, "FLOP", "fp16")
    )
    _faiss(bench, rows, few, ranks, share)
    bench.free()


def _float64_ranks(rows: torch.Tensor, asked: torch.Tensor, ranks: int) -> tuple[Any, Any]:
    """int64[q, ranks] by falling float32 of the float64 score, ties by index; and where the next one is as close."""
    queries = rows[asked].double().cpu()
    scores = torch.cat([queries @ part.double().cpu().T for part in rows.split(1 << 16)], 1)
    scores[torch.arange(len(asked)), asked.cpu()] = -torch.inf
    close, ids = scores.topk(ranks + 8, dim=1)
    rounded = close.float()
    order = np.lexsort((ids.numpy(), -rounded.numpy()))
    ids = torch.from_numpy(np.take_along_axis(ids.numpy(), order, 1))
    close = torch.from_numpy(np.take_along_axis(close.numpy(), order, 1))
    # Another order of additions moves a score by parts in 2^50, which rounding to float32 may make visible.
    gaps = (close[:, :-1] - close[:, 1:]).abs() < 1e-9
    ties = torch.zeros(ids.shape, dtype=torch.bool)
    ties[:, 1:] |= gaps
    ties[:, :-1] |= gaps
    return ids[:, :ranks].numpy(), ties[:, :ranks].numpy()


def _faiss(bench: Bench, rows: torch.Tensor, few: torch.Tensor, ranks: int, share: float) -> None:
    try:
        import faiss
    except ImportError:
        print("  --   kNN: FAISS is not installed")
        return
    if bench.dry or not getattr(faiss, "get_num_gpus", lambda: 0)():
        print("  --   kNN: this FAISS sees no GPU")
        return
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), rows.shape[1])
    index.add(rows.cpu().numpy())
    queries = few.cpu().numpy()
    seconds = bench.time(lambda: index.search(queries, ranks + 1), repeats=2) * share
    flop = 2 * len(rows) ** 2 * rows.shape[1]
    size = f"{len(rows)}² × {rows.shape[1]}, k={ranks}"
    bench.rows.append(Row("kNN FAISS GPU flat", size, seconds, flop, "FLOP", "fp16", None, f"from {len(few)} queries"))


def gumbel(bench: Bench) -> None:
    """The top 1,000 of 10^9 scores under Gumbel noise."""
    from curation.gpu.topk.gumbel import Keying, noise_seeds
    from curation.gpu.topk.kernels import PROGRAMS, SAMPLE, best_by_bar
    from curation.gpu.topk.tensor import best, keys_at

    k, sample, programs = bench.pick(1000, 20), bench.pick(SAMPLE, 4096), bench.pick(PROGRAMS, 5)
    for dtype, count in ((torch.float32, bench.pick(10**9, 17_000)), (torch.float64, bench.pick(10**9, 17_000))):
        values = torch.empty(count, dtype=dtype, device=bench.device).exponential_(generator=bench.generator)
        keying = Keying(scale=1.0, log=True, seeds=noise_seeds((5, 1)))
        less = values[: bench.pick(50_000_000, 17_000)]
        fast = best_by_bar(less, k, 0, keying, sample=sample, programs=programs)
        slow = best(less, k, 0, keying)
        equal = fast is not None and torch.equal(fast[0], slow[0]) and torch.equal(fast[1], slow[1])
        whole = best_by_bar(values, k, 0, keying, sample=sample, programs=programs)
        top = whole or slow
        keys = keys_at(values[top[0]].cpu(), top[0].cpu(), keying)[0]
        error = ((keys - top[1].cpu())[:, 0].abs() / keys[:, 0].abs()).max()
        part = f"Gumbel top-{k} {str(dtype)[6:]}"
        bench.check(
            part,
            [
                (bool(equal), f"the one-pass draw of {len(less)} equals the sort's"),
                (whole is not None, f"one pass was enough for {count:.0e}"),
                (bool(error < 1e-12), f"keys within {float(error):.1e} of the CPU's"),
            ],
        )

        def plain(values: torch.Tensor = values, k: int = k) -> Any:
            noise = torch.rand(values.shape, dtype=values.dtype, device=values.device, generator=bench.generator)
            return noise.log_().neg_().log_().neg_().add_(values.log()).topk(k)

        def ours(values: torch.Tensor = values, keying: Any = keying, k: int = k) -> Any:
            return best_by_bar(values, k, 0, keying, sample=sample, programs=programs)

        bench.rows.append(
            Row(part, f"{count:.0e}", bench.time(ours, repeats=bench.repeats * 2), values.element_size() * count, "B",
                "copy", bench.time(plain, repeats=2), "bytes read once")
        )  # fmt: skip
        del values, less
        bench.free()


def infobatch(bench: Bench) -> None:
    """An epoch's start: mean, coins, weights and a random order."""
    from curation.gpu.pruning.tensor import decide, shuffled_kept

    count = bench.pick(10**8, 5_000)
    scores = torch.empty(count, device=bench.device).exponential_(generator=bench.generator)
    less = scores[: 10**6]
    here, there = decide(less, (0.5,), key=7), decide(less.cpu(), (0.5,), key=7)
    epoch = decide(scores, (0.5,), key=7)
    order, kept = shuffled_kept(epoch.codes, 8)
    visited = torch.sort(order[: int(kept)]).values
    weighed = float(epoch.weights[epoch.codes.long()].double().sum()) / count
    bench.check(
        "InfoBatch epoch",
        [
            (bool(torch.equal(here.codes.cpu(), there.codes)), f"{len(less)} fates equal the CPU's"),
            (torch.equal(visited, torch.nonzero(epoch.codes)[:, 0]), "the order visits what is kept, once each"),
            (abs(weighed - 1) < 6 / count**0.5, f"mean weight {weighed:.5f}"),
        ],
    )

    def ours() -> Any:
        return shuffled_kept(decide(scores, (0.5,), key=7).codes, 8)

    def plain() -> Any:
        low = scores < scores.mean()
        kept = torch.nonzero(~(low & (torch.rand(count, device=bench.device, generator=bench.generator) < 0.5)))[:, 0]
        return kept[torch.randperm(len(kept), device=bench.device, generator=bench.generator)]

    bench.rows.append(
        Row("InfoBatch epoch", f"{count:.0e}", bench.time(ours), 13 * count, "B", "copy", bench.time(plain),
            "13 bytes an example: score, code, order")
    )  # fmt: skip


def graph(bench: Bench) -> None:
    """Compressed rows from a rank window."""
    from curation.gpu.graph.tensor import build_csr

    count, width = bench.pick(1_000_000, 300), bench.pick(100, 8)

    def window(rows: int) -> torch.Tensor:
        # Near rows name each other often, as the neighbours of real embeddings do.
        steps = torch.randint(1, 2 * width, (rows, width), generator=bench.generator, device=bench.device)
        signs = torch.randint(0, 2, steps.shape, generator=bench.generator, device=bench.device) * 2 - 1
        return ((torch.arange(rows, device=bench.device)[:, None] + steps * signs) % rows).int()

    rows = window(count)
    few = window(bench.pick(50_000, 300))
    for edges in ("mutual", "either"):
        here, there = (build_csr(part, edges) for part in (few, few.cpu()))  # type: ignore[arg-type]
        equal = all(torch.equal(a.cpu(), b) for a, b in zip(here, there, strict=True))
        starts, columns, weights = build_csr(rows, edges)  # type: ignore[arg-type]
        symmetric = int(weights.sum()) % 2 == 0 and int(starts[-1]) == len(columns)

        def plain(edges: str = edges) -> Any:
            own = torch.arange(count, device=bench.device)[:, None]
            once = torch.unique(torch.where(rows == own, -1, own * count + rows))
            once = once[once >= 0]
            keys = torch.cat([once, (once % count) * count + once // count])
            return torch.unique(keys, return_counts=True)

        keys, times = plain()
        both = keys[times == 2] if edges == "mutual" else keys
        owners = torch.repeat_interleave(torch.arange(count, device=bench.device), starts.diff())
        same = torch.equal(owners * count + columns, both)
        bench.check(
            f"CSR {edges}",
            [
                (equal, f"{len(few)} rows' arrays equal the CPU's"),
                (symmetric and same, f"{len(columns)} entries equal torch.unique's"),
            ],
        )
        moved = rows.numel() * 4 + len(columns) * 5 + 8 * count
        del keys, times, both, owners
        bench.rows.append(
            Row(f"CSR {edges}", f"{count} × {width}", bench.time(
                lambda edges=edges: build_csr(rows, edges)), moved, "B", "copy", bench.time(plain))  # type: ignore[misc]
        )  # fmt: skip
        bench.free()


PARTS: dict[str, Callable[[Bench], None]] = {
    "learnability": learnability,
    "jest": jest,
    "knn": knn,
    "gumbel": gumbel,
    "infobatch": infobatch,
    "graph": graph,
}


def table(bench: Bench) -> None:
    """Print the rows."""
    head = ("part", "size", "time", "achieved", "of ceiling", "plain torch", "ratio", "")
    lines = [head]
    for row in bench.rows:
        rate = row.work / row.seconds
        achieved = f"{rate / 1e12:.1f} TFLOP/s" if row.unit == "FLOP" else f"{rate / 1e9:.0f} GB/s"
        share = f"{100 * rate / bench.ceilings[row.ceiling]:.0f} % {row.ceiling}"
        plain = "" if row.plain is None else _seconds(row.plain)
        ratio = "" if row.plain is None else f"{row.plain / row.seconds:.1f}×"
        lines.append((row.part, row.size, _seconds(row.seconds), achieved, share, plain, ratio, row.note))
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value >= 1 else f"{1e3 * value:.3f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, kernels interpreted")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, by commas: {', '.join(PARTS)}")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    if arguments.dry_run:
        # Before triton is first imported.
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print("No GPU that torch can use, so nothing was measured. --dry-run runs every part on the CPU.")
        return 0
    try:
        import triton
    except ImportError:
        print("Triton is not installed, and its kernels are what is measured here: pip install triton")
        return 0 if arguments.dry_run else 1
    bench = Bench(dry=arguments.dry_run, repeats=arguments.repeats)
    card = "CPU, dry run: the figures mean nothing" if bench.dry else torch.cuda.get_device_name()
    print(f"{card}; torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}")
    began = time.perf_counter()
    ceilings(bench)
    for name in chosen:
        start = time.perf_counter()
        print(f"{name}", flush=True)
        PARTS[name](bench)
        bench.free()
        print(f"  {time.perf_counter() - start:.1f} s", flush=True)
    print()
    table(bench)
    print(f"\n{time.perf_counter() - began:.0f} s in all; {len(bench.failed)} checks failed")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
