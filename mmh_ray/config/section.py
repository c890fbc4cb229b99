"""Defines the base of all sections; pydantic checks a section whenever one is created, from a file or in code.

The types of a section's fields have bounds::

    @dataclass(frozen=True, config=SETTINGS)
    class TrainConfig(Section):
        steps: Annotated[Whole, Interval(ge=1, le=10**7)] = 400
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from mmh_ray.config.refusals import config_error

SETTINGS = ConfigDict(
    extra="forbid",
    allow_inf_nan=False,
    regex_engine="python-re",  # pydantic's own engine has no look-ahead
)


class Section:
    """Base of a section: raises a ConfigError with the dotted key for a value that its type does not allow."""

    if TYPE_CHECKING:  # added by pydantic's decorator, which type checkers do not see
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        """Turn pydantic's errors into ConfigErrors."""
        try:
            return handler(values)
        except ValidationError as error:
            raise config_error(cls, error) from None
