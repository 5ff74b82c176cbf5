"""Writes the layers of a plan as directories, in AUFS or in overlayfs format.

AUFS: `.wh.NAME` deletes NAME, `.wh..wh..opq` makes its directory opaque. overlayfs: a character device 0/0 deletes,
the xattr trusted.overlay.opaque=y makes opaque.
"""

import os
import random
import shutil
import stat

import attributes


def copy_times(source, target):
    info = os.lstat(source)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)


def copy_metadata(source, target):
    """Owner, mode and xattrs; in this order, because chown(2) clears suid bits and capabilities."""
    info = os.lstat(source)
    os.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(target, stat.S_IMODE(info.st_mode))
    for name in attributes.names(source, follow_symlinks=False):
        os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)


def copy_entry(source, target):
    """Copies one entry that is not a directory, with everything that stat and listxattr tell."""
    mode = os.lstat(source).st_mode
    if stat.S_ISREG(mode):
        shutil.copyfile(source, target)
    elif stat.S_ISLNK(mode):
        os.symlink(os.readlink(source), target)
    else:
        os.mknod(target, mode, os.lstat(source).st_rdev)
    copy_metadata(source, target)
    copy_times(source, target)


class Writer:
    """Writes one plan below `out`/layers."""

    def __init__(self, plan, source, out, dialect):
        self.plan = plan
        self.source = source
        self.dialect = dialect
        width = len(str(plan.count - 1))
        self.layers = [os.path.join(out, "layers", str(n).zfill(width)) for n in range(plan.count)]

    def write(self):
        for number, top in enumerate(self.layers):
            os.makedirs(top)
            self.write_dirs(number, top)
            links = {}
            for path, item in sorted(self.plan.items[number].items(), key=lambda pair: pair[0]):
                self.write_item(number, os.path.join(top, path), path, item, links)
            self.write_dir_metadata(number, top)

    def write_dirs(self, number, top):
        """Directories first: those of the source, then invented ones, parents before children."""
        for path in self.plan.dirs:
            if number in self.plan.instances[path]:
                os.makedirs(os.path.join(top, path), exist_ok=True)
        for path, item in sorted(self.plan.items[number].items()):
            if item[0] == "junkdir":
                os.makedirs(os.path.join(top, path), exist_ok=True)

    def write_item(self, number, target, path, item, links):
        if item[0] == "real":
            self.write_real(path, target, links)
        elif item[0] == "junk":
            write_junk(target, item[1], random.Random(item[2]))
        elif item[0] == "whiteout":
            self.write_whiteout(path, target)
        elif item[0] == "opaque" and self.dialect == "aufs":
            with open(os.path.join(target, ".wh..wh..opq"), "xb"):
                pass

    def write_whiteout(self, path, target):
        parent, name = os.path.split(target)
        if self.dialect == "aufs":
            with open(os.path.join(parent, ".wh." + name), "xb"):
                pass
        elif self.merged(path.rpartition("/")[0]):
            os.mknod(target, stat.S_IFCHR, 0)

    def merged(self, path):
        """Whether several layers contribute to a directory. Linux lists a whiteout in any other as an entry."""
        return sum(layer <= self.plan.limit[path] for layer in self.plan.instances[path]) > 1

    def write_real(self, path, target, links):
        source = os.path.join(self.source, path)
        info = os.lstat(source)
        key = (info.st_dev, info.st_ino)
        if key in links:
            os.link(links[key], target, follow_symlinks=False)
            return
        copy_entry(source, target)
        if info.st_nlink > 1:
            links[key] = target

    def write_dir_metadata(self, number, top):
        """The topmost instance is the real one; the others may have any owner, mode and time."""
        for path in reversed(self.plan.dirs):
            layers = self.plan.instances[path]
            if number not in layers:
                continue
            source, target = os.path.join(self.source, path), os.path.join(top, path)
            if self.plan.items[number].get(path + "/") == ("opaque",) and self.dialect == "overlay":
                os.setxattr(target, "trusted.overlay.opaque", b"y")
            dice = random.Random("%s %d" % (ascii(path), number))
            if number == min(layers) or not path or dice.random() < 0.5:
                copy_metadata(source, target)
                copy_times(source, target)
            else:
                os.setxattr(target, "user.wrong", b"a lower directory's own")
                os.chown(target, dice.randrange(1, 60000), dice.randrange(1, 60000))
                os.chmod(target, dice.choice([0o777, 0o755, 0o1777]))
                os.utime(target, (dice.randrange(10**9), dice.randrange(10**9)))


def write_junk(target, kind, dice):
    """An entry that no merge may show; it is never like a real one."""
    if kind == "file":
        with open(target, "xb") as file:
            file.write(b"a merge must not show this\n" * dice.randrange(1, 40))
    elif kind == "link":
        os.symlink("must/not/be/seen", target)
    elif kind == "fifo":
        os.mkfifo(target)
    elif kind == "char":
        os.mknod(target, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    if kind != "link":
        os.chmod(target, dice.choice([0o600, 0o640, 0o4755]))
