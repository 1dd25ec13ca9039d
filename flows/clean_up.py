"""Bound the size of the home: delete what the policy does not keep."""

from prefect import flow
from prefect.states import Completed

from bardflow.flows.parameters import Bytes, Count, Days
from bardflow.tasks.events import BUDGET_EXCEEDED, announce
from bardflow.tasks.housekeeping import clean_up_home, policy_of
from bardflow.tasks.saying import say


@flow(name="clean-up", description="Delete artifacts that the policy does not keep.", validate_parameters=True)
def clean_up(keep_last: Count = 3, keep_days: Days = 14.0, budget: Bytes | None = None) -> str:
    """Delete the artifacts and cached results that the policy does not keep, and return a summary.

    Champions are always kept. `bard gc` does the same by hand.

    Args:
        keep_last: The number of last runs of each recipe, and of last entries of each other name, to keep.
        keep_days: Artifacts and runs that are younger than this number of days are kept.
        budget: The largest size of the home, such as 20GB. The oldest artifacts are deleted until it is met. If left
            out, everything is deleted that the other parameters do not keep.

    Raises:
        BardError: a name or an artifact's origin cannot be read; nothing was deleted.
    """
    done = clean_up_home(policy_of(keep_last, keep_days, budget))
    message = done.line("deleted")
    if done.exceeded:
        message = f"{message}. Over the budget: {done.exceeded}"
        announce(BUDGET_EXCEEDED, "home", done.exceeded)
    say(message)
    name = "OverBudget" if done.exceeded else "Completed"
    return Completed(name=name, message=message, data=message)  # type: ignore[return-value]
