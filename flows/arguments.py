"""A command: its arguments from words like `key=value`, in the grammar of Hydra's command lines, and its table."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from prefect import Flow
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from serving.model.errors import UserError, exit_in_words, first_line, without_credentials

T = TypeVar("T")


def run_command(function: Callable[..., T] | Flow[..., T], example: str) -> T:
    """Calls a function or a flow with the arguments of the command line.

    `--help` shows them, with the example; a mistake ends the program with exit code 2.
    """
    words = sys.argv[1:]
    if {"--help", "-h"} & set(words):
        print(_usage(function, example))
        sys.exit()
    with exit_in_words():
        return function(**arguments(function, words))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Shows what a command returns; without rows nothing."""
    if rows:
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*map(str, row.values()))
        Console().print(table)


def arguments(function: Callable[..., Any] | Flow[..., Any], words: Sequence[str]) -> dict[str, Any]:
    """Parses and validates the arguments of a function; raises UserError where they are not what they must be.

    A text or a path is taken as it stands after the first `=`; everything else is parsed: `models=[a,b]`.
    """
    parameters = _parameters(function)
    kinds = get_type_hints(function.fn if isinstance(function, Flow) else function, include_extras=True)
    values = {}
    for word in words:
        name, equals, text = word.partition("=")
        if name not in parameters or not equals:
            known = f"KEY is one of {', '.join(parameters)}" if parameters else "this command takes none"
            raise UserError(f"{word}: give KEY=VALUE, where {known}")
        if without_credentials(text) != text:
            raise UserError(
                f"{word}: there is a password in it, and Prefect keeps what a run was asked for; leave it out"
            )
        if not text and parameters[name].default is inspect.Parameter.empty:
            raise UserError(f"{word}: there is no value; give {name}=VALUE")
        try:
            values[name] = TypeAdapter(kinds[name]).validate_python(_parsed(kinds[name], word, text))
        except (HydraException, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else first_line(error)
            raise UserError(f"{word}: {reason}") from error
    missing = [
        name for name in parameters if name not in values and parameters[name].default is inspect.Parameter.empty
    ]
    if missing:
        raise UserError(f"no value for {', '.join(missing)}; give {missing[0]}=VALUE")
    return values


def _parsed(kind: Any, word: str, text: str) -> Any:
    return text if kind in (str, Path) else OverridesParser.create().parse_override(word).value()


def _parameters(function: Callable[..., Any] | Flow[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function.fn if isinstance(function, Flow) else function).parameters)


def _usage(function: Callable[..., Any] | Flow[..., Any], example: str) -> str:
    defaults = {name: each.default for name, each in _parameters(function).items()}
    shown = [f"  {name}={'' if value is inspect.Parameter.empty else value}" for name, value in defaults.items()]
    keys = "\n".join(shown).replace("'", "")
    return f"{inspect.cleandoc(function.__doc__ or '')}\n\nFor example:\n  {example}\n\nKeys, by default:\n{keys}"
