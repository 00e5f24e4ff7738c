"""One contender of `benchmarks.zipfit`: the zip-fit package, in a Python of its own that need not have ours.

Reads its job (JSON: sources, targets, codec, level) from the file named on the command line; for every line
on standard input it scores all sources once and prints the seconds. The line "scores" prints the scores.
"""

import contextlib
import io
import json
import sys
import time

from zip_fit.zipfit import ZIPFIT


def main() -> None:
    with open(sys.argv[1]) as file:  # noqa: PTH123
        job = json.load(file)
    scores: dict[str, float] = {}
    for line in sys.stdin:
        if line.strip() == "scores":
            print(json.dumps([scores[text] for text in job["sources"]]), flush=True)
            continue
        start = time.perf_counter()
        peer = ZIPFIT("", "", k=len(job["sources"]), compression_algorithm=job["codec"], compress_level=job["level"])
        with contextlib.redirect_stdout(io.StringIO()):
            ranked = peer.rank_sequences_by_alignment(job["sources"], job["targets"])
        seconds = time.perf_counter() - start
        scores = {text: float(score) for text, score in ranked}
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
