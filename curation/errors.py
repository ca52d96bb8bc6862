"""The one exception whose message is meant for the user."""


class UserError(Exception):
    """A mistake the user can mend; its message is one sentence, shown without a traceback."""
