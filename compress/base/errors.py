"""Failures a user can act on. The command line prints one paragraph and exits with `exit_code`."""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where it gives no more room: the disk, a quota, the longest file."""


class CompressError(Exception):
    """Something the user can mend. The message says what was given, what is allowed and what to do."""

    exit_code = 1


class UsageError(CompressError):
    """Wrong command-line usage or a bad recipe."""

    exit_code = 2


class InputError(CompressError):
    """Bad input data, or a model folder that cannot be used."""

    exit_code = 3


class InterruptedRun(CompressError):
    """Stopped by a signal after saving. Running the same command again continues."""

    exit_code = 75
