"""B3: batches whose in-batch negatives are hard but not false (Thirukovalluru et al. 2025, arXiv 2505.11293).

Decides which candidates share a batch. A teacher's embeddings rank all positives for every query; the first
``ranks[0]`` are likely false negatives and are left out, the next join rows in a sparse graph; the graph is
cut into communities of exactly ``cluster_size``, and each epoch draws communities into batches.

Costs: the search is O(N²·D) where exact and takes most of the time; the rest is O(N·m) time and memory, with
m = ranks[1] - ranks[0]. :meth:`B3.mine` does all that once; :meth:`B3.batches` then makes any epoch's plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.gpu.graph import EDGES, Edges
from curation.gpu.knn import ENGINES, METRICS, PRECISIONS, Metric
from curation.plan import BatchPlan
from curation.selectors.b3.batches import Grouping, Last, Surplus, check_choices, foresee, regroup
from curation.selectors.b3.communities import Communities, find_communities
from curation.selectors.b3.conflicts import conflict_columns
from curation.selectors.b3.negatives import hard_negatives
from curation.selectors.b3.partition import PARTITIONERS, Partitioner
from curation.selectors.b3.ranking import RankWindow, rank_window
from curation.selectors.b3.ranks import Ranks, check_ranks

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class B3:
    """Hard-negative batches by graph communities.

    Args:
        batch_size: rows of a batch, a multiple of ``cluster_size``.
        cluster_size: K, rows of a community. Small ones (4 to 8) do best in batches of 64.
        ranks: (p, q), the ranks kept, from 0: p ≤ rank < q among the *other* positives. Two floats are shares of
            them; a mapping gives each data set (by its id in ``datasets``) a pair of its own.
        edges: ``"mutual"`` joins i and j where each ranks the other, ``"either"`` where one does.
        partitioner: ``"kaminpar"``, ``"metis"`` (needs pymetis) or ``"louvain"`` (small graphs only).
        threads: of KaMinPar. Only 1 is deterministic.
        repulsion: what a pair of a row and one of its first p ranks weighs against an edge when such pairs are
            swapped out of communities; 0, as in the paper, leaves them where the edges put them.
        last: ``"keep"`` or ``"drop"`` the short batches of an epoch. A kept one has two rows or more.
        surplus: what becomes of rows that cannot be kept apart from others, such as 33 copies of a text in 32 batches:
            ``"drop"`` leaves as few as it can out of an epoch, in each epoch others; ``"allow"`` lets them meet;
            ``"error"`` raises, in :meth:`mine` before the search.
        negatives: h, explicit hard negatives for each row (B3++; the paper takes 5); 0 for none.
        similarity_ceiling: leave j out of i's window where their similarity exceeds this; None for no limit.
        positive_margin: likewise where it exceeds s - (1 - margin)·|s|, s being i's similarity to its own positive.
            Explicit negatives of i keep to both, and are never among its first p ranks.
        metric: ``"ip"`` or ``"l2"`` (similarity is then minus the squared distance).
        engine, precision, memory_budget: of the search; see :func:`curation.gpu.knn.knn`.

    Raises:
        ValueError: a field is not allowed; the message says what is.
    """

    batch_size: int = 1024
    cluster_size: int = 32
    ranks: Ranks = (30, 130)
    edges: Edges = "mutual"
    partitioner: Partitioner = "kaminpar"
    threads: int = 1
    repulsion: float = 0.0
    last: Last = "keep"
    surplus: Surplus = "drop"
    negatives: int = 0
    similarity_ceiling: float | None = None
    positive_margin: float | None = None
    metric: Metric = "ip"
    engine: str = "auto"
    precision: str = "float32"
    memory_budget: int = 1 << 30

    def __post_init__(self) -> None:
        if self.cluster_size < 1 or self.batch_size < 1 or self.batch_size % self.cluster_size:
            raise ValueError(
                f"batch_size must be a multiple of cluster_size, not {self.batch_size} with {self.cluster_size}"
            )
        object.__setattr__(self, "ranks", check_ranks(self.ranks))
        for name, known in (
            ("edges", EDGES),
            ("partitioner", tuple(PARTITIONERS)),
            ("metric", METRICS),
            ("engine", ENGINES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        check_choices(self.last, self.surplus)
        if self.threads < 1 or self.negatives < 0:
            raise ValueError(
                f"threads must be at least 1 and negatives not negative, not {self.threads}, {self.negatives}"
            )
        if not 0 <= self.repulsion < np.inf:
            raise ValueError(f"repulsion must be a finite number and not negative, not {self.repulsion}")
        for name in ("similarity_ceiling", "positive_margin"):
            value = getattr(self, name)
            if value is not None and not np.isfinite(value):
                raise ValueError(f"{name} must be a finite number or None, not {value}")
        if self.positive_margin is not None and (self.positive_margin <= 0 or self.metric == "l2"):
            raise ValueError("positive_margin must be above 0 and needs metric 'ip': a share of a distance "
                             "has no such meaning")  # fmt: skip

    def plan(
        self,
        queries: Any,
        positives: Any,
        *,
        seed: int = 0,
        epoch: int = 0,
        groups: npt.ArrayLike | None = None,
        duplicates: npt.ArrayLike | None = None,
        across: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        labels: npt.ArrayLike | None = None,
        datasets: npt.ArrayLike | None = None,
    ) -> BatchPlan:
        """One epoch's batches. For several epochs call :meth:`mine` once and :meth:`batches` for each.

        Args:
            queries: [N, D] float32, float16 or bfloat16 embeddings: array, memory map or torch tensor.
            positives: [N, D]; row i is the positive of query i.
            seed: of the partition and of the draws.
            epoch: of the draws alone.
            groups: int64[N]; rows of one group (several positives of one anchor, one page) are never each
                other's negatives and never share a batch. -1 for no group.
            duplicates: int64[N] or int64[N, c], ids of equal texts (:func:`text_ids`), kept apart likewise; those of
                a column are compared with each other.
            across: int64[N] twice, ids of the queries' and of the positives' texts (:func:`pair_ids`), kept apart
                likewise; those of both are compared, so that no row's query is another's positive.
            labels: int64[N] classes, -1 for none: rows of one take no rank for each other, and are never each
                other's explicit negatives. They may share a batch, where the loss has to mask them; where it does
                not, give them as ``groups``.
            datasets: int64[N]; ranks, communities and batches then stay within one data set.

        Returns:
            BatchPlan: every row once at most, as :meth:`batches` has it.

        Raises:
            ValueError: shapes do not fit, a row is not finite, or, with ``surplus="error"``, rows cannot be kept apart.
        """
        mined = self.mine(queries, positives, seed=seed, groups=groups, duplicates=duplicates, across=across,
                          labels=labels, datasets=datasets)  # fmt: skip
        return self.batches(mined, seed=seed, epoch=epoch)

    def mine(
        self,
        queries: Any,
        positives: Any,
        *,
        seed: int = 0,
        groups: npt.ArrayLike | None = None,
        duplicates: npt.ArrayLike | None = None,
        across: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        labels: npt.ArrayLike | None = None,
        datasets: npt.ArrayLike | None = None,
    ) -> Communities:
        """Search, graph and partition: all that is the same in every epoch. Arguments as :meth:`plan`'s.

        Before the search it finds out which rows cannot be kept apart, and which no epoch takes, and warns of them.
        """
        size = len(queries)
        if len(positives) != size:
            raise ValueError(f"there are {size} queries but {len(positives)} positives: row i of each is a pair")
        if size == 0:
            raise ValueError("there are no rows: queries and positives must have shape [N, D] with N ≥ 1")
        apart = _apart(groups, duplicates, across, size)
        classes = None if labels is None else _column(labels, "labels", size)
        sets = None if datasets is None else _column(datasets, "datasets", size)
        foresee(size, batch_size=self.batch_size, apart=apart, datasets=sets, last=self.last, surplus=self.surplus)
        ranking = rank_window(
            queries, positives, ranks=self.ranks, apart=apart, labels=classes, datasets=sets,
            metric=self.metric, similarity_ceiling=self.similarity_ceiling, positive_margin=self.positive_margin,
            engine=self.engine, precision=self.precision, memory_budget=self.memory_budget, seed=seed,
        )  # fmt: skip
        if sets is not None:
            sets = np.unique(sets, return_inverse=True)[1].astype(np.int64)
        return self.communities(ranking, apart=apart, datasets=sets, seed=seed)

    def communities(
        self, ranking: RankWindow, *, apart: Int64 | None = None, datasets: Int64 | None = None, seed: int = 0
    ) -> Communities:
        """Graph and partition of ranks that are known: the second half of :meth:`mine`.

        Args:
            ranking: N rows.
            apart: int64[c, N], as :func:`curation.selectors.b3.conflict_columns` gives them.
            datasets: int64[N] ids 0.., within which the ranks are.
            seed: of the partition.
        """
        return find_communities(
            ranking, cluster_size=self.cluster_size, edges=self.edges, partitioner=self.partitioner,
            threads=self.threads, repulsion=self.repulsion, apart=apart, datasets=datasets, seed=seed,
        )  # fmt: skip

    def batches(self, found: Communities, *, seed: int = 0, epoch: int = 0) -> BatchPlan:
        """An epoch's plan from communities: O(N log N), no search.

        Args:
            found: what :meth:`mine` returned.
            seed, epoch: of the draws.

        Returns:
            BatchPlan: with ``clusters``, and ``negatives`` where asked for. Its ``metadata`` says what made it, and how
            many rows are in no batch and why, as :meth:`grouping` names them.

        Raises:
            ValueError: with ``surplus="error"``, rows cannot be kept apart; never where :meth:`mine` raised nothing.
        """
        return self.grouping(found, seed=seed, epoch=epoch).plan

    def grouping(self, found: Communities, *, seed: int = 0, epoch: int = 0) -> Grouping:
        """An epoch's plan as :meth:`batches` gives it, and the rows that are not in it, by reason."""
        grouping = regroup(
            found.clusters, batch_size=self.batch_size, cluster_size=self.cluster_size, seed=seed, epoch=epoch,
            apart=found.apart, datasets=found.datasets, last=self.last, surplus=self.surplus,
        )  # fmt: skip
        plan, negatives = grouping.plan, None
        if self.negatives:
            ranking = found.ranking
            negatives = hard_negatives(
                found.clusters, ranking.window, ranking.near, count=self.negatives, seed=seed, epoch=epoch,
                apart=found.apart, labels=ranking.labels, limits=ranking.limits,
            )[plan.indices]  # fmt: skip
        ours = {item.name: str(getattr(self, item.name)) for item in fields(self)}
        left_out = {f"{name}_rows": str(count) for name, count in grouping.counts().items()}
        metadata = {"method": "b3", **ours, **found.metadata, **left_out, "seed": str(seed), "epoch": str(epoch)}
        return replace(grouping, plan=replace(plan, negatives=negatives, metadata=metadata))


def text_ids(texts: Sequence[str]) -> Int64:
    """int64[N]: equal texts have equal ids, for :meth:`B3.plan`'s ``duplicates``. Exact, not by hash."""
    encoded = pa.array(texts, pa.large_string()).dictionary_encode()
    return np.asarray(encoded.indices.fill_null(-1)).astype(np.int64)


def pair_ids(queries: Sequence[str], positives: Sequence[str]) -> tuple[Int64, Int64]:
    """int64[N] twice: equal texts of either side have equal ids, for :meth:`B3.plan`'s ``across``. Exact."""
    if len(queries) != len(positives):
        raise ValueError(f"there are {len(queries)} queries but {len(positives)} positives: row i of each is a pair")
    ids = text_ids([*queries, *positives])
    return ids[: len(queries)], ids[len(queries) :]


def _column(values: npt.ArrayLike, name: str, size: int) -> Int64:
    column = np.asarray(values)
    if column.shape != (size,) or not np.issubdtype(column.dtype, np.integer):
        raise ValueError(f"{name} must be integers of shape [{size}], not {column.dtype} of shape {column.shape}")
    return column.astype(np.int64)


def _apart(
    groups: npt.ArrayLike | None,
    duplicates: npt.ArrayLike | None,
    across: tuple[npt.ArrayLike, npt.ArrayLike] | None,
    size: int,
) -> Int64 | None:
    columns = [] if groups is None else [_column(groups, "groups", size)]
    if duplicates is not None:
        ids = np.asarray(duplicates)
        ids = ids[:, None] if ids.ndim == 1 else ids
        columns += [_column(column, "duplicates", size) for column in ids.T]
    if across is not None:
        first, second = across
        across = _column(first, "across", size), _column(second, "across", size)
    return conflict_columns(np.stack(columns, 1) if columns else None, size, across=across)
