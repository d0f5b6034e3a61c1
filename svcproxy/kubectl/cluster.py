"""Runs commands in the pods of the DaemonSet, with ``kubectl`` itself."""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import msgspec

from svcproxy.commands.core.exit_codes import CommandError, ExitCode
from svcproxy.commands.programs import run_bounded
from svcproxy.kubectl.core.answers import Output

_OUTPUT_BYTES = 64 << 20
_SELECTORS = ("app.kubernetes.io/name=svcproxy", "k8s-app=kube-proxy")
"""The pods of deploy/, and those of kubeadm's DaemonSet, which may run svcproxy as well."""

Result = TypeVar("Result")


class Pod(NamedTuple):
    """A pod of the DaemonSet.

    Attributes:
        name: its name.
        node: its node.
        container: the container that runs svcproxy.
        problem: why no command can run in it; empty if one can.
    """

    name: str
    node: str
    container: str
    problem: str = ""


class _Container(msgspec.Struct):
    name: str = ""
    image: str = ""


class _PodSpec(msgspec.Struct, rename="camel"):
    node_name: str = ""
    containers: list[_Container] = []


class _PodStatus(msgspec.Struct):
    phase: str = ""


class _Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    deletion_timestamp: str | None = None


class _PodObject(msgspec.Struct):
    metadata: _Meta = msgspec.field(default_factory=_Meta)
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _PodList(msgspec.Struct):
    items: list[_PodObject] = []


class ClusterOptions(NamedTuple):
    """How to reach the pods.

    Attributes:
        kubectl: the command line of kubectl with the user's own options.
        namespace: the namespace of the DaemonSet.
        selector: the labels of its pods; empty for those of the manifests in deploy/.
        parallel: how many commands run at a time.
        seconds: how long a command may take.
    """

    kubectl: Sequence[str] = ("kubectl",)
    namespace: str = "kube-system"
    selector: str = ""
    parallel: int = 16
    seconds: float = 30.0


class ClusterAccess:
    """Runs commands in pods.

    Args:
        options: how to reach them.
    """

    def __init__(self, options: ClusterOptions) -> None:
        self._options = options

    def pods(self, node: str = "") -> list[Pod]:
        """Return the pods by node, one for each.

        Args:
            node: the only node of interest; empty for all.

        Raises:
            CommandError: kubectl failed, or there are no such pods.
        """
        given = self._options.selector
        for selector in (given,) if given else _SELECTORS:
            if found := self._pods(selector):
                chosen = {pod.node: pod for pod in found if node in {"", pod.node}}
                if not chosen:
                    raise CommandError(f"no pod of svcproxy is on node {node}", ExitCode.NOT_FOUND)
                return [chosen[name] for name in sorted(chosen)]
        where = f"with the labels {given or _SELECTORS[0]} in namespace {self._options.namespace}"
        message = f"there are no pods {where}: name them with --selector and -n"
        raise CommandError(message, ExitCode.NO_DAEMON)

    def _pods(self, selector: str) -> list[Pod]:
        arguments = ["get", "pods", "-l", selector, "-o", "json"]
        done = self._run([*self._kubectl(), *arguments], "")
        if done.code:
            text = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.code}"]
            denied = "forbidden" in done.stderr.lower() or "unauthorized" in done.stderr.lower()
            code = ExitCode.NOT_PERMITTED if denied else ExitCode.USAGE
            raise CommandError(f"kubectl get pods: {text[0]}", code)
        try:
            items = msgspec.json.decode(done.stdout, type=_PodList).items
        except msgspec.DecodeError as error:
            raise CommandError(f"kubectl get pods answered no list of pods: {error}") from error
        found = [pod for pod in map(_pod, items) if pod is not None]
        # A pod that is being replaced is not chosen if its successor exists.
        return sorted(found, key=lambda pod: (not pod.problem, pod.name))

    def each(self, pods: Sequence[Pod], ask: Callable[[Pod], Result]) -> list[Result]:
        """Call a function for every pod, some at a time; return the results in the same order."""
        with ThreadPoolExecutor(self._options.parallel) as pool:
            return list(pool.map(ask, pods))

    def ask(self, pod: Pod, arguments: Sequence[str]) -> Output:
        """Run a command of svcproxy in a pod."""
        if pod.problem:
            return Output(pod.node, ExitCode.NO_DAEMON, b"", pod.problem)
        where = ["exec", pod.name, "-c", pod.container, "--", "svcproxy"]
        return self._run([*self._kubectl(), *where, *arguments], pod.node)

    def _kubectl(self) -> list[str]:
        return [*self._options.kubectl, "-n", self._options.namespace]

    def _run(self, command: Sequence[str], node: str) -> Output:
        """Run a program with a limit on time and output."""
        seconds = self._options.seconds
        try:
            done = run_bounded(command, seconds=seconds, limit=_OUTPUT_BYTES)
        except OSError as error:
            message = f"{command[0]}: {error.strerror}; install kubectl"
            raise CommandError(message) from error
        if done.timed_out:
            return Output(node, ExitCode.NO_DAEMON, b"", f"no answer within {seconds:g} s")
        if done.cut:
            return Output(node, ExitCode.NO_DAEMON, b"", f"more than {_OUTPUT_BYTES} bytes")
        return Output(node, done.code, done.stdout, done.stderr)


def _pod(found: _PodObject) -> Pod | None:
    """Return a pod that runs svcproxy; ``None`` if it does not."""
    containers = found.spec.containers
    own = [c for c in containers if "svcproxy" in {c.name, _repository(c.image)}]
    if not own or not found.spec.node_name:
        return None
    problem = "" if found.status.phase == "Running" else f"its pod is {found.status.phase or 'new'}"
    return Pod(found.metadata.name, found.spec.node_name, own[0].name, problem)


def _repository(image: str) -> str:
    """Return the last part of an image's name, without tag and digest."""
    return re.split("[:@]", image.rpartition("/")[2])[0]
