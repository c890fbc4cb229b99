"""Parses a command line by Click's rules and three rules of `mmh` that Click does not have.

- A setting, `section.key=value`, may be anywhere on the line; `model=NAME` means `--model NAME`.
- An option with several values takes them all at once: `--participant-label 01 02`.
- An option without a value does not take the next option as its value: `--model --dry-run` is an error.

Click does not run a command here. It returns an :class:`Invocation`, which `mmh_ray.cli.main` runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from mmh_ray.cli.options import HELP_FLAGS, ListOption, config_option, verbose_option

SETTINGS_AND_CODES = """\
Any setting: section.key=value, anywhere (a path of that form: ./site=A).
Exit codes: 0 done, 1 something failed, 2 unusable line, 130 interrupted.
"""


@dataclass(frozen=True)
class Invocation:
    """A command with its arguments, ready to run.

    Attributes
    ----------
    command:
        Its name.
    handler:
        Called with the configuration and the arguments by name; returns the exit code.
    arguments:
        Values of the command's own arguments and options.
    config:
        YAML file of settings; None for the defaults.
    overrides:
        Settings on the line, `section.key=value`; the last value of a key wins.
    """

    command: str
    handler: Callable[..., int]
    arguments: Mapping[str, Any]
    config: str | None
    verbose: bool
    overrides: list[str] = field(default_factory=list)


class Application(click.Group):
    """`mmh`: removes the settings from the line before Click looks for the command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the settings in ``ctx.obj``, where the options of the command add theirs."""
        words, ctx.obj = split_overrides(args)
        return super().parse_args(ctx, words)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order of their definition, not in alphabetical order."""
        return list(self.commands)


class Command(click.Command):
    """A command of `mmh`, with `--config`, `--verbose` and examples in its help.

    Parameters
    ----------
    examples:
        Command lines for the help.
    """

    def __init__(self, name: str, examples: Iterable[str], **options: Any) -> None:
        super().__init__(name, context_settings=HELP_FLAGS, epilog=_epilog(examples), **options)
        verbose_option(self)
        config_option(self)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite the options into Click's form, then let Click parse them."""
        if not ctx.resilient_parsing:  # then the shell is completing an unfinished line
            self._check_values(ctx, args)
        try:
            return super().parse_args(ctx, self._one_value_each(args))
        except click.MissingParameter as error:
            option = self._option_of_several_words(args)
            if option is None:
                raise
            remedy = f"'{option}' took all words up to the next option: put the arguments before it."
            raise click.UsageError(f"{error.format_message()} {remedy}", ctx) from error

    def invoke(self, ctx: click.Context) -> Invocation:
        """The command to run later, after logging and signal handlers are set up."""
        arguments = dict(ctx.params)
        config = arguments.pop("config")
        verbose = arguments.pop("verbose") or ctx.find_root().params["verbose"]
        assert self.name is not None
        assert self.callback is not None
        return Invocation(
            command=self.name,
            handler=self.callback,
            arguments=arguments,
            config=config,
            verbose=verbose,
            overrides=ctx.obj,
        )

    def _check_values(self, ctx: click.Context, words: Sequence[str]) -> None:
        """Refuse an option without a value; Click would take the next option as its value."""
        flags: set[str] = set()
        flags_with_value: set[str] = set()
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option):
                flags.update(parameter.opts)
                if not parameter.is_flag:
                    flags_with_value.update(parameter.opts)
        for word, following in itertools.pairwise([*words, "--"]):
            if word == "--":
                return
            is_option = following.startswith("--") or following in flags
            if word in flags_with_value and is_option:
                raise click.BadOptionUsage(word, f"Option '{word}' requires an argument.", ctx)

    def _list_flags(self) -> set[str]:
        return {flag for option in self.params if isinstance(option, ListOption) for flag in option.opts}

    def _option_of_several_words(self, words: Sequence[str]) -> str | None:
        """The first option with two or more values, some of which may be meant as arguments; None if there is none."""
        lists = self._list_flags()
        for position, word in enumerate(words):
            following = words[position + 1 : position + 3]
            if word in lists and len(following) == 2 and not any(value.startswith("-") for value in following):
                return word
        return None

    def _one_value_each(self, words: Sequence[str]) -> list[str]:
        """Rewrite `--target A B` to `--target A --target B`: a Click option has a fixed number of values."""
        lists = self._list_flags()
        spelled: list[str] = []
        open_list: str | None = None
        for position, word in enumerate(words):
            if word == "--":
                return [*spelled, *words[position:]]
            if word in lists:
                open_list = word
                continue
            if word.startswith("-"):
                open_list = None
            if open_list is not None:
                spelled.append(open_list)
            spelled.append(word)
        return spelled


def split_overrides(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Separate the words of a line into those for the parser and the `section.key=value` settings."""
    others: list[str] = []
    overrides: list[str] = []
    previous = ""
    for word in words:
        if previous == "--archive":  # its value NAME=FOLDER looks like a setting
            others.append(word)
        elif word.startswith("model="):  # `model` is a section and cannot have a value, so the option is meant
            others.append(f"--{word}")
        elif is_override(word):
            overrides.append(word)
        else:
            others.append(word)
        previous = word
    return others, overrides


def is_override(word: str) -> bool:
    """Whether a word consists of dotted names and a value, such as `train.steps=10`; paths and URIs do not."""
    key, equals, _ = word.partition("=")
    return bool(equals) and all(name.isidentifier() for name in key.split("."))


def _epilog(examples: Iterable[str]) -> str:
    lines = ["\b", "Examples:", *(f"  {example}" for example in examples)]
    return "\n".join([*lines, "", "\b", SETTINGS_AND_CODES])
