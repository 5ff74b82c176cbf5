"""Reads a directory tree into a listing: one record per entry, in the order of the paths' bytes.

A listing is what the tests compare instead of trees. It can be made from a live tree, saved as JSON lines
(one record a line) and read back, so that a tree that is gone, or one that was only computed, can be compared
like one that is mounted.

A record is a dict:
  path    the path below the root, "." for the root itself; bytes that are not UTF-8 as surrogates
  type    file, dir, link, fifo, socket, char or block
  mode    permission bits with suid, sgid and sticky, octal text
  uid, gid
  size    bytes (files only)
  hash    SHA-256 of the content (files only)
  target  where a symbolic link points
  rdev    "major:minor" of a device
  xattrs  {name: value in hex}
  nlink   number of hard links
  group   for a file with several links: the first path that shares its inode, inside this tree
  mtime   nanoseconds since 1970
  ctime   the same, only in a listing made with times=True
  faults  what the directory said that the entry itself does not (wrong d_type or d_ino, listed twice)
"""

import fnmatch
import hashlib
import json
import os
import stat

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}
BLOCK = 1 << 20


def text(raw):
    """A path as text: JSON can carry it and os.fsencode() gives the bytes back."""
    return os.fsdecode(raw)


def content_hash(path):
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def xattrs_of(path):
    """All extended attributes of an entry, symbolic links not followed."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        return {"!": error.strerror}
    return {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in sorted(names)}


def record(path, name, times=False, content=True):
    """The record of the entry at `path`, shown under `name`. `group` is left to the walk."""
    info = os.lstat(path)
    kind = KINDS[stat.S_IFMT(info.st_mode)]
    entry = {
        "path": name,
        "type": kind,
        "mode": "%04o" % stat.S_IMODE(info.st_mode),
        "uid": info.st_uid,
        "gid": info.st_gid,
        "nlink": info.st_nlink,
        "mtime": info.st_mtime_ns,
    }
    if kind == "file":
        entry["size"] = info.st_size
        if content:
            entry["hash"] = content_hash(path)
    elif kind == "link":
        entry["target"] = text(os.readlink(path))
    elif kind in ("char", "block"):
        entry["rdev"] = "%d:%d" % (os.major(info.st_rdev), os.minor(info.st_rdev))
    attributes = xattrs_of(path)
    if attributes:
        entry["xattrs"] = attributes
    if times:
        entry["ctime"] = info.st_ctime_ns
    return entry, info


class Walk:
    """One walk over a tree; `records()` yields what it finds."""

    def __init__(self, root, exclude=(), times=False, content=True, dirents=False):
        self.root = os.fsencode(root)
        self.exclude = list(exclude)
        self.times = times
        self.content = content
        self.dirents = dirents
        self.first_name = {}

    def excluded(self, name):
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude)

    def records(self):
        """The root and everything below it; a directory comes before its children."""
        yield self.make(self.root, ".", None)
        stack = [(self.root, "")]
        while stack:
            path, prefix = stack.pop()
            children = []
            seen = {}
            with os.scandir(path) as entries:
                for entry in entries:
                    seen[entry.name] = seen.get(entry.name, 0) + 1
                    if seen[entry.name] == 1:
                        children.append(entry)
            children.sort(key=lambda entry: entry.name)
            below = []
            for entry in children:
                name = prefix + text(entry.name)
                if self.excluded(name):
                    continue
                found = self.make(entry.path, name, entry)
                if seen[entry.name] > 1:
                    found.setdefault("faults", []).append("listed %d times" % seen[entry.name])
                yield found
                if found["type"] == "dir":
                    below.append((entry.path, name + "/"))
            stack.extend(reversed(below))

    def make(self, path, name, dirent):
        found, info = record(path, name, self.times, self.content)
        if found["type"] != "dir" and info.st_nlink > 1:
            found["group"] = self.first_name.setdefault((info.st_dev, info.st_ino), name)
        if self.dirents and dirent is not None:
            faults = dirent_faults(dirent, found["type"], info)
            if faults:
                found["faults"] = faults
        return found


def dirent_faults(dirent, kind, info):
    """Where readdir(3) and lstat(2) contradict each other."""
    faults = []
    if dirent.inode() != info.st_ino:
        faults.append("d_ino %d but st_ino %d" % (dirent.inode(), info.st_ino))
    claims = (dirent.is_dir(follow_symlinks=False), dirent.is_file(follow_symlinks=False), dirent.is_symlink())
    if claims != (kind == "dir", kind == "file", kind == "link"):
        faults.append("d_type does not say %s" % kind)
    return faults


def write(records, file):
    """Saves a listing as JSON lines."""
    for entry in records:
        json.dump(entry, file, sort_keys=True)
        file.write("\n")


def load(path):
    """Reads a saved listing."""
    with open(path, encoding="ascii") as file:
        return [json.loads(line) for line in file]


def read(source, **options):
    """The listing of a directory, or one saved in a file."""
    if os.path.isdir(source):
        return list(Walk(source, **options).records())
    return load(source)
