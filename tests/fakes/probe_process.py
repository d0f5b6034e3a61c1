"""Sends a probe in a process of its own: ``python -m tests.fakes.probe_process REQUEST``.

The request is a pickled ``LiveRequest``, as hexadecimal digits; the result is printed as JSON.
"""

import pickle
import sys

import msgspec

from svcproxy.commands.live import probe

if __name__ == "__main__":
    request = pickle.loads(bytes.fromhex(sys.argv[1]))
    sys.stdout.write(msgspec.json.encode(probe(request)).decode() + "\n")
