import subprocess
import sys

SCRIPT = """
import sys, threading
from svcproxy.heap import share_one_heap
if "one" in sys.argv:
    assert share_one_heap()
hold, held = threading.Event(), []
def take():
    held.append([bytes(600 + i) for i in range(2000)])
    hold.wait()
for _ in range(4):
    threading.Thread(target=take, daemon=True).start()
while len(held) < 4:
    pass
heaps = [line for line in open("/proc/self/maps") if line.split()[-1] == "[heap]"]
grown = sum(int(l.split("-")[1].split()[0], 16) - int(l.split("-")[0], 16) for l in heaps)
print(grown)
hold.set()
"""
TAKEN = 4 * sum(600 + i for i in range(2000))


def heap(*arguments: str) -> int:
    """The size of the main heap of a program whose threads have taken memory."""
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


GIVEN_BACK = """
from pathlib import Path
from svcproxy.heap import give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

taken = [bytes(4000) for _ in range(5000)]
last = bytes(4000)
del taken
before = resident()
assert give_back()
print(before - resident())
"""


def test_what_is_not_in_use_is_given_back_in_front_of_what_is() -> None:
    command = [sys.executable, "-c", GIVEN_BACK]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) > 5000 * 4000 / 2


def test_threads_take_their_memory_from_the_one_heap() -> None:
    assert heap("one") - heap() > TAKEN / 2
