"""Random inputs of every kind; nothing but clean refusals and right answers may come of them.

python -m tests.fuzz --cases 100000 --seed 0              # all kinds; prints every failure with its seed
python -m tests.fuzz --only graph --again 0:1234          # one case by its seed
"""

from __future__ import annotations

import argparse
import sys

from tqdm import tqdm

from tests.fuzz.run import KINDS, chunks, one, prepare, run_chunk


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--again", metavar="SEED:CASE", help="one case, with its traceback")
    options = parser.parse_args()
    prepare(options.only)
    if options.again:
        one(options.only[0], options.again)
        return 0
    failures, counts, seconds = 0, dict.fromkeys(options.only, 0), dict.fromkeys(options.only, 0.0)
    with tqdm(total=options.cases, unit="case") as bar:
        for kind, start, count in chunks(options.only, options.cases):
            failed, took = run_chunk(kind, options.seed, start, count)
            for line in failed:
                bar.write(line)
            failures += len(failed)
            counts[kind] += count
            seconds[kind] += took
            bar.update(count)
    for kind, count in counts.items():
        print(f"{kind:10} {count:7,} cases {seconds[kind]:8.1f} s")
    print(f"seed {options.seed}: {sum(counts.values()):,} cases, {failures} failures, {sum(seconds.values()):.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
