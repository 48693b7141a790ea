"""`idp completion SHELL`: a script that completes verbs, options and their values, made from the parser itself.

It is text alone: nothing of Python runs while somebody presses Tab.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

SHELLS = ("bash", "zsh", "fish")
_WHERE = {
    "bash": "source <(idp completion bash), in ~/.bashrc",
    "zsh": "source <(idp completion zsh), in ~/.zshrc after compinit",
    "fish": "idp completion fish > ~/.config/fish/completions/idp.fish",
}


@dataclass(frozen=True)
class Option:
    """An option of a verb.

    Attributes:
        flag: Its long name.
        about: What it does, in a line.
        takes: Whether a value follows.
        values: What that may be; empty for files.
    """

    flag: str
    about: str
    takes: bool
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verb:
    """A verb.

    Attributes:
        name: Its name.
        about: What it does, in a line.
        options: Its options.
        words: What may follow it beside options; empty for files.
    """

    name: str
    about: str
    options: tuple[Option, ...]
    words: tuple[str, ...]


def add_completion(verbs: argparse._SubParsersAction[argparse.ArgumentParser], parser: argparse.ArgumentParser) -> None:
    """Add the verb; the parser is the whole command line's."""
    about = "A script by which a shell completes this command line."
    completion = verbs.add_parser("completion", help=about, description=about)
    completion.add_argument("shell", choices=SHELLS, help="; ".join(_WHERE.values()))
    completion.set_defaults(verb=lambda options: print(script(options.shell, verbs_of(parser)), end="") or 0)


def verbs_of(parser: argparse.ArgumentParser) -> list[Verb]:
    """Return the verbs of the command line, with what its parser knows of each."""
    (action,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    about = {choice.dest: choice.help or "" for choice in action._choices_actions}
    return [Verb(name, about.get(name, ""), *_of_verb(verb)) for name, verb in action.choices.items()]


def _of_verb(verb: argparse.ArgumentParser) -> tuple[tuple[Option, ...], tuple[str, ...]]:
    options: list[Option] = []
    words: list[str] = []
    for action in verb._actions:
        values = tuple(map(str, action.choices or ()))
        if not action.option_strings:
            words += values
        elif action.help != argparse.SUPPRESS:
            about = (action.help or "").replace("%%", "%").partition("\n")[0]
            options.append(Option(action.option_strings[-1], about, action.nargs != 0, values))
    return tuple(options), tuple(words)


def script(shell: str, verbs: list[Verb]) -> str:
    """Return the script of a shell: "bash", "zsh" or "fish"."""
    return "\n".join({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](verbs)) + "\n"


def _bash(verbs: list[Verb]) -> Iterator[str]:
    yield "# bash completion of idp, by `idp completion bash`."
    yield from _function(verbs)
    yield "complete -o default -F _idp idp"


def _function(verbs: list[Verb]) -> Iterator[str]:
    """Yield a function of bash, which zsh's bashcompinit runs too."""
    yield "_idp() {"
    yield '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""'
    yield '    case "${COMP_WORDS[1]} $before" in'
    for verb in verbs:
        for option in verb.options:
            if option.takes:  # without a list of values: files, by the shell's own completion
                yield f'        "{verb.name} {option.flag}") words="{" ".join(option.values)}" ;;'
    yield '        *) case "$COMP_CWORD ${COMP_WORDS[1]}" in'
    yield f'            "1 "*) words="{" ".join(verb.name for verb in verbs)} --version --help" ;;'
    for verb in verbs:
        flags = " ".join(option.flag for option in verb.options)
        own = f'words="{" ".join(verb.words)}"' if verb.words else ":"
        yield f'            *" {verb.name}") [[ "$word" == -* ]] && words="{flags}" || {own} ;;'
    yield "        esac ;;"
    yield "    esac"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$word"))'
    yield "}"


def _zsh(verbs: list[Verb]) -> Iterator[str]:
    yield "# zsh completion of idp, by `idp completion zsh`."
    yield "autoload -U +X bashcompinit && bashcompinit"
    yield from _function(verbs)
    yield "complete -o default -F _idp idp"


def _fish(verbs: list[Verb]) -> Iterator[str]:
    yield "# fish completion of idp, by `idp completion fish`."
    for verb in verbs:
        about = shlex.quote(verb.about)
        yield f"complete -c idp -n __fish_use_subcommand -f -a {verb.name} -d {about}"
        here = f"-n '__fish_seen_subcommand_from {verb.name}'"
        if verb.words:
            yield f"complete -c idp {here} -f -a {shlex.quote(' '.join(verb.words))}"
        for option in verb.options:
            takes = f" -x -a {shlex.quote(' '.join(option.values))}" if option.values else " -r" if option.takes else ""
            yield f"complete -c idp {here} -l {option.flag.lstrip('-')}{takes} -d {shlex.quote(option.about)}"
