"""The helper's main loop: servers and the control socket; clients block in threads.

A request is a line of JSON, ``{"id": 1, "op": "dial", ...}``; its reply, sent when it is done, is
``{"id": 1, "result": ...}`` or ``{"id": 1, "error": "..."}``. The process exits when the other
end of the control socket is closed, so it never outlives its owner.
"""

import itertools
import json
import os
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any

from testbed.agent.clients import Held, dial, fetch
from testbed.agent.load import Load
from testbed.agent.servers import Servers

Request = dict[str, Any]


class LoadError(Exception):
    """A load ended with an unexpected error."""


class Agent:
    """Carries out the requests that arrive on the control socket."""

    def __init__(self, name: str, control: socket.socket) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._servers = Servers(self._selector, name)
        self._handles = itertools.count(1)
        self._held: dict[int, Held] = {}
        self._loads: dict[int, Load] = {}
        self._pending = b""
        # Servers run in the main thread; other operations may block and run in their own.
        self._quick: dict[str, Callable[[Request], Any]] = {
            "serve": self._serve,
            "unserve": self._unserve,
            "ping": lambda _: "pong",
        }
        self._slow: dict[str, Callable[[Request], Any]] = {
            "dial": lambda r: [dial(r["target"]) for _ in range(r["count"])],
            "fetch": lambda r: fetch(r["address"], r["port"], r["path"], r["timeout"]),
            "hold": self._hold,
            "check": lambda r: self._held[r["handle"]].check(r["timeout"]),
            "release": lambda r: self._held.pop(r["handle"]).close(),
            "load": self._load,
            "finish": self._finish,
        }

    def run(self) -> None:
        """Serve until the control socket is closed."""
        self._selector.register(self._control, selectors.EVENT_READ, self._read)
        while True:
            for key, _ in self._selector.select():
                # Handling an earlier event may have closed this one's socket.
                if key.fd in self._selector.get_map():
                    key.data()

    def _read(self) -> None:
        chunk = self._control.recv(65536)
        if not chunk:
            os._exit(0)
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if request["op"] in self._quick:
                self._do(self._quick[request["op"]], request)
            else:
                job = (self._slow[request["op"]], request)
                threading.Thread(target=self._do, args=job, daemon=True).start()

    def _do(self, action: Callable[[Request], Any], request: Request) -> None:
        reply: dict[str, Any] = {"id": request["id"]}
        try:
            reply["result"] = action(request)
        except Exception as error:  # noqa: BLE001 - every error is reported to the owner
            reply["error"] = f"{type(error).__name__}: {error}"
        data = json.dumps(reply).encode() + b"\n"
        with self._lock:
            self._control.sendall(data)

    def _serve(self, request: Request) -> None:
        for port in request["ports"]:
            self._servers.open(request["proto"], port, request["addresses"])

    def _unserve(self, request: Request) -> None:
        for port in request["ports"]:
            self._servers.close(request["proto"], port, established=request["established"])

    def _hold(self, request: Request) -> tuple[int, list[Any]]:
        held, handle = Held(request["target"]), next(self._handles)
        self._held[handle] = held
        return handle, held.first

    def _load(self, request: Request) -> int:
        load = Load(request["target"], request["rate"], request["duration"])
        handle = next(self._handles)
        self._loads[handle] = load
        load.start()
        return handle

    def _finish(self, request: Request) -> list[Any]:
        load = self._loads.pop(request["handle"])
        if request["stop"]:
            load.stop.set()
        load.join()
        if load.error:
            raise LoadError(load.error)
        return load.records


def start(arguments: list[str], descriptors: list[int]) -> None:
    """Run a helper: the argument is its name, the descriptor its control socket."""
    (name,), (control,) = arguments, descriptors
    Agent(name, socket.socket(fileno=control)).run()
