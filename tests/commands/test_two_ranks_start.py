"""Two ranks of fastalex-train that cannot begin together, or at all: real processes."""

import re
import shutil
import socket
import threading

import pytest
from torch.distributed import TCPStore

from fastalex.commands.train import main
from fastalex.errors import PeerLost, RunError, UsageError
from fastalex.train import meeting

from .conftest import SMALL, finish
from .two_ranks import assert_none_left, by_hand, free_port


def test_torchrun_needs_to_know_where_to_go_on(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(UsageError, match=r"^torchrun --max-restarts: add --out RUN, where"):
        main([*SMALL])


def test_a_port_in_use_is_told_by_both_ranks(prepared, tmp_path):
    """By a program that accepts and says nothing."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        arguments = ["--data", prepared, "--out", tmp_path / "run", *SMALL]
        ranks = [by_hand(number, port, *arguments, fault="hurry 1") for number in range(2)]
        for number, result in enumerate(list(map(finish, ranks))):
            words = f"rank {number}: localhost:{port} is taken by another program"
            result.assert_one_line(1, words, "set MASTER_PORT to a free port")
    assert_none_left(tmp_path)


def test_ranks_with_other_options_and_data_do_not_begin(prepared, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    with open(other / "dataset.json", "a") as file:
        file.write("\n")
    port = free_port()
    arguments = ["--out", tmp_path / "run", *SMALL, "--steps", 1]
    ranks = [
        by_hand(0, port, *arguments, "--data", prepared),
        by_hand(1, port, *arguments, "--data", other, "--lr", 0.5),
    ]
    line = (
        rf"rank 1 was started with --lr 0\.5, --data {other} \(fingerprint \w{{8}}\); "
        rf"rank 0 with --lr 0\.01, --data {prepared} \(fingerprint \w{{8}}\); all ranks need"
    )
    for number, result in enumerate(list(map(finish, ranks))):
        result.assert_one_line(2, f"fastalex-train: rank {number}: ")
        assert re.search(line, result.err), result.err
    assert not (tmp_path / "run").exists()
    assert_none_left(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "auto"), ("--gpus 2: torch finds", "add --device cpu to try it out with 2")),
        (("--variant", "caffe", "--parallel", "towers"), ("--parallel towers: variant caffe is",)),
        (("--variant", "torchvision", "--parallel", "towers"), ("variant torchvision is",)),
        (("--batch-size", 7, "--parallel", "data"), ("--batch-size 7: --parallel data", "of 2")),
        (("--micro-batches", 3), ("--micro-batches 3 does not divide the 8 images",)),
    ],
    ids=lambda x: "-".join(map(str, x)) if str(x[0]).startswith("--") else "",
)
def test_what_two_ranks_cannot_do_is_refused_before_any_begins(
    options, words, call, prepared, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("fastalex.commands.ranks.start", lambda *_: pytest.fail("ranks started"))
    run = tmp_path / "run"
    result = call("train", "--data", prepared, "--out", run, *SMALL, "--gpus", 2, *options)
    result.assert_one_line(2, *words)
    assert not run.exists()


@pytest.fixture
def port(monkeypatch) -> int:
    """A free one; this process is told to meet the others there."""
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return port


def test_a_host_may_come_later(port):
    hosts = []
    host = threading.Timer(
        0.5,
        lambda: hosts.append(TCPStore("localhost", port, is_master=True, wait_for_workers=False)),
    )
    host.start()
    meeting.meet(1, 1, 20)
    assert hosts


def test_a_rank_that_does_not_come_is_not_waited_for_for_ever(port):
    with pytest.raises(PeerLost, match=rf"rank 0 did not come to localhost:{port} \(MASTER_ADDR, "):
        meeting.meet(1, 2, 0.5)
    with pytest.raises(PeerLost, match=rf"not all 2 ranks came to localhost:{port} within 0.5 s"):
        meeting.meet(0, 2, 0.5)


def test_a_run_at_the_port_of_another_is_refused(port):
    host = TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    with pytest.raises(PeerLost):
        meeting.meet(1, 2, 0.2)
    with pytest.raises(RunError, match=rf"localhost:{port} has a rank 1 already, of another run"):
        meeting.meet(1, 2, 0.2)
    del host


@pytest.mark.parametrize("program", ["closes", "answers"])
def test_other_programs_are_not_taken_for_the_store(program, port, monkeypatch, capfd):
    monkeypatch.setattr(meeting, "SECONDS_TO_ANSWER", 1.0)
    with socket.create_server(("localhost", port)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    if program == "answers":
                        connection.recv(100)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(RunError, match=rf"localhost:{port} is taken by another program"):
            meeting.meet(1, 2, 300)


def test_a_rank_has_to_know_where_rank_0_is(port, monkeypatch):
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(UsageError, match="RANK is set, but MASTER_PORT is not"):
        meeting.meet(0, 2, 1)
