"""The base of every settings model: frozen, and an unknown key is an error."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A group of settings. Each module declares its own next to the code that reads them; core.config composes them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
