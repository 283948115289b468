"""What several verbs of the command take."""

from typing import Annotated

from cyclopts import Parameter, validators

from core.config import RunConfig

Config = Annotated[RunConfig, Parameter(name="*")]
Limit = Annotated[int | None, Parameter(validator=validators.Number(gte=1))]
Json = Annotated[bool, Parameter(name="--json", negative="")]
DEFAULTS = RunConfig()
