"""Data-parallel processes: their shares of rows, their messages, and a single process."""

import json
import subprocess
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ftlab.data.encode import Encoded
from ftlab.errors import ConfigError, FtlabError, TrainingError
from ftlab.process import Process, _started, this_host
from ftlab.train import ranks as module
from ftlab.train.loop import micro_seed
from ftlab.train.ranks import Ranks, run_distributed


def rows_of(lengths: list[int]) -> list[Encoded]:
    return [Encoded(str(i), [0] * length, 1, False) for i, length in enumerate(lengths)]


def shares(rows: list[Encoded], world: int) -> list[list[Encoded]]:
    return [Ranks(rank, world).share(rows) for rank in range(world)]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 16, 33])
def test_every_row_goes_to_exactly_one_process(world: int, count: int) -> None:
    rows = rows_of(torch.randint(5, 300, (count,), generator=torch.Generator().manual_seed(count)).tolist())
    dealt = shares(rows, world)
    assert sorted(row.id for share in dealt for row in share) == sorted(row.id for row in rows)
    assert max(map(len, dealt)) <= Ranks(0, world).most(count)
    for share in dealt:
        assert [int(row.id) for row in share] == sorted(int(row.id) for row in share)


def test_tokens_are_balanced() -> None:
    """One process must not get all long rows, whatever their order."""
    rows = rows_of([250, 240, 230, 220, 60, 70, 80, 90])
    tokens = [sum(len(row.input_ids) for row in share) for share in shares(rows, 2)]
    assert abs(tokens[0] - tokens[1]) <= 20
    assert [len(share) for share in shares(rows, 2)] == [4, 4]


def test_fewer_rows_than_processes_leave_some_without() -> None:
    assert [len(share) for share in shares(rows_of([10, 20]), 4)] == [1, 1, 0, 0]


def test_no_two_micro_batches_share_a_seed() -> None:
    world = 3
    seeds = [
        micro_seed(7, step, Ranks(rank, world).number(local))
        for step in range(4)
        for rank in range(world)
        for local in range(5)
    ]
    assert len(set(seeds)) == len(seeds)
    assert [Ranks().number(local) for local in range(5)] == [*range(5)]  # alone: the seeds that they have always been


def test_a_single_process_waits_for_no_other() -> None:
    ranks = Ranks()
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), 2.0)
    loss = torch.tensor(1.5)
    ranks.broadcast([parameter.detach()])
    ranks.sum_([parameter], loss)
    assert parameter.grad.tolist() == [2.0, 2.0, 2.0]
    assert loss.item() == 1.5
    assert ranks.broadcast_from_first(lambda: "mine") == "mine"
    assert ranks.any("SIGTERM") == "SIGTERM"
    assert ranks.any("") == ""
    assert not torch.distributed.is_initialized()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    Ranks(1, 3).check_devices()
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"3 processes on a host with 2 GPUs.*--nproc_per_node=2"):
        Ranks(2, 3).check_devices()


# --- messages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", ["torchrun", "torchrun again", "itself"])
def test_a_process_that_does_not_start_is_a_time_out(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun keeps the store of its processes over all attempts; otherwise the first process holds it."""
    server = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=5), wait_for_workers=False)
    port = server.port
    if "torchrun" in launcher:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(int("again" in launcher)))
        if "again" in launcher:
            server.set("ftlab/0/1", json.dumps(Process.me().record()))
    else:
        del server
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "RENDEZVOUS_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(TrainingError) as caught:
        Ranks.join()
    assert ("1, 2 did not start within" if "torchrun" in launcher else "cannot connect") in str(caught.value)
    assert not dist.is_initialized()


def test_a_launch_without_an_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match=r"MASTER_ADDR.*start them with torchrun"):
        Ranks.join()


def broken(*_: Any, **__: Any) -> None:
    raise RuntimeError("[pair.cc:535] Connection closed by peer [127.0.0.1]:4711\n0# a C++ frame")


@pytest.mark.parametrize(
    "speak",
    [
        lambda ranks, held: ranks.broadcast([held.detach()]),
        lambda ranks, held: ranks.sum_([held], torch.zeros(())),
        lambda ranks, held: ranks.sum_([held, held], torch.zeros(())),
        lambda ranks, held: ranks._exchange("word"),
    ],
    ids=["broadcast", "sum of one buffer", "sum of many", "all_gather"],
)
def test_a_broken_connection_is_one_message(
    speak: Callable[[Ranks, torch.nn.Parameter], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("broadcast", "all_reduce", "all_gather"):
        monkeypatch.setattr(dist, name, broken)
    ranks = Ranks(0, 2)
    monkeypatch.setattr(ranks, "all_gather", lambda word=None: [None, None])
    held = torch.nn.Parameter(torch.ones(3))
    held.grad = torch.ones(3)
    with pytest.raises(TrainingError, match=r"ended without reporting.*\(Connection closed by peer") as caught:
        speak(ranks, held)
    assert "\n" not in str(caught.value)


def test_after_a_lost_process_no_other_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes may wait in the same message that failed here: a further one would never end."""
    calls = []
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: calls.append(1) or broken())
    ranks = Ranks(1, 3, dist.HashStore())
    with pytest.raises(TrainingError) as caught:
        ranks.all_gather()
    assert ranks.fail(1, caught.value)
    ranks.leave()
    assert len(calls) == 1


def test_a_finished_process_reports_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the others when it notices the loss, and no other process may be left to report it."""
    monkeypatch.setattr(module.Ranks, "join", lambda: Ranks(1, 3, dist.HashStore()))
    monkeypatch.setattr(module.Ranks, "connect", lambda ranks: None)
    monkeypatch.setattr(dist, "all_reduce", broken)
    told: list[FtlabError] = []

    def show(error: FtlabError) -> int:
        told.append(error)
        return 1

    assert run_distributed(lambda ranks: None, show) == 1
    assert ["ended without reporting" in str(error) for error in told] == [True]


def test_a_refusal_is_sent_to_the_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, more processes than GPUs on one host: the processes of another host would wait."""
    ranks = Ranks(0, 2)
    said: list[str] = []
    monkeypatch.setattr(module.Ranks, "join", lambda: ranks)
    monkeypatch.setattr(ranks, "connect", lambda: said.append("connected"))
    monkeypatch.setattr(ranks, "check_devices", lambda: (_ for _ in ()).throw(ConfigError("too many")))
    monkeypatch.setattr(ranks, "_exchange", lambda word: said.append(word and word.error) or [word, None])
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    shown: list[FtlabError] = []
    assert run_distributed(lambda ranks: None, lambda error: shown.append(error) or 2) == 2
    assert said == ["connected", "ConfigError: too many", None]
    assert [str(error) for error in shown] == ["too many"]


def test_an_error_of_this_process_is_not_taken_for_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others do not wait for a sum that never comes."""
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: pytest.fail("they wait"))

    def full(parameters: list[torch.nn.Parameter]) -> torch.Tensor:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(module, "_bucket", full)
    ranks = Ranks(0, 2)
    with pytest.raises(RuntimeError, match="can't allocate"):
        ranks.sum_([torch.nn.Parameter(torch.ones(2))] * 2, torch.zeros(()))
    assert not ranks.lost


def test_a_process_that_ends_while_all_connect_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: over.wait(60))
    gone = Process(this_host(), 2**22 - 1, "1")
    with pytest.raises(TrainingError, match="ended without reporting"):
        Ranks(0, 2, dist.HashStore(), [gone]).connect()
    over.set()


def test_a_lost_process_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", broken)
    store = dist.HashStore()
    told = []
    for rank in (1, 2):
        ranks = Ranks(rank, 3, store)
        with pytest.raises(TrainingError) as caught:
            ranks.all_gather()
        told.append(ranks.fail(1, caught.value))
    assert told == [True, False]


class Message:
    """A message that arrives after it was waited for `looks` times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def is_completed(self) -> bool:
        return self.looks <= 0

    def wait(self, timeout: timedelta | None = None) -> None:
        self.looks -= 1
        if self.looks > 0:
            raise RuntimeError("Operation timed out!")


@pytest.mark.parametrize("reaped", [True, False])
def test_a_message_of_an_ended_process_is_not_waited_for(reaped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """gloo does not always see a connection close: one wait in forty, of processes killed amid their messages."""
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: Message(10**9))
    process = subprocess.Popen(["sleep", "100"])
    one = Process(this_host(), process.pid, _started(process.pid) or "")
    process.kill()
    if reaped:
        process.wait()
    with pytest.raises(TrainingError, match="ended without reporting"):
        Ranks(0, 2, others=[one]).all_gather()
    process.wait()


def test_a_busy_process_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    message = Message(5)
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: message)
    assert Ranks(0, 3, others=[Process.me(), Process("elsewhere", 1, "1")]).all_gather() == [None] * 3
    assert message.looks < 1


def test_different_settings_of_processes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process gets the same messages, including its own."""
    mine, other = {"trainer.lr": 0.1, "seed": 0}, {"trainer.lr": 0.2, "seed": 0}
    ranks = Ranks(0, 3)

    def all_gather(word: Any) -> list[Any]:
        if isinstance(word, str):
            return [word, word, "another digest"]
        return [{key: str(value) for key, value in tree.items()} for tree in (mine, mine, other)]

    monkeypatch.setattr(ranks, "all_gather", all_gather)
    with pytest.raises(ConfigError, match=r"trainer.lr: 0.1 in process 0, 0.2 in process 2") as caught:
        ranks.check_same(mine)
    assert "seed" not in str(caught.value)
    monkeypatch.setattr(ranks, "all_gather", lambda word: [word] * 3)
    ranks.check_same(mine)
