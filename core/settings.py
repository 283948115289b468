"""The base of every settings model: frozen, an unknown key is an error, and no error repeats a value (or secret)."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A group of settings. Each module declares its own next to the code that reads them; core.config composes them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)
