"""Predefined batches reach the sentence-transformers trainer's data loader as they are."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from curation.plan import BatchPlan

pytest.importorskip("sentence_transformers")

from curation.selectors.samplers.sentence_transformers import plan_batch_sampler

# The libraries' own warnings are theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = 40


def plan(epoch: int = 0) -> BatchPlan:
    return BatchPlan.of_size(np.random.default_rng((1, epoch)).permutation(ROWS), 6)


def sampler(**options: Any) -> Any:
    made = plan_batch_sampler(options.pop("plan", plan()), shuffle=options.pop("shuffle", True))
    return made(Dataset.from_dict({"a": list(range(ROWS))}), 6, options.pop("drop_last", False), seed=3, **options)


def test_batches_are_the_plans_in_an_order_of_the_epoch() -> None:
    ours = sampler()
    first = list(ours)
    assert len(first) == len(ours) == 7
    assert sorted(map(tuple, first)) == sorted(tuple(batch.tolist()) for batch in plan())
    assert list(ours) == first
    ours.set_epoch(1)
    assert list(ours) != first
    ours.set_epoch(0)
    assert list(ours) == first
    assert list(pickle.loads(pickle.dumps(sampler(shuffle=False)))) == [batch.tolist() for batch in plan()]


def test_a_function_of_the_epoch_regroups() -> None:
    ours = sampler(plan=plan, shuffle=False)
    ours.set_epoch(2)
    assert list(ours) == [batch.tolist() for batch in plan(2)]


def test_drop_last_leaves_out_the_short_batch() -> None:
    assert [len(batch) for batch in sampler(drop_last=True)] == [6] * 6


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_get_every_batch_whole_wherever_the_short_ones_stand(ranks: int, even: bool) -> None:
    from accelerate.data_loader import BatchSamplerShard

    sizes = np.array([6, 3, 6, 5, 6, 2, 6, 6])
    short = BatchPlan(indices=np.arange(ROWS), offsets=np.append(0, np.cumsum(sizes)))
    dealt = [
        [tuple(batch) for batch in BatchSamplerShard(sampler(plan=short), ranks, rank, even_batches=even)]
        for rank in range(ranks)
    ]
    batches = {tuple(batch.tolist()) for batch in short}
    assert {batch for rank in dealt for batch in rank} == batches
    assert sum(map(len, dealt)) == (-(-len(sizes) // ranks) * ranks if even else len(sizes))


def test_a_plan_of_other_data_is_refused() -> None:
    with pytest.raises(ValueError, match="names row 39, but the dataset has 10 rows"):
        plan_batch_sampler(plan())(Dataset.from_dict({"a": list(range(10))}), 6, False)


def test_the_trainer_trains_on_them(tmp_path: Path) -> None:
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({str(number): number for number in range(ROWS)} | {"[UNK]": ROWS}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu")
    seen: list[list[int]] = []

    class Loss(MultipleNegativesRankingLoss):  # type: ignore[misc]
        def forward(self, features: Any, labels: Any) -> Any:
            seen.append(features[0]["input_ids"].tolist())
            return super().forward(features, labels)

    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=2,
            per_device_train_batch_size=6,
            batch_sampler=plan_batch_sampler(plan),
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=3,
        ),
        train_dataset=Dataset.from_dict({name: [str(number) for number in range(ROWS)] for name in ("q", "p")}),
        loss=Loss(model),
    )
    trainer.train()
    expected = []
    for epoch in range(2):
        ours = sampler(plan=plan)
        ours.set_epoch(epoch)
        expected += list(ours)
    assert seen == expected
