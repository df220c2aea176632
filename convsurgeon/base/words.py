"""What the columns of tables are called where people read them, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable

WORDS: dict[str, tuple[str, str]] = {
    "conv": ("conv", "channels in and out, window, /stride"),
    "weights_lost": ("weights lost", "share of the kernel's squared weights that the form drops, before any fit"),
    "params": ("parameters", ""),
    "params_after": ("parameters after", ""),
    "macs_after": ("MACs after", ""),
    "flops": ("FLOPs", "twice the MACs"),
    "weight_bytes": ("bytes of weights", ""),
    "peak_activation_bytes": ("peak bytes of activations", ""),
    "budget": ("budget", "share of the original's"),
    "macs_ratio": ("MACs, ratio", "of the original's"),
    "params_ratio": ("parameters, ratio", "of the original's"),
    "ms": ("ms", "milliseconds of one run"),
    "level": ("optimisation level", "of onnxruntime's graph optimisations"),
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
    "suitable": ("suitable", "whether the provider runs the network well"),
    "nodes taken": ("nodes taken", "by the provider; the processor runs the others"),
    "partitions": ("partitions", "connected groups of such nodes; each border costs a copy"),
    "stopped by": ("stopped by", "the first nodes that it does not take"),
    "noise_added": ("error added", "by rounding this layer alone, over its output's energy"),
    "cosine": ("cosine", "of the angle between the outputs; 1 is equal"),
    "rows": ("images", "that were compared"),
    "at_least": ("that stay, at least", "the lower end of the 95 % interval"),
    "class_overlap": ("overlap of classes", "intersection over union, the mean over classes"),
    "added_db": ("added, dB", "energy of what the network adds to its input over that of the error"),
    "error_before": ("error before", "of the layer's output, with factors from the weights alone"),
    "error_after": ("error after", "the same after the fit to the images"),
    "kept": ("kept", "whether the network got nearer, so that the next step went on from there"),
    "samples": ("samples", "pixels of the output that were fitted to"),
    "share": ("share of MACs", "of the whole original's"),
    "predicted_ms": ("predicted ms", "by the measured times of its layers"),
    "measured_ms": ("measured ms", "of the whole network, in the search; its file is timed for longer afterwards"),
    "spread": ("spread", "of the measured milliseconds"),
    "decisions_lost": ("right decisions lost", "estimated from the original's own probabilities"),
    "spent": (
        "of the tolerance",
        "share of what may be lost: of the metric, or of the error or the decisions, whichever is more",
    ),
    "good_enough": ("good enough", "for the goal"),
    "slower_layers": ("slower layers", "that were not faster as part of the whole network"),
}
"""Column -> heading, meaning."""


def heading(column: str) -> str:
    """Return how a column is headed."""
    return WORDS[column][0] if column in WORDS else column.replace("_", " ")


def legend(columns: Iterable[str]) -> list[tuple[str, str]]:
    """Return headings with their meanings, of the columns that need one."""
    return [WORDS[name] for name in columns if name in WORDS and WORDS[name][1]]
