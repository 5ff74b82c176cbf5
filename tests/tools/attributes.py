"""Extended attributes on filesystems that may have none."""

import errno
import os


def kept(path):
    """Whether the filesystem of a path keeps any."""
    try:
        os.listxattr(path)
        return True
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False


def names(path, **options):
    """Those of a file; none where there can be none."""
    try:
        return os.listxattr(path, **options)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []


def where_possible(call, *args):
    """Sets an attribute or makes a device; false where the filesystem refuses every one of them."""
    try:
        call(*args)
        return True
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
        return False
