"""Types of flow parameters. Prefect rejects values out of range, both in its form and for `-p`."""

from typing import Annotated

from pydantic import Field

Corpora = Annotated[list[str], Field(min_length=1)]
Vocabularies = Annotated[list[str], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86_400, allow_inf_nan=False)]
Bits = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# A search adds the trial's number to its seed, and the sampler's seeds have 32 bits.
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Days = Annotated[float, Field(ge=0, le=36_500, allow_inf_nan=False)]
Bytes = Annotated[str, Field(pattern=r"^ *[0-9]+(\.[0-9]*)? *([kKmMgGtT][iI]?)?[bB]? *$")]
