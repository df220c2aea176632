"""What one process does for all of them."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from convsurgeon.base import processes as world
from convsurgeon.base.errors import LatencyError


def _fails() -> int:
    raise LatencyError("no clock")


def _worker(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        found: list[object] = [world.shared(lambda: rank + 7)]
        try:
            world.shared(_fails)
        except LatencyError as error:
            found.append(str(error))
        (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    finally:
        torch.distributed.destroy_process_group()


def test_every_process_gets_what_the_first_one_made_or_met(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    port = 20000 + (os.getpid() + 1) % 20000
    workers = [context.Process(target=_worker, args=(rank, port, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [[7, "no clock"]] * 2


def test_one_process_shares_with_itself() -> None:
    assert world.shared(lambda: 3) == 3
    with pytest.raises(LatencyError, match="no clock"):
        world.shared(_fails)
