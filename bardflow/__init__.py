"""bardflow trains small GPTs on any text. The Python API is `train`, `load` and the model that `load` returns."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bardflow.api import LoadedModel, TextScore, load, train

__all__ = ["LoadedModel", "TextScore", "load", "train"]


def __getattr__(name: str) -> Any:
    # Imported on first use: importing torch takes a second, and `bard --help` does not need it.
    if name in __all__:
        from bardflow import api

        return getattr(api, name)
    raise AttributeError(f"module 'bardflow' has no attribute {name!r}")
