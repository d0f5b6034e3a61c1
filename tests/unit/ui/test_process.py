"""The page process seen from the daemon, with real processes."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from svcproxy.ui.core.messages import Page, PageQuery
from svcproxy.ui.process import NoPageError, PageProcess, command
from testbed.waiting import eventually

PREAMBLE = """
import os, socket, struct, sys, time
from svcproxy.ui.channel import receive, send
from svcproxy.ui.core.messages import Page, PageQuery
channel = socket.socket(fileno=0)
def next_query(): return receive(channel, PageQuery, 60)
def reply(text=None): send(channel, Page(200, (text or str(os.getpid())).encode()), 60)
"""
SERVES = "while True: next_query(); reply()"
QUERY = PageQuery("")


@pytest.fixture
def make() -> Iterator[Callable[..., PageProcess]]:
    made: list[PageProcess] = []

    def process(program: str, seconds: float = 60.0) -> PageProcess:
        made.append(PageProcess([sys.executable, "-c", PREAMBLE + program], seconds))
        return made[-1]

    yield process
    for each in made:
        each.stop()


def ended(pid: int) -> bool:
    """Whether a process has ended and is no zombie either."""
    return not Path(f"/proc/{pid}").exists()


def test_one_process_serves_many_requests(make: Callable[..., PageProcess]) -> None:
    process = make(SERVES)
    assert process.pid is None, "it is started on demand"
    bodies = {process.ask(QUERY).body for _ in range(3)}
    assert bodies == {str(process.pid).encode()}


def test_a_killed_process_is_replaced(make: Callable[..., PageProcess]) -> None:
    process = make(SERVES)
    first = int(process.ask(QUERY).body)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: ended(first), "no zombie")
    second = int(process.ask(QUERY).body)
    assert second != first


def test_a_process_that_dies_in_a_request_is_replaced_once(
    make: Callable[..., PageProcess], tmp_path: Path
) -> None:
    mark = tmp_path / "died"
    program = f"""
next_query()
if not os.path.exists({str(mark)!r}):
    open({str(mark)!r}, "w").close(); os._exit(1)
reply("second")
"""
    assert make(program).ask(QUERY).body == b"second"


def test_the_real_process_ends_when_idle_and_is_started_again(
    make: Callable[..., PageProcess], tmp_path: Path
) -> None:
    program = "from svcproxy.ui.renderer import serve"
    process = make(f"{program}; serve(channel, {str(tmp_path / 'none')!r}, 0.5)")
    first = process.ask(QUERY)
    assert first.status == 503, "no daemon listens there"
    pid = process.pid
    assert pid is not None
    eventually(lambda: ended(pid), "the end of the idle process")
    assert process.ask(QUERY).body == first.body
    assert process.pid != pid


def test_the_real_process_ends_with_its_daemon(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        subprocess.Popen(command(str(tmp_path / "none")), stdin=theirs.fileno()) as process,
    ):
        theirs.close()
        ours.close()
        assert process.wait(60) == 0


def test_a_process_that_always_dies_is_an_error(make: Callable[..., PageProcess]) -> None:
    process = make("next_query(); os._exit(3)")
    with pytest.raises(NoPageError, match="ends without an answer"):
        process.ask(QUERY)


def test_a_program_that_cannot_be_started_is_an_error() -> None:
    with pytest.raises(NoPageError, match="cannot be started"):
        PageProcess(["/nonexistent"]).ask(QUERY)


def test_a_process_that_takes_too_long_is_killed(
    make: Callable[..., PageProcess], tmp_path: Path
) -> None:
    mark = tmp_path / "pid"
    program = f"open({str(mark)!r}, 'w').write(str(os.getpid())); next_query(); time.sleep(1000)"
    process = make(program, 5.0)
    with pytest.raises(NoPageError, match="longer than 5 s"):
        process.ask(QUERY)
    assert process.pid is None
    eventually(lambda: ended(int(mark.read_text())), "the end of the process")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("struct.pack('>I', 1 << 31)", "a message of"),
        ("struct.pack('>I', 3) + b'abc'", "sent"),
    ],
)
def test_a_malformed_answer_is_an_error(
    make: Callable[..., PageProcess], reply: str, reason: str
) -> None:
    process = make(f"next_query(); channel.sendall({reply}); time.sleep(1000)")
    with pytest.raises(NoPageError, match=reason):
        process.ask(QUERY)
    assert process.pid is None


def test_a_stop_ends_the_process_and_a_waiting_request(make: Callable[..., PageProcess]) -> None:
    process = make("next_query(); time.sleep(1000)")
    failures: list[str] = []

    def ask() -> None:
        try:
            process.ask(QUERY)
        except NoPageError as error:
            failures.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: process.pid is not None, "a process")
    pid = process.pid
    assert pid is not None
    process.stop()
    thread.join(30)
    assert failures == ["svcproxy is stopping"]
    eventually(lambda: ended(pid), "the end of the process")


def test_requests_of_many_threads_get_their_own_answers(make: Callable[..., PageProcess]) -> None:
    process = make("while True: q = next_query(); reply(q.query['n'])")
    wrong: list[tuple[str, Page]] = []

    def ask(number: int) -> None:
        text = str(number)
        page = process.ask(PageQuery("", {"n": text}))
        if page.body != text.encode():
            wrong.append((text, page))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
