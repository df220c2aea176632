"""Make the page of the sweep from its rows.

python -m tests.zoo.page        # rewrites tests/zoo/README.md from rows.jsonl, peers.jsonl and counters.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate

from tests.zoo.__main__ import ROWS, read
from tests.zoo.check import ROUNDING, Row

PEERS = Path(__file__).parent / "peers.jsonl"
COUNTERS = Path(__file__).parent / "counters.jsonl"
PAGE = Path(__file__).parent / "README.md"

_HEAD = """# The zoo

Every torchvision model (of a detector its backbone) and the smallest model of each of the {timm} timm families that
hold a dense k x k conv. Each is captured, planned, and converted at **full rank**, where the forms are exact:
separable and blueprint in turns. Weights are random, and none is zero. At rank 1 the same models must give different
outputs, get gradients, and come back from plan and state dict to the bit. No model gets settings of its own. Made by

    pip install --no-deps torchvision==0.28.0 timm && pip install pillow pyyaml huggingface_hub
    python -m tests.zoo --export 3/10
    python -m tests.zoo 'timm:*' --peers --rows tests/zoo/peers.jsonl          # bsconv==0.4.0, tensorly-torch
    python -m tests.zoo --counters --rows tests/zoo/counters.jsonl             # fvcore, torchinfo
    python -m tests.zoo.page

The first command goes on where it stopped, and repeats what was not right. `error` is the largest difference over the
largest output in float32; above {rounding:g} it is measured again in float64. *traced*: by torch.fx, with or without
help; *leaves*: some modules run untraced; *untraced*: the whole model does. Convs inside are found and rewritten in all
three cases. *Deaf* is a fault of the test: the random weights make the output independent of the convs, so that equal
outputs do not prove anything.
"""


def page(rows: list[Row], peers: list[Row], counters: list[Row]) -> str:
    """The whole page."""
    last = {row["case"]: row for row in rows}
    ordered = sorted(last.values(), key=lambda row: (row["source"], row["family"], row["name"]))
    timm = sum(row["source"] == "timm" for row in ordered)
    parts = [_HEAD.format(timm=timm, rounding=ROUNDING), "## Totals\n", _totals(ordered)]
    if wrong := [row for row in ordered if row["status"] != "ok"]:
        parts += ["## Not right\n", "\n".join(f"* {row['case']}: {row['status']}" for row in wrong) + "\n"]
    if refused := [row for row in ordered if row.get("export", "ok") != "ok"]:
        parts += ["## Not exported\n", "\n".join(f"* {row['case']}: {row['export']}" for row in refused) + "\n"]
    parts += ["## What is left alone, and why\n", _reasons(ordered)]
    if peers:
        parts += ["## Other tools\n", _PEERS, _peers(_distinct(peers), last)]
    if counters:
        parts += ["## MACs by other counters\n", _COUNTERS, _counters(_distinct(counters))]
    parts += ["## By family\n", _families(ordered)]
    return "\n".join(parts)


def _totals(rows: list[Row]) -> str:
    table = []
    for source in ("torchvision", "timm"):
        own = [row for row in rows if row["source"] == source]
        good = [row for row in own if row["status"] == "ok"]
        dense, done = (sum(row.get(key, 0) for row in own) for key in ("dense", "dense_converted"))
        resistant = [row for row in own if row.get("fx") is False]
        handled = sum(row["status"] == "ok" for row in resistant)
        exported = [row["export"] for row in own if "export" in row]
        table.append(
            [
                *(source, len(own), len({row["family"] for row in own}), len(good)),
                *(sum("crash" in row["status"] for row in own), sum(row.get("convs", 0) for row in own)),
                *(f"{done:,} of {dense:,} ({_share(done, dense)})", f"{handled} of {len(resistant)}"),
                f"{exported.count('ok')} of {len(exported)}",
            ]
        )
    heads = ["", "models", "families", "right", "crashes", "convs", "dense k x k converted"]
    return _markdown([*heads, "plain fx fails, handled", "exported with parity"], table)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"


def _reasons(rows: list[Row]) -> str:
    """Reasons of all convs, then of the dense ones; numbers and names in them are cut off."""
    everything: Counter[str] = Counter()
    dense: Counter[str] = Counter()
    for row in rows:
        for key, counter in (("skipped", everything), ("dense_left", dense)):
            for reason, count in row.get(key, {}).items():
                counter[_short(reason)] += count
    return _markdown(
        ["reason", "convs", "of them plain dense k x k"], [[r, n, dense[r]] for r, n in everything.most_common()]
    )


def _short(reason: str) -> str:
    for start in ("called as F.conv", "its weight is also read in", "its weight has shape"):
        if reason.startswith(start):
            return f"{start} ..."
    return reason.split(";")[0]


def _distinct(rows: list[Row]) -> list[Row]:
    """The last row of every case and tool."""
    return list({(row["case"], row["peer"]): row for row in rows}.values())


_PEERS = """The timm models again, as far as they were run. bsconv has rank 1 only and draws new weights, so its
output cannot be right; the model has to run, that is all. tensorly-torch factors by Tucker at the full rank
of every mode, where it should be exact.
"""


def _peers(peers: list[Row], own: dict[str, Row]) -> str:
    cases = {row["case"] for row in peers}
    table = [_tool("convsurgeon", [row for case, row in own.items() if case in cases])]
    for name in ("bsconv", "tensorly-torch"):
        rows = [row for row in peers if row["peer"] == name]
        table.append(_tool(name, rows))
    failures = Counter(
        (row["peer"], row["status"].removeprefix("crash: ")[:90]) for row in peers if "crash" in row["status"]
    )
    told = "\n".join(f"* {peer}, {count} times: {what}" for (peer, what), count in failures.most_common(12))
    heads = ["", "models", "survived", "dense convs", "converted", "right at full rank", "nothing converted"]
    return _markdown(heads, table) + f"\n{told}\n"


_COUNTERS = """MACs of each model on the input of the sweep, compared kind by kind (convolutions, matrix products,
attention): torch's `FlopCounterMode` all of them, fvcore what it has a formula for, torchinfo the convs without their
bias. What the others count for norms, pooling and biases is left out.
"""


def _counters(rows: list[Row]) -> str:
    table, told = [], []
    for name in dict.fromkeys(row["peer"] for row in rows):
        own = [row for row in rows if row["peer"] == name]
        crashed = sum("crash" in row["status"] for row in own)
        table.append([name, len(own), sum(row["status"] == "ok" for row in own), crashed])
        reasons = Counter(row["status"] for row in own if row["status"] != "ok")
        told += [f"* {name}, {count} times: {reason[:110]}" for reason, count in reasons.most_common()]
    return _markdown(["", "models", "equal", "crashed"], table) + "\n" + "\n".join(told) + "\n"


def _tool(name: str, rows: list[Row]) -> list[object]:
    statuses = [row["status"] for row in rows]
    sums = [sum(row.get(key, 0) for row in rows) for key in ("dense", "converted")]
    survived = sum("crash" not in status for status in statuses)
    return [name, len(rows), survived, *sums, statuses.count("ok"), statuses.count("nothing converted")]


def _families(rows: list[Row]) -> str:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["source"], row["family"]), []).append(row)
    heads = ["family", "models", "convs", "dense", "converted", "skipped, by reason", "error", "handled", "result"]
    return _markdown(heads, [_family(source, family, own) for (source, family), own in groups.items()])


def _family(source: str, family: str, rows: list[Row]) -> list[object]:
    reasons: Counter[str] = Counter()
    for row in rows:
        for reason, count in row.get("skipped", {}).items():
            reasons[_short(reason)] += count
    told = ", ".join(f"{count} {_ABBREVIATED.get(reason, reason)}" for reason, count in reasons.most_common())
    errors = [row["error"] for row in rows if "error" in row]
    model = f" ({rows[0]['name']})" if source == "timm" else ""
    return [
        *(f"{source} {family}{model}", len(rows), *_sums(rows, "convs", "dense", "dense_converted"), told),
        f"{max(errors):.0e}{_doubled(rows)}" if errors else "-",
        ", ".join(sorted({row["handled"] for row in rows if "handled" in row})),
        "right" if all(row["status"] == "ok" for row in rows) else "see above",
    ]


_ABBREVIATED = {"1x1 kernel: nothing to separate": "1x1", "already depthwise": "depthwise"}


def _sums(rows: list[Row], *keys: str) -> Iterable[int]:
    return (sum(row.get(key, 0) for row in rows) for key in keys)


def _doubled(rows: list[Row]) -> str:
    doubled = [row["error64"] for row in rows if "error64" in row]
    return f" ({max(doubled):.0e} in float64)" if doubled else ""


def _markdown(heads: list[str], table: list[list[object]]) -> str:
    return tabulate(table, heads, tablefmt="github", disable_numparse=True) + "\n"


def main() -> None:
    PAGE.write_text(page(read(ROWS), read(PEERS), read(COUNTERS)), encoding="utf-8")


if __name__ == "__main__":
    main()
