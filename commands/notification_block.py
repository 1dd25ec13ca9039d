"""A block with an address for notifications, which Prefect's server has to know (`prefect_server.py`)."""

from prefect.blocks.notifications import AppriseNotificationBlock


class NotificationAddress(AppriseNotificationBlock):
    """An address that Apprise knows, such as mail, a web hook or a chat. Prefect stores it encrypted."""

    _block_type_name = "Notification address"
    _block_type_slug = "notification-address"
