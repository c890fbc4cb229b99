"""Defines options and types that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from mmh_ray.config import Config
from mmh_ray.models.shipped import BASE_MODEL
from mmh_ray.object_store import local_path

HELP_FLAGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
"""Click's settings for every command."""


class ExistingPath(click.Path):
    """A path that must exist. URIs (s3://, gs:// ...) are not checked here. The shell completes file names."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The path as written; for a ``file://`` URI, its path."""
        value = local_path(value)
        if "://" not in value and not os.path.exists(value):  # pathlib raises an error if a name is too long
            self.fail(f"{value}: no such file or folder; give an existing path or a URI", param, ctx)
        return value


EXISTING = ExistingPath()


class Place(click.Path):
    """Path or URI of a file or folder to be written."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The path or URI; for a ``file://`` URI, its path."""
        return local_path(value)


PLACE = Place()


class ListOption(click.Option):
    """An option that takes several values, all at once or one by one: `--target A B`, `--target A --target B`."""


def _type_of(setting: str) -> click.Choice[str] | type:
    """The choices of a setting if it has some, else its Python type."""
    section, _, field = setting.partition(".")
    section_type = get_type_hints(Config)[section]
    hint = get_type_hints(section_type)[field]
    return click.Choice(get_args(hint)) if get_origin(hint) is Literal else hint


def setting_option(flag: str, setting: str, **options: Any) -> Callable[..., Any]:
    """Decorator: an option for a setting, with the setting's type; its value is added to the overrides at the end.

    Parameters
    ----------
    setting:
        Dotted key, such as `harmonize.space`.
    """

    def override(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            ctx.obj.append(f"{setting}={value}")

    return click.option(flag, type=_type_of(setting), expose_value=False, callback=override, **options)


def list_option(flag: str, **options: Any) -> Callable[..., Any]:
    """Decorator: an option with several values, which the command receives as a tuple."""
    return click.option(flag, cls=ListOption, multiple=True, metavar="NAME...", **options)


config_option = click.option("--config", metavar="FILE.yaml", help="YAML file of settings.")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Log details, and the traceback of an error.")
model_option = click.option(
    "--model",
    default=BASE_MODEL,
    metavar="MODEL",
    help=f"{BASE_MODEL} (the default), a bundle folder or its s3:// or gs:// URI, or models:/NAME@ALIAS; "
    "also model=...",
)
truth_option = click.option(
    "--truth",
    type=EXISTING,
    metavar="FOLDER",
    help="derivatives/truth of a simulated archive, for measures that need it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
