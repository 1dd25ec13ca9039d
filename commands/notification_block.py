"""A block with an address for notifications. Prefect's server loads it by the entry point `prefect.collections`."""

from prefect.blocks.notifications import AppriseNotificationBlock


class NotificationAddress(AppriseNotificationBlock):
    """An address that Apprise knows, such as mail, a web hook or a chat. Prefect stores it encrypted."""

    _block_type_name = "Notification address"
    _block_type_slug = "notification-address"
