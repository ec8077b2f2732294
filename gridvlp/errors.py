"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input, said in one clear sentence: what is wrong, where, and what to do.

    The command line prints the sentence without a traceback and exits with code 2.
    """
