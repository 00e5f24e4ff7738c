"""B3's batches in the sentence-transformers trainer.

    curation run b3 -o pairs && python examples/sentence_transformers_b3.py --data pairs

Without ``--data`` it makes the plan here, on docstrings and code of the standard library. The model is tiny and
starts from nothing, so that the example needs no download; any other works: ``--model NAME``.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordLevelTrainer

from curation import B3, BatchPlan
from curation.pipelines.steps.teachers import Tfidf
from curation.recipe import StdlibSource
from curation.selectors.b3 import text_ids
from curation.selectors.samplers.sentence_transformers import plan_batch_sampler
from curation.sources import open_source


def tiny_model(texts: list[str]) -> SentenceTransformer:
    tokenizer = Tokenizer(WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.train_from_iterator(texts, WordLevelTrainer(vocab_size=8000, special_tokens=["[UNK]"]))
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=64)], device="cpu")


def pairs_and_plan(packages: list[str]) -> tuple[Dataset, BatchPlan]:
    source = open_source(StdlibSource(format="stdlib", packages=packages, content="pair"))
    columns: dict[str, list[str]] = {"query": [], "positive": []}
    for block in source.blocks(16_384):
        table, _ = source.read(block, list(columns))
        for name, texts in columns.items():
            texts += table[name].to_pylist()
    teacher = Tfidf.fit(columns["query"] + columns["positive"], dimensions=64, seed=0)
    b3 = B3(batch_size=32, cluster_size=8, ranks=(2, 22), last="drop")
    plan = b3.plan(teacher(columns["query"]), teacher(columns["positive"]), duplicates=text_ids(columns["query"]))
    return Dataset.from_dict(columns), plan


parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="what a recipe with a b3 step made")
parser.add_argument("--model", help="a model by name; default: a tiny one from nothing")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--output", default=tempfile.mkdtemp())
args = parser.parse_args()

if args.data is None:
    dataset, plan = pairs_and_plan(["email", "http", "json", "logging", "unittest", "xml"])
else:
    dataset = load_from_disk(str(args.data)).select_columns(["query", "positive"])
    plan = BatchPlan.load(args.data / "batches.arrow")

model: Any = SentenceTransformer(args.model) if args.model else tiny_model(dataset["query"][:] + dataset["positive"][:])
trainer = SentenceTransformerTrainer(
    model=model,
    args=SentenceTransformerTrainingArguments(
        output_dir=args.output,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=len(plan[0]),
        batch_sampler=plan_batch_sampler(plan),
        learning_rate=2e-5 if args.model else 0.01,
        report_to="none",
        save_strategy="no",
        logging_strategy="epoch",
        disable_tqdm=True,
    ),
    train_dataset=dataset,
    loss=MultipleNegativesRankingLoss(model),
)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"{len(plan)} batches of {len(plan[0])}, {trainer.state.global_step} steps")
print("loss by epoch: " + ", ".join(f"{loss:.3f}" for loss in losses))
