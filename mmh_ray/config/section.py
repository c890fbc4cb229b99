"""Base of the sections: pydantic checks a section whenever one is made, from a file or in code.

A section's fields carry their bounds in their types::

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
    """Base of a section of the settings: refuses, by its dotted key, a value out of the bounds of its type."""

    if TYPE_CHECKING:  # pydantic's decorator adds it, but type checkers do not see that
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        """Pydantic's errors as ours."""
        try:
            return handler(values)
        except ValidationError as error:
            raise config_error(cls, error) from None
