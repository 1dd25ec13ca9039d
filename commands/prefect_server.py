"""Prefect's command line, for a server that knows our blocks: `… -m bardflow.commands.prefect_server server start`."""

from prefect.cli import app

# The server looks for a block's class when an automation sends a notification.
from bardflow.commands.notification_block import NotificationAddress

__all__ = ["NotificationAddress"]

if __name__ == "__main__":
    app()
