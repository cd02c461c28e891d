"""Exit codes of the command `tfkd`, and the errors that stand for two of them."""

DONE = 0  # done, and accepted
FAULT = 1  # an error in tfkd itself, shown with its traceback
USAGE = 2  # wrong verbs or flags, or flags that do not fit together
BAD_INPUT = 3  # data, model or environment can't be used
NOT_MET = 4  # a gate, or a verification of a file, is not met
NO_SPACE = 5  # out of disk space or memory
INTERRUPTED = 130  # by Ctrl-C; what is finished is kept

MEANINGS = {
    DONE: "done and accepted",
    USAGE: "wrong usage",
    BAD_INPUT: "bad data or model",
    NOT_MET: "a gate or a verification not met",
    NO_SPACE: "out of space or memory",
    INTERRUPTED: "interrupted, and resumable",
}


class UsageError(Exception):
    """Flags that parse one by one and do not fit together; the command ends with `USAGE`."""


class NotMetError(Exception):
    """A gate or verification that is not met; the command ends with `NOT_MET`."""
