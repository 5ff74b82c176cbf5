"""A reference merger: computes the merged listing of layers, by the rules and in the plainest way.

It shares no code with the cutter, keeps no caches and reads every directory of every layer once. Rules: aufs(5) and
the OCI image specification ("Layer filesystem changeset"):

* layers are searched from the top; the first layer that has a name decides its type and attributes;
* a directory goes on collecting from lower layers that hold a directory of that name; another type there is skipped
  (AUFS) or ends the search (overlayfs);
* a whiteout of a name ends the search after its layer; an entry beside its own whiteout counts (OCI);
* an opaque directory is the last that contributes.
"""

import os
import stat

import treelist

PREFIX = ".wh."
OPAQUE = ".wh..wh..opq"


class Aufs:
    """Whiteouts are files called `.wh.NAME`."""

    skips_other_types = True

    @staticmethod
    def read(path):
        """(real names, whiteouted names, opaque) of one directory of one layer."""
        names = os.listdir(path)
        real = {name for name in names if not name.startswith(PREFIX)}
        gone = {name[len(PREFIX):] for name in names if name.startswith(PREFIX) and not name.startswith(PREFIX * 2)}
        return real, gone, OPAQUE in names


class Overlay:
    """Whiteouts are character devices 0/0, opaque directories carry an xattr."""

    skips_other_types = False

    @staticmethod
    def read(path):
        real, gone = set(), set()
        for name in os.listdir(path):
            info = os.lstat(os.path.join(path, name))
            whiteout = stat.S_ISCHR(info.st_mode) and info.st_rdev == 0
            (gone if whiteout else real).add(name)
        try:
            opaque = os.getxattr(path, "trusted.overlay.opaque") == b"y"
        except OSError:
            opaque = False
        return real, gone, opaque


class Merger:
    """Merges `layers`, topmost first."""

    def __init__(self, layers, dialect):
        self.layers = layers
        self.dialect = {"aufs": Aufs, "overlay": Overlay}[dialect]
        self.first_name = {}

    def records(self):
        """Records as treelist.Walk would make them of the mounted union."""
        yield self.make(self.layers[0], ".")
        stack = [("", self.until_opaque(self.layers))]
        while stack:
            prefix, sources = stack.pop()
            facts = [(source, *self.dialect.read(source)) for source in sources]
            below = []
            for name in sorted({name for fact in facts for name in fact[1]}, key=os.fsencode):
                found = self.resolve(name, facts)
                if not found:
                    continue
                entry = self.make(found[0], prefix + name)
                yield entry
                if entry["type"] == "dir":
                    below.append((prefix + name + "/", self.until_opaque(found)))
            stack.extend(reversed(below))

    def until_opaque(self, sources):
        for index, source in enumerate(sources):
            if self.dialect.read(source)[2]:
                return sources[: index + 1]
        return sources

    def resolve(self, name, facts):
        """The paths that stand for `name`: one, or several if it is a directory; none if it does not exist."""
        found = []
        for source, real, gone, _opaque in facts:
            if name in real:
                path = os.path.join(source, name)
                is_dir = stat.S_ISDIR(os.lstat(path).st_mode)
                if not found and not is_dir:
                    return [path]
                if is_dir:
                    found.append(path)
                elif not self.dialect.skips_other_types:
                    break
            if name in gone:
                break
        return found

    def make(self, path, name):
        entry, info = treelist.record(path, name)
        if entry["type"] != "dir" and info.st_nlink > 1:
            entry["group"] = self.first_name.setdefault((info.st_dev, info.st_ino), name)
        return entry
