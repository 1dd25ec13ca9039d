"""The result of a training run: names, scores and paths, small enough for Prefect's database."""

from pydantic import BaseModel, ConfigDict


class Outcome(BaseModel):
    """The result of a training run. Losses are over the whole validation set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    recipe: str
    trained: bool
    why: str
    nats_per_token: float
    bits_per_character: float
    baselines: dict[str, float]
    sample: str
    champion_moved: bool
    verdict: str
    champion: str
    model: str
    report: str

    def line(self) -> str:
        """Return a summary of the run in one line."""
        return (
            f"{'trained' if self.trained else 'nothing trained'}: {self.why}; "
            f"{self.nats_per_token:.4f} nats per token, {self.bits_per_character:.4f} bits per character; "
            f"champion {'moved' if self.champion_moved else 'not moved'}: {self.verdict}"
        )
