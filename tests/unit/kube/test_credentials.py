"""Mistakes in credential files are reported in one line that names the remedy."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from svcproxy.kube.credentials import ClientSettings, load_api_server
from svcproxy.kube.source import SourceError

CONFIG: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "c", "cluster": {"server": "https://10.0.0.1:6443"}}],
    "users": [{"name": "u", "user": {"token": "secret"}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "x",
}


def refusal(settings: ClientSettings) -> str:
    with pytest.raises(SourceError) as caught:
        load_api_server(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(path: Path, **changes: Any) -> ClientSettings:
    """Write the kubeconfig with changes: ``user`` and ``cluster`` replace those of the context."""
    config = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        if key in {"user", "cluster"}:
            config[f"{key}s"][0][key] = value
        else:
            config[key.replace("_", "-")] = value
    path.write_text(json.dumps(config))
    return ClientSettings(kubeconfig=str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kubeconfig"


def test_a_valid_kubeconfig_is_loaded(path: Path) -> None:
    server = load_api_server(written(path))
    assert server.url == "https://10.0.0.1:6443"
    assert server.authorization() == "Bearer secret"
    assert server.verify


def test_a_tilde_is_expanded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(path)
    monkeypatch.setenv("HOME", str(path.parent))
    load_api_server(ClientSettings(kubeconfig="~/kubeconfig"))


def test_another_context_can_be_selected(path: Path) -> None:
    contexts = [*CONFIG["contexts"], {"name": "y", "context": {"cluster": "c"}}]
    settings = written(path, contexts=contexts)
    settings = ClientSettings(kubeconfig=settings.kubeconfig, context="y")
    assert not load_api_server(settings).authorization()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist: correct the path"),
        ("a: [", "is not YAML"),
        ("\x00", "is not YAML"),
        ("", "is empty or not a kubeconfig"),
        ("just text", "is empty or not a kubeconfig"),
        ("kind: Config", "has no current-context: set one with"),
        ("current-context: x", "has no entry 'x' in contexts: use one of none"),
        ("{current-context: x, contexts: 7}", "has no entry 'x' in contexts"),
        ("{current-context: x, contexts: [7]}", "has no entry 'x' in contexts"),
    ],
)
def test_files_that_are_not_kubeconfigs_are_refused(
    path: Path, text: str | None, words: str
) -> None:
    if text is not None:
        path.write_text(text)
    message = refusal(ClientSettings(kubeconfig=str(path)))
    assert message.startswith(f"kubeconfig {path}")
    assert words in message


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "cannot be read (Is a directory)" in refusal(ClientSettings(kubeconfig=str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"current_context": "y"}, "has no entry 'y' in contexts: use one of x"),
        ({"clusters": []}, "has no entry 'c' in clusters: use one of none, add it"),
        ({"users": None}, "has no entry 'u' in users"),
        ({"contexts": [{"name": "x", "context": 7}]}, "has no entry None in clusters"),
        ({"cluster": {}}, "cluster 'c' has no server: add its URL"),
        ({"cluster": {"server": "10.0.0.1:6443"}}, "API server URL '10.0.0.1:6443' is not valid"),
        ({"cluster": {"server": "http://x:port"}}, "API server URL 'http://x:port' is not valid"),
        (
            {"cluster": {"server": "https://x", "certificate-authority": "/no/ca.crt"}},
            "File does not exist: /no/ca.crt",
        ),
        (
            {"cluster": {"server": "https://x", "certificate-authority-data": "abc"}},
            "Incorrect padding: correct the file",
        ),
        (
            {"cluster": {"server": "https://x", "certificate-authority-data": "eA=="}},
            "CA certificate",
        ),
        (
            {"user": {"client-certificate-data": "eA==", "client-key-data": "eA=="}},
            "client certificate",
        ),
        ({"user": {"tokenFile": "/no/token"}}, "/no/token"),
        ({"user": {"token": "two words"}}, "the user's token is not valid: correct the file"),
        (
            {"cluster": {"server": "https://x", "insecure-skip-tls-verify": "false"}},
            "insecure-skip-tls-verify is 'false': make it true or false",
        ),
        (
            {"cluster": {"server": "https://x", "proxy-url": "socks5://me:secret@y:1"}},
            "proxy socks5://y:1 cannot be used: set one like http://10.0.0.1:3128 in proxy-url",
        ),
        ({"user": {"exec": {"apiVersion": "v1"}}}, "the user's exec has no command: add it"),
        (
            {"user": {"exec": {"apiVersion": "v1", "command": "no-such-plugin"}}},
            "exec plugin 'no-such-plugin' is missing or not executable: install it",
        ),
        (
            {"user": {"exec": {"apiVersion": "v1", "command": "bin/plugin"}}},
            "exec plugin 'bin/plugin' is missing or not executable: install it",
        ),
        (
            {"user": {"exec": {"apiVersion": "v1", "command": "false"}}},
            "exec plugin 'false' failed: exec: process returned 1: run it by hand",
        ),
        (
            {"user": {"exec": {"apiVersion": "v1", "command": "true"}}},
            "exec plugin 'true' failed: exec: failed to decode process output",
        ),
    ],
)
def test_mistakes_in_a_kubeconfig_are_reported(
    path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in refusal(written(path, **changes))


@pytest.mark.parametrize("content", ["", "\n", "two words", "caf\u00e9", "a\nb"])
def test_a_token_file_without_a_token(path: Path, content: str) -> None:
    token = path.with_name("token")
    token.write_text(content, encoding="utf-8")
    assert f"token file {token} " in refusal(written(path, user={"tokenFile": "token"}))


def test_outside_a_pod_there_is_no_service_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    message = refusal(ClientSettings(service_account=tmp_path))
    assert "no in-cluster credentials (Service host/port is not set.)" in message
    assert "--kubeconfig or --master" in message
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert "token file does not exist" in refusal(ClientSettings(service_account=tmp_path))
