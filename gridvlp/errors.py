"""The one exception that is meant for the person at the keyboard, and what others say in it."""


class UserError(Exception):
    """Bad input, said in one clear sentence: what is wrong, where, and what to do.

    The command line prints the sentence without a traceback and exits with code 2.
    """


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
