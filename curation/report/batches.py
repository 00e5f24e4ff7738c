"""The report's section on a grouped dataset's batches."""

from html import escape

from curation.dataset.batches import Grouping, ShownBatch
from curation.report.markup import paragraph, table
from curation.report.sections import Section

TEXT = 160


def batches(found: Grouping | None) -> Section | None:
    """How hard the batches are beside random ones, how large, and the first rows of some; None without any."""
    if found is None:
        return None
    details = found.details
    search = f"{details['engine']}, {'exact' if details['exact'] == 'true' else 'approximate'}"
    if "recall" in details:
        search += f", recall {float(details['recall']):.1%} on a sample"
    body = paragraph(
        f"{found.batches:,} batches, in the order of the shards. Search: {search}. The graph has "
        f"{int(details['graph_edges']):,} edges and was cut into {int(details['communities']):,} communities by "
        f"{details['partitioner']}."
    )
    measured = [[escape(meaning), _number(plan), _number(random)] for meaning, plan, random in found.quality]
    body += table("Against random batches of the same sizes", ["", "#these", "#random"], measured)
    sizes = [["batches", size, f"{many:,}"] for size, many in found.batch_sizes.items()]
    sizes += [["communities", size, f"{many:,}"] for size, many in found.cluster_sizes.items()]
    body += table("Sizes", ["of", "#rows", "#how many"], sizes)
    body += "".join(map(_shown, found.shown))
    return Section("batches", "Batches", body)


def _shown(batch: ShownBatch) -> str:
    names = list(batch.texts[0]) if batch.texts else []
    rows = [
        ["–" if community is None else f"{community:,}", *(escape(_short(text[name])) for name in names)]
        for community, text in zip(batch.communities, batch.texts, strict=True)
    ]
    caption = f"Batch {batch.number:,}: the first {len(rows)} of {batch.rows:,} rows"
    return table(caption, ["#community", *names], rows)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= TEXT else f"{flat[: TEXT - 1]}…"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
