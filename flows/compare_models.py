"""Models side by side on one text: champions, imported models, and any causal model of transformers."""

from typing import Annotated

from prefect import flow
from prefect.states import Completed
from pydantic import Field

from bardflow.errors import BardError
from bardflow.flows.text import prepared_text
from bardflow.home import project_folder
from bardflow.sources.corpora import load_corpus
from bardflow.storage.handles import Evaluation, Model
from bardflow.tasks.base_model import BaseSpec, located
from bardflow.tasks.evaluation import EvaluationSpec, evaluate_model, measure_baselines, unspellable
from bardflow.tasks.experiments import show_experiment
from bardflow.tasks.models_compared import publish_models
from bardflow.tasks.pretrained import evaluate_pretrained, identified
from bardflow.tasks.run import Run

Models = Annotated[list[str], Field(min_length=1, max_length=20)]


@flow(name="compare-models", description="Score models on one text, in bits per character, side by side.")
def compare_models(
    models: Models,
    corpus: str = "tiny-shakespeare",
    context: Annotated[int, Field(ge=2, le=65_536)] | None = None,
) -> str:
    """Score each model on the corpus's validation set, compare them, and return the path of the report.

    Args:
        models: Names such as tiny-shakespeare/champion, folders of transformers models, or hub:OWNER/NAME.
        corpus: The corpus whose validation set is scored: the name of a file in `corpora/` without `.toml`.
        context: The tokens in a window of a folder's model; by default its own context, and at most 1,024.

    Raises:
        BardError: a model does not exist or cannot be scored on the text; the message says why.
    """
    described = load_corpus(corpus, project_folder() / "corpora")
    names = list(dict.fromkeys(models))
    found = [located(BaseSpec(model=name)) for name in names]
    spec = EvaluationSpec()
    with Run() as run:
        text = prepared_text(run, described)
        evaluations: list[Evaluation] = []
        for name, model in zip(names, found, strict=True):
            if isinstance(model, Model):
                if hindered := unspellable(model, text):
                    raise BardError(f"{name} cannot be scored on {corpus}: {hindered}")
                evaluations.append(run(evaluate_model, model, text, spec))
            else:
                one = identified(model, name)
                evaluations.append(
                    run(evaluate_pretrained, str(one.path), one.address, one.sha256, text, spec, context)
                )
        here = [model for model in found if isinstance(model, Model)]
        report = run(publish_models, names, evaluations, here, text, run(measure_baselines, text))
        where = show_experiment(f"experiments/compare-models-{corpus}", report, by="compare-models")
    ran = run.ran("evaluate_model", "evaluate_pretrained", "publish_models")
    return Completed(name="Completed" if ran else "Unchanged", message=where, data=where)  # type: ignore[return-value]
