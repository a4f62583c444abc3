"""``fedray completion``: a script that completes commands, options, keys and runs.

The script is made from the parser itself: nothing has to be kept in step by hand, and
completing starts no Python.
"""

import argparse
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedray.config import FederationConfig, keys_of

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Command:
    """What can follow one command.

    options : such as --json.
    words : fixed values of its arguments, such as add, remove and list.
    kinds : of its other arguments: "runs", "settings" (key=value), "keys", "files".
    """

    help: str
    options: tuple[str, ...]
    words: tuple[str, ...]
    kinds: frozenset[str]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    completion = commands.add_parser(
        "completion", help="print a shell's completion script"
    )
    completion.add_argument("shell", choices=SHELLS, help="which shell")
    completion.set_defaults(command=_completion, parsers=commands)


def _completion(arguments: argparse.Namespace) -> None:
    commands = dict(_describe_commands(arguments.parsers))
    scripts = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    print(scripts[arguments.shell](commands))


def _describe_commands(parsers: Any) -> Iterator[tuple[str, Command]]:
    helps = {action.dest: action.help or "" for action in parsers._choices_actions}
    for name, parser in parsers.choices.items():
        options, words, kinds = [], [], set()
        for action in parser._actions:
            if action.option_strings:
                options += [o for o in action.option_strings if o.startswith("--")]
            elif action.choices:
                words += list(action.choices)
            else:
                kinds.add(KINDS.get(action.dest, "files"))
        yield name, Command(helps[name], tuple(options), tuple(words), frozenset(kinds))


KINDS = {"run": "runs", "overrides": "settings", "key": "keys"}  # by argument


def _key_names() -> list[str]:
    names = []
    for name, key in keys_of(FederationConfig).items():
        names.append(name)
        if key.nested and not key.is_list:
            names += [f"{name}.{inner}" for inner in keys_of(key.nested)]
    return names


def _bash(commands: Mapping[str, Command]) -> str:
    cases = []
    for name, command in commands.items():
        words = " ".join(command.options + command.words)
        steps = [f'words="{words}"']
        if "keys" in command.kinds:
            steps.append('words="$words $keys"')
        if "settings" in command.kinds:
            steps.append("settings=yes")
        if "runs" in command.kinds:
            steps.append('words="$words $(_fedray_runs)"')
        if "files" in command.kinds or "settings" in command.kinds:
            steps.append("files=yes")
        cases.append(f"    {name}) {'; '.join(steps)} ;;")
    settings = " ".join(f"{key}=" for key in keys_of(FederationConfig))
    return BASH.format(
        commands=" ".join(commands),
        cases="\n".join(cases),
        keys=" ".join(_key_names()),
        settings=settings,
    )


def _zsh(commands: Mapping[str, Command]) -> str:
    return "autoload -U +X bashcompinit && bashcompinit\n" + _bash(commands)


def _fish(commands: Mapping[str, Command]) -> str:
    lines = ["complete -c fedray -n __fish_use_subcommand -f"]
    for name, command in commands.items():
        what = shlex.quote(command.help)
        lines.append(
            f"complete -c fedray -n __fish_use_subcommand -f -a {name} -d {what}"
        )
        condition = f"-n '__fish_seen_subcommand_from {name}'"
        lines += [
            f"complete -c fedray {condition} -l {option.removeprefix('--')}"
            for option in command.options
        ]
        words = list(command.words)
        if "keys" in command.kinds:
            words += _key_names()
        if "settings" in command.kinds:
            words += [f"{key}=" for key in keys_of(FederationConfig)]
        if "runs" in command.kinds:
            words.append("(ls ~/.fedray/runs 2>/dev/null)")
        if words:
            lines.append(f'complete -c fedray {condition} -a "{" ".join(words)}"')
    return "\n".join(lines)


BASH = """\
_fedray_runs() {{ ls "$HOME/.fedray/runs" 2>/dev/null; }}
_fedray() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}"
  local keys="{keys}"
  local words="" settings="" files=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands} --help --version" -- "$current"))
    return
  fi
  case "$command" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [ -n "$settings" ] && [ -n "$current" ]; then
    local names=($(compgen -W "{settings}" -- "$current"))
    COMPREPLY+=("${{names[@]}}")
    if [ "${{#names[@]}}" -gt 0 ] && type compopt >/dev/null 2>&1; then
      compopt -o nospace 2>/dev/null
    fi
  fi
  if [ -n "$files" ]; then
    local IFS=$'\n'
    COMPREPLY+=($(compgen -f -- "$current"))
  fi
}}
complete -o filenames -F _fedray fedray"""
