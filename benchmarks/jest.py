"""JEST's selection beside the paper's pseudocode: ``python -m benchmarks.jest``.

``paper`` is algorithm 1 (arXiv 2406.17711) as it is printed, in torch: the B×B losses of both models, and in
each round the sum of all rows and columns taken so far. Both start from the same embeddings, and making the loss
matrices counts. Timings alternate within one process after a warm-up. Memory is taken in a process of its own
for each: the most resident memory during one selection, above that just before it.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import torch

from benchmarks.common import Timing, ratio
from curation import JEST, Pair


def embeddings(size: int, width: int) -> tuple[Pair, Pair]:
    def pair(seed: int) -> Pair:
        generator = torch.Generator().manual_seed(seed)
        sides = [torch.empty(size, width).normal_(generator=generator) for _ in "ab"]
        for side in sides:
            side /= side.norm(dim=1, keepdim=True)
        return Pair(*sides, 10.0, -10.0)

    return pair(0), pair(1)


def paper(learner: Pair, reference: Pair, jest: JEST, generator: torch.Generator) -> torch.Tensor:
    """Algorithm 1 as printed, sigmoid loss."""

    def losses(model: Pair) -> torch.Tensor:
        logits = model.scale * model.a @ model.b.T + model.bias
        signs = 2 * torch.eye(len(logits)) - 1
        return torch.nn.functional.softplus(-signs * logits)

    scores = losses(learner) - losses(reference)
    own = scores.diagonal()
    count = round((1 - jest.filter_ratio) * len(scores) / jest.chunks)
    taken = torch.multinomial(torch.softmax(own, 0), count, generator=generator)
    for _ in range(jest.chunks - 1):
        inside = torch.zeros(len(scores))
        inside[taken] = 1
        logits = own + (scores * inside.view(-1, 1)).sum(0) + (scores * inside.view(1, -1)).sum(1)
        logits -= inside * 1e8
        taken = torch.cat([taken, torch.multinomial(torch.softmax(logits, 0), count, generator=generator)])
    return taken


def choose(way: str, models: tuple[Pair, Pair], jest: JEST, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    if way == "paper":
        paper(*models, jest, generator)
    else:
        jest.select(*models, generator=generator)


def resident(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))


def measure(way: str, size: int, width: int) -> None:
    """In a child: print the peak above the start in bytes, and seconds."""
    choose(way, embeddings(min(size, 2_048), width), JEST(), 0)  # loads the libraries' code
    models = embeddings(size, width)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as peak:  # noqa: PTH123
        peak.write("5")  # resets the high-water mark to what is resident now
    before, start = resident("VmRSS"), time.perf_counter()
    choose(way, models, JEST(), 0)
    seconds = time.perf_counter() - start
    print(json.dumps({"above": resident("VmHWM") - before, "peak": resident("VmHWM"), "seconds": seconds}))


def in_child(way: str, size: int, width: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.jest", "--measure", way, "--sizes", str(size), "--width", str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[2_048, 4_096, 8_192], help="B")
    parser.add_argument("--width", type=int, default=128, help="D")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--large", type=int, nargs=2, default=[65_536, 512], metavar=("B", "D"), help="0 0 leaves it out"
    )
    parser.add_argument("--measure", choices=["paper", "ours"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.sizes[0], args.width)
        return
    print(f"JEST(), sigmoid, D = {args.width}, {torch.get_num_threads()} threads; median (min–max) of {args.repeats}")
    print(f"{'B':>7}  {'paper':>30}  {'ours':>30}  {'faster':>20}  {'memory: paper':>14}  {'ours':>9}  {'less':>6}")
    for size in args.sizes:
        models, seconds = embeddings(size, args.width), {"paper": [], "ours": []}
        for repeat in range(-1, args.repeats):
            for way, taken in seconds.items():
                start = time.perf_counter()
                choose(way, models, JEST(), repeat + 1)
                if repeat >= 0:
                    taken.append(time.perf_counter() - start)
        theirs, ours = (Timing(tuple(seconds[way])) for way in ("paper", "ours"))
        memory = {way: in_child(way, size, args.width)["above"] for way in seconds}
        print(
            f"{size:>7}  {theirs!s:>30}  {ours!s:>30}  {ratio(theirs, ours):>20}  "
            f"{memory['paper'] / 2**20:>10.0f} MiB  {memory['ours'] / 2**20:>5.1f} MiB  "
            f"{memory['paper'] / max(memory['ours'], 1):>5.0f}×",
            flush=True,
        )
    size, width = args.large
    if size:
        large = in_child("ours", size, width)
        print(
            f"B = {size:,}, D = {width}: {large['seconds']:.1f} s, peak of the whole process "
            f"{large['peak'] / 2**30:.2f} GiB, of which {large['above'] / 2**20:.0f} MiB during the selection"
        )


if __name__ == "__main__":
    main()
