"""What the columns of the page's tables are called there, and what they mean."""

from __future__ import annotations

from convsurgeon.base.tables import Table

WORDS: dict[str, tuple[str, str]] = {
    "MB": ("MB", "the file with its weights, in millions of bytes"),
    "metric": ("metric", "your own measure"),
    "sqnr_db": ("SQNR, dB", "energy of the outputs over that of their error; 20 dB is an error of 1 %"),
    "same_top1": ("decisions that stay", "share of images for which the file decides as the original"),
    "top1_agreement": ("decisions that stay", "share of images for which the network decides as the original"),
    "error": ("error", "squared error of the outputs over their variance; 0.01 is small, 1 is all"),
    "output_error": ("error", "squared error of the outputs over their variance; 0.01 is small, 1 is all"),
    "opset": ("opset", "version of the ONNX operators"),
    "IR": ("IR", "version of the ONNX format"),
    "cases": ("cases", "inputs that were compared, each with optimisations off and on"),
    "relative": ("largest difference", "over the largest value"),
    "parity": ("parity", "whether the file computes what torch computes"),
    "best_ms": ("ms", "fastest run of each round, the median: what the speed-up is computed from"),
    "p50_ms": ("median, ms", "of all runs, with what other programs took"),
    "p90_ms": ("90 %, ms", "nine runs of ten were faster"),
    "create_ms": ("load, ms", "opening the session"),
    "first_ms": ("first run, ms", "which also lays out memory"),
    "peak_MB": ("peak MB", "memory of a fresh process that loads and runs the file"),
    "macs": ("MACs", "multiply-accumulates of one run"),
    "fewer_macs": ("fewer MACs", "times"),
    "speed_up": ("speed-up", "times as fast as the original"),
    "95 %": ("95 %", "where the speed-up lies in 95 of 100 cases"),
    "verdict": ("verdict", "what the interval allows to say"),
    "suitable": ("suitable", "whether the provider takes the network well"),
    "nodes taken": ("nodes taken", "by the provider; the processor runs the others"),
    "partitions": ("parts", "runs of such nodes; each border costs a copy"),
    "stopped by": ("stopped by", "the first nodes that it does not take"),
    "noise_added": ("error added", "by rounding this layer alone, over its output's energy"),
    "cosine": ("cosine", "of the angle between the outputs; 1 is equal"),
    "rows": ("images", "that were compared"),
    "at_least": ("at least", "the lower end of the 95 % interval"),
    "class_overlap": ("overlap of classes", "intersection over union, the mean over classes"),
    "added_db": ("added, dB", "energy of what the network adds to its input over that of the error"),
    "error_before": ("error before", "of the layer's output, with factors from the weights alone"),
    "error_after": ("error after", "the same after the fit to the images"),
    "samples": ("samples", "places of images that were fitted to"),
    "share": ("share of MACs", "of the original's"),
    "predicted_ms": ("predicted ms", "by the table of layers"),
    "measured_ms": ("measured ms", "of the whole network"),
    "spread": ("spread", "of the measured milliseconds"),
    "decisions_lost": ("right decisions lost", "by the original's own probabilities"),
    "value": ("figure", "what the goal looks at"),
    "good_enough": ("good enough", "for the goal"),
    "slower_layers": ("slower layers", "that were not faster as part of the whole network"),
}
"""Column -> heading, meaning."""


def heading(column: str) -> str:
    """Return how a column is headed on the page."""
    return WORDS[column][0] if column in WORDS else column.replace("_", " ")


def legend(table: Table) -> list[tuple[str, str]]:
    """Return headings of a table with their meanings."""
    return [WORDS[name] for name in table.headers if name in WORDS]


def without_empty(table: Table) -> Table:
    """Return a table without columns that hold nothing."""
    held = [index for index in range(len(table.columns)) if any(row[index] is not None for row in table.rows)]
    columns = tuple(table.columns[index] for index in held)
    return Table(table.title, columns, tuple(tuple(row[index] for index in held) for row in table.rows))
