"""Completion scripts for shells, from a description of the commands. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

SERVICES, FILES, FOLDERS = "services", "files", "folders"
"""Kinds of values that a shell finds by itself, or asks for."""
DAEMON = "--"
"""The name that stands for the daemon's flags, which may also follow after ``--``."""


class Option(NamedTuple):
    """An option of a command, or a flag of the daemon.

    Attributes:
        names: its spellings, with dashes.
        help: what it does, in a line.
        takes_value: whether a value follows.
        values: the values that it takes, if they are known.
        kind: ``FILES`` or ``FOLDERS``, if it takes a path.
    """

    names: tuple[str, ...]
    help: str
    takes_value: bool = False
    values: tuple[str, ...] = ()
    kind: str = ""


class Words(NamedTuple):
    """The words that may follow a command.

    Attributes:
        name: the command; ``DAEMON`` for the daemon.
        summary: what it does, in a line.
        options: its options.
        values: the values of its arguments, if they are known.
        kind: ``SERVICES`` if an argument is the name of a Service.
    """

    name: str
    summary: str
    options: tuple[Option, ...]
    values: tuple[str, ...] = ()
    kind: str = ""


_BASH = """\
# Completion of svcproxy in bash: source <(svcproxy completion bash)
_svcproxy() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    local command=${COMP_WORDS[1]} options= values= kind= before= word i
    COMPREPLY=()
    # bash splits --option=value into three words, zsh does not.
    if [[ $current == = ]]; then
        current=
    elif [[ $current == --*=* ]]; then
        before=${current%%=*}=
        previous=${current%%=*} current=${current#*=}
    elif [[ $previous == = ]]; then
        previous=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == -- ]] && command=--
    done
    case $command in -*) command=-- ;; esac
    case "$command $previous" in
@VALUES@
    *)
        if ((COMP_CWORD == 1)) && [[ $current != -* ]]; then
            values="@COMMANDS@"
        else
            case $command in
@OPTIONS@
            esac
            if [[ $current == -* ]]; then
                values=$options kind=
            fi
        fi
        ;;
    esac
    case $kind in
    services)
        while read -r word; do
            [[ $word == "$current"* ]] && COMPREPLY+=("$word")
        done < <("${COMP_WORDS[0]}" completion services 2>/dev/null)
        ;;
    files) COMPREPLY=($(compgen -f -- "$current")) ;;
    folders) COMPREPLY=($(compgen -d -- "$current")) ;;
    esac
    COMPREPLY+=($(compgen -W "$values" -- "$current"))
    if [[ -n $before ]]; then
        COMPREPLY=("${COMPREPLY[@]/#/$before}")
    fi
    # The value of a daemon's flag follows after its equals sign.
    if [[ ${COMPREPLY[0]-} == *= ]]; then
        compopt -o nospace 2>/dev/null
    fi
    return 0
}
complete -F _svcproxy svcproxy
"""

_ZSH = """\
#compdef svcproxy
# Completion of svcproxy in zsh: source <(svcproxy completion zsh)
autoload -U +X bashcompinit && bashcompinit
"""


def bash(commands: Sequence[Words], equals: str = "=") -> str:
    """Return a script for bash.

    Args:
        commands: the commands and the daemon.
        equals: what follows a flag of the daemon that has a value.
    """
    cases = [case for each in commands for case in _bash_values(each)]
    names = " ".join(each.name for each in commands if each.name != DAEMON)
    script = _BASH.replace("@VALUES@", "\n".join(cases)).replace("@COMMANDS@", names)
    return script.replace("@OPTIONS@", "\n".join(_bash_options(each, equals) for each in commands))


def _bash_values(words: Words) -> Iterator[str]:
    """Yield a case for each option with a value."""
    for option in words.options:
        if option.takes_value:
            patterns = " | ".join(f'"{words.name} {name}"' for name in option.names)
            found = f"values={_quoted(' '.join(option.values))} kind={option.kind}"
            yield f"    {patterns}) {found} ;;"


def _bash_options(words: Words, equals: str) -> str:
    names = (
        f"{name}{equals if option.takes_value and words.name == DAEMON else ''}"
        for option in words.options
        for name in option.names
    )
    values = f"values={_quoted(' '.join(words.values))} kind={words.kind}"
    return f"            {words.name}) options={_quoted(' '.join(names))} {values} ;;"


def zsh(commands: Sequence[Words]) -> str:
    """Return a script for zsh, which runs the one for bash."""
    return _ZSH + bash(commands, equals="").partition("\n")[2]


def fish(commands: Sequence[Words]) -> str:
    """Return a script for fish."""
    lines = ["# Completion of svcproxy in fish: svcproxy completion fish | source"]
    lines += ["complete -c svcproxy -f"]
    for words in commands:
        if words.name == DAEMON:
            when = "not __fish_seen_subcommand_from " + _names(commands)
        else:
            lines.append(
                f"complete -c svcproxy -n __fish_use_subcommand -a {words.name}"
                f" -d {_quoted(words.summary)}"
            )
            when = f"__fish_seen_subcommand_from {words.name}"
        start = f"complete -c svcproxy -n {_quoted(when)}"
        lines += [f"{start}{_fish_option(option)}" for option in words.options]
        if words.values:
            lines.append(f"{start} -a {_quoted(' '.join(words.values))}")
        if words.kind == SERVICES:
            lines.append(f"{start} -a '(svcproxy completion services 2>/dev/null)'")
    return "\n".join(lines) + "\n"


def _fish_option(option: Option) -> str:
    names = "".join(
        f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in option.names
    )
    if option.kind:
        return f"{names} -r -F -d {_quoted(option.help)}"
    value = " -x" if option.takes_value else ""
    if option.values:
        value += f" -a {_quoted(' '.join(option.values))}"
    return f"{names}{value} -d {_quoted(option.help)}"


def _names(commands: Iterable[Words]) -> str:
    return " ".join(words.name for words in commands if words.name != DAEMON)


def _quoted(text: str) -> str:
    """Quote a text for bash and fish, which agree about all but quotes and backslashes."""
    plain = text.replace("\\", "").replace("'", "’")  # noqa: RUF001 - only in help texts
    return f"'{plain}'"
