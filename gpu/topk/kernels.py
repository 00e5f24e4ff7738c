"""The CUDA path of :mod:`curation.gpu.topk` for long lists: one pass that reads each score once.

A small sample sets a bar that a little more than k keys are above. One kernel then goes over all scores, hashes
each position and compares a float32 bound, never below the key, with the bar; the few thousand positions that
pass are keyed exactly. The bar is a guess, and checked afterwards: where k exact keys reach it, nothing below it
can be among the k best. Where the check fails the caller takes its slower path.

Cost, for N float32 scores: 4·N bytes read, some 45 instructions a score (36 of them for the hash), and 8 bytes
for each of ``PROGRAMS · cap`` slots for survivors.
"""

import math
import os

import torch
import triton
import triton.language as tl

from curation.gpu.random.kernels import STEP, high_bits, mix
from curation.gpu.random.tensor import signed
from curation.gpu.topk.gumbel import Keying
from curation.gpu.topk.order import descending_order
from curation.gpu.topk.tensor import keys_at

PROGRAMS = 1056  # eight for each of an H100's 132 multiprocessors
BLOCK = 1024
SAMPLE = 1 << 18
_LN2 = math.log(2)
_INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"))


@triton.jit
def _log2(x):  # type: ignore[no-untyped-def]
    """The hardware's logarithm, to 2^-22; tl.log2 is a polynomial of a dozen steps."""
    if _INTERPRETED:
        return tl.log2(x)
    return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit  # type: ignore[untyped-decorator]
def _above(v, x, second, slope, bar, LOG: tl.constexpr, NOISE: tl.constexpr, SCALED: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32: a bound on the key less the bar, both in units of ln 2; ``x`` is the hash's first word, uint64.

    Never below the truth but for rounding, and NaN where there is no key.
    """
    w = v.to(tl.float32)
    if LOG:
        # Below float32's normal numbers the hardware sees 0; its logarithm of what is negative is NaN.
        w = _log2(tl.where(v > 0, tl.maximum(w, 1.2e-38), w))
    over = w * slope - bar if SCALED else w * 0.0 - bar
    if NOISE:
        x = high_bits(mix(x) + second)
        # The mixer's last step would change bit 32, which the 1 makes up for. E ≥ u: -log u is not below the noise.
        u = (x >> 32).to(tl.uint32).to(tl.float32) - 1.0
        over = over - _log2(u)
    if _INTERPRETED:
        # The card has one NaN, which is positive; numpy has others.
        over = tl.where(over == over, over, float("inf"))
    return over


@triton.jit  # type: ignore[untyped-decorator]
def _sample_kernel(  # type: ignore[no-untyped-def]
    values, seeds, bounds, n, stride, start, slope,
    LOG: tl.constexpr, NOISE: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    position = i.to(tl.int64) * stride
    v = tl.load(values + position, mask=i < n, other=1)
    first = tl.load(seeds).to(tl.uint64)
    second = tl.load(seeds + 1).to(tl.uint64)
    x = (position + start).to(tl.uint64) * STEP + first
    tl.store(bounds + i, _above(v, x, second, slope, 0.0, LOG, NOISE, SCALED), mask=i < n)


@triton.jit  # type: ignore[untyped-decorator]
def filter_kernel(  # type: ignore[no-untyped-def]
    values, seeds, bar, slots, counts, n, start, slope, cap,
    LOG: tl.constexpr, NOISE: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Offsets whose bound reaches the bar, and those without a key, into this program's slots."""
    program = tl.program_id(0)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    first = tl.load(seeds).to(tl.uint64)
    second = tl.load(seeds + 1).to(tl.uint64)
    limit = tl.load(bar)
    spread = lane.to(tl.uint64) * STEP + first
    counter = counts + program + tl.zeros([BLOCK], tl.int32)
    own_slots = slots + program.to(tl.int64) * cap
    # Blocks in turns, so that a list in order does not send its best part to one program.
    for low in range(program.to(tl.int64) * BLOCK, n, step):
        offset = low + lane
        v = tl.load(values + offset, mask=offset < n, other=1)
        # Two's complement: the same bits, and no multiplication for each lane.
        x = spread + (low + start).to(tl.uint64) * STEP
        over = _above(v, x, second, slope, limit, LOG, NOISE, SCALED)
        # Read as an integer a float is negative where it is, and NaN is not: the exact keys will name those.
        sign = tl.where(offset < n, over.to(tl.int32, bitcast=True), -1)
        # Some 93 of 100 blocks hold none, and are spared what follows.
        if tl.max(sign, 0) >= 0:
            passes = sign >= 0
            slot = tl.atomic_add(counter, 1, mask=passes, sem="relaxed")
            tl.store(own_slots + slot, offset, mask=passes & (slot < cap))


def survivors_wanted(n: int, k: int, sample: int) -> int:
    """How many of a sample shall be above the bar, so that k of all n are: with some eight deviations to spare."""
    expected = k * sample / n
    return math.ceil(expected + 4 * math.sqrt(expected)) + 16


def best_by_bar(
    values: torch.Tensor, k: int, start: int, keying: Keying, *, sample: int = SAMPLE, programs: int = PROGRAMS
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """As :func:`curation.gpu.topk.best`, or None where no bar is found or holds: then another way must decide.

    The host reads three numbers, after the pass.
    """
    n, device = len(values), values.device
    wanted = survivors_wanted(n, k, sample)
    scaled = keying.scale != 0.0 or keying.seeds is None
    if k == 0 or n < 4 * sample or wanted > sample // 8 or (keying.log and (keying.scale < 0 or keying.seeds is None)):
        return None
    if not values.is_contiguous() or values.dtype == torch.bool or abs(keying.scale) > 1e30 or keying.shift:
        return None
    values = values.detach()
    seeds = torch.empty(2, dtype=torch.int64, device=device)
    for i, word in enumerate(keying.seeds or (0, 0)):
        seeds[i].fill_(signed(word))
    kind = {"LOG": keying.log, "NOISE": keying.seeds is not None, "SCALED": scaled, "BLOCK": BLOCK}
    # In units of ln 2; a logarithm to base 2 is in them already, and the hash's upper half counts from 2^32.
    unit = _LN2 if keying.seeds is not None else 1.0
    shift = 32.0 if keying.seeds is not None else 0.0
    slope = 1.0 if keying.seeds is None else keying.scale if keying.log else keying.scale / _LN2
    bounds = torch.empty(sample, dtype=torch.float32, device=device)
    _sample_kernel[(triton.cdiv(sample, BLOCK),)](values, seeds, bounds, sample, n // sample, start, slope, **kind)
    bar = bounds.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).topk(wanted).values[-1].double()
    # Float32's rounding. A key that reaches the bar owes no more than 64 to its noise, so the rest is no farther
    # from 0 than that and the bar; what lies far above needs no care.
    loose = 1e-6 * bar.abs() + (1e-6 * (128 + abs(slope)) if keying.seeds is not None else 0.0)
    lowered = (bar - loose).float()
    # Four times the survivors expected, and a whole block's for a list that is in order.
    cap = max(BLOCK, 1 << (4 * wanted * (n // sample) // programs).bit_length())
    slots = torch.empty(programs, cap, dtype=torch.int64, device=device)
    counts = torch.zeros(programs, dtype=torch.int32, device=device)
    filter_kernel[(programs,)](values, seeds, lowered, slots, counts, n, start, slope, cap, **kind)
    fullest, height = torch.stack([counts.max().double(), bar]).tolist()
    if fullest > cap or not abs(height) < 1e30:
        return None
    offsets = slots[torch.arange(cap, device=device) < counts[:, None]]
    keys, bad = keys_at(values[offsets], offsets + start, keying)
    if not bool((keys[:, 0] >= (bar + shift) * unit * keying.spread).sum().ge(k) & ~bad.any()):
        return None
    order = descending_order(keys, offsets)[:k]
    return offsets[order] + start, keys[order]
