"""A text as numbers."""

import numpy as np
import numpy.typing as npt


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """Return the Unicode code point of each character, shape [characters].

    Raises:
        UnicodeEncodeError: the text has half of a surrogate pair.
    """
    return np.frombuffer(text.encode("utf-32-le"), "<u4")
