"""What can go wrong here: one small tree, each message a paragraph with a remedy."""


class StageError(ValueError):
    """Input that makes no sense; the message says where and what would do."""


class NoStages(StageError):
    """No way to cut the layers satisfies what was asked; the message names the nearest choice that does."""


class ScheduleError(StageError):
    """A list of tasks that cannot run: something is missing, doubled, or waits for ever."""
