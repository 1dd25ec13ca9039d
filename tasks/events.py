"""Events for Prefect: its automations send notifications about them (`bard notify`)."""

from typing import Any

from prefect.events import emit_event

CHAMPION_CHANGED = "bardflow.champion.changed"
TEXT_CHANGED = "bardflow.text.changed"
SCORE_WORSE = "bardflow.score.worse"
BUDGET_EXCEEDED = "bardflow.budget.exceeded"


def announce(event: str, about: str, message: str, **values: Any) -> None:
    """Send an event about a corpus (or `home`), with a message for people and values for programs.

    Prefect adds the flow run as a related resource. Without a server, nothing is sent.
    """
    resource = {"prefect.resource.id": f"bardflow.{about}", "prefect.resource.name": about}
    emit_event(event, resource=resource, payload={"message": message, **values})
