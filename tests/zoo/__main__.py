"""The sweep: every case in a process of its own, one row each as it finishes.

python -m tests.zoo [NAME ...] [--rows FILE] [--export 3/10] [--timeout 900]   # goes on where it stopped
python -m tests.zoo.page                                                      # the table from the rows
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import multiprocessing
import resource
import sys
import traceback
import warnings
import zlib
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tests.networks import import_timm, import_torchvision
from tests.zoo.cases import Case, cases
from tests.zoo.check import Row, check
from tests.zoo.counters import COUNTERS, check_counter
from tests.zoo.peers import PEERS, check_peer

ROWS = Path(__file__).parent / "rows.jsonl"
_FORK = multiprocessing.get_context("fork")  # importing timm takes longer than most checks


def main() -> int:
    options = _options()
    import_torchvision()
    import_timm()
    torch.set_num_threads(1)
    with contextlib.suppress(KeyboardInterrupt):
        for case, what in tqdm(list(_todo(options)), unit="case"):
            with options.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_one(case, what, options)) + "\n")
        return 0
    print("interrupted; run it again to go on", file=sys.stderr)
    return 130


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="patterns such as timm:* or torchvision:resnet18; all if none")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--export", default="0/10", help="which part of the models is exported too, 0/1 for all")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one model")
    parser.add_argument("--peers", action="store_true", help="bsconv and tensorly-torch instead of convsurgeon")
    parser.add_argument("--counters", action="store_true", help="MACs by torch, fvcore and torchinfo instead")
    parser.add_argument("--again", action="store_true", help="also models that are right already; the last row counts")
    return parser.parse_args()


def _todo(options: argparse.Namespace) -> Iterator[tuple[Case, str]]:
    """Cases and checks (`""` is convsurgeon's own) that have no row yet, or none that is right."""
    rows = [] if options.again else read(options.rows)
    done = {(row["case"], row.get("peer", "")) for row in rows if "peer" in row or row["status"] == "ok"}
    for case in cases():
        if options.names and not any(fnmatch.fnmatch(case.key, name) for name in options.names):
            continue
        for what in PEERS if options.peers else COUNTERS if options.counters else ("",):
            if (case.key, what) not in done:
                yield case, what


def read(path: Path) -> list[Row]:
    """Return all rows of a file; an absent file has none."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def is_exported(case: Case, part: str) -> bool:
    """Return whether a case is in the part of the zoo that is exported this time."""
    index, parts = map(int, part.split("/"))
    return zlib.crc32(case.key.encode()) % parts == index


def _one(case: Case, what: str, options: argparse.Namespace) -> Row:
    """Return the row of a case, which says so where it crashed or took too long."""
    here, there = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_child, args=(there, case, what, is_exported(case, options.export)))
    process.start()
    there.close()
    row: Row = {"case": case.key, "source": case.source, "family": case.family, "name": case.name}
    row |= {"peer": what} if what else {}
    try:
        found = False
        while here.poll(options.timeout):
            row, found = here.recv(), True
        row |= {} if found else {"status": "crash: timeout"}
    except EOFError:
        process.join()
        row |= {} if "status" in row else {"status": f"crash: exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()
    return row


def _child(there: Connection, case: Case, what: str, export: bool) -> None:
    warnings.simplefilter("ignore")
    sys.stderr = sys.stdout = Path("/dev/null").open("w")  # noqa: SIM115  # models print
    row: dict[str, Any] = {"case": case.key, "source": case.source, "family": case.family, "name": case.name}
    try:
        for known in _checks(case, what, export):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            there.send(row | known | {"peak_mb": peak // 1024})
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        line = (str(error).strip().splitlines() or [""])[0]
        where = f"{Path(place.filename).name}:{place.lineno}"
        there.send(
            row | ({"peer": what} if what else {}) | {"status": f"crash: {type(error).__name__}: {line} ({where})"}
        )


def _checks(case: Case, what: str, export: bool) -> Iterable[Row]:
    """Rows of one case, each knowing more than the one before."""
    if what in COUNTERS:
        return [check_counter(case, what)]
    return [check_peer(case, what)] if what else check(case, export)


if __name__ == "__main__":
    sys.exit(main())
