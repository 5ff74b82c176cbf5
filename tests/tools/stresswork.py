"""What one process of livestress does on the union, and how it knows what is right.

The topmost branch always stays. What a process makes lies there, and it knows exactly what it made. Below it branches
come, go and change; of a lower file only this is known: it is one whole version of that very file. Once one was
replaced by a rename, it lies on the topmost branch too, and is known exactly.
"""

import contextlib
import errno
import json
import mmap
import os
import random
import re
import time

import attributes

LOWER = 6
FILES = 12
# So many of them are written to; the others are read only.
WRITTEN = 6
LOW_DIRS = 24
MANY = 120
LARGE = ("low1.", "low5.", "low7.")
# A lower file may be gone with its branch.
GONE = (errno.ENOENT, errno.ESTALE)
STRANGE = re.compile(r"(low|lowd|away|hl)[0-9]+\.[0-9]+$|sub$|hl$|link$|new$")


class Wrong(Exception):
    """The union showed something that cannot be."""


def record(name, version):
    """The content of a version of a file: it says by itself whether it is whole. Versions that end alike are of one size."""
    line = b"%s %-9s " % (name.encode(), version.encode())
    # Copying one of the large ones up takes so long that branches change meanwhile. The small ones are within a page,
    # and so are written in one request.
    most = 60000 if name.startswith(LARGE) else 150
    return line * (1 + hash_of(name, version[-1]) % most) + b"end"


def hash_of(name, kind):
    return 97 * sum((n + 1) * ord(c) for n, c in enumerate(name + kind))


def version_of(name, content):
    """The version that this is the whole content of."""
    fields = content.split(None, 2)
    if len(fields) < 3 or fields[0] != name.encode():
        return None
    version = fields[1].decode(errors="replace")
    return version if content == record(name, version) else None


def check_version(name, content, where=""):
    version = version_of(name, content)
    if version is None:
        raise Wrong("%s: no version of it%s: %d bytes, %r ... %r" % (name, where, len(content), content[:60], content[-30:]))
    return version


def check(name, got, wanted):
    if got != wanted:
        at = next((n for n, (a, b) in enumerate(zip(got, wanted)) if a != b), min(len(got), len(wanted)))
        raise Wrong("%s: %r (%d bytes), not %r (%d bytes), from byte %d"
                    % (name, got[at:at + 60], len(got), wanted[at:at + 60], len(wanted), at))


def read_fd(fd):
    parts, at = [], 0
    while True:
        part = os.pread(fd, 1 << 20, at)
        if not part:
            return b"".join(parts)
        parts.append(part)
        at += len(part)


@contextlib.contextmanager
def opened(path, flags=os.O_RDONLY, mode=0o644):
    fd = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def read(path):
    with opened(path) as fd:
        return read_fd(fd)


class Worker:
    """One process with a directory of its own, and some that all share."""

    def __init__(self, root, number, seed):
        self.random = random.Random("%s.%s" % (seed, number))
        self.number = number
        self.root = root
        self.dir = os.path.join(root, "p%d" % number)
        self.shared = os.path.join(root, "shared")
        self.made = {}
        self.xattrs = {}
        self.attributes = attributes.kept(root)
        self.trees = {}
        self.many = set()
        self.links = {}
        self.known = {}
        self.held = []
        self.logged = 0
        self.published = {}
        self.version = 0
        self.counts = {}
        self.errors = {}
        self.low = ["low%d.%d" % (n, number) for n in range(FILES)]

    def path(self, name):
        return os.path.join(self.dir, name)

    def next_version(self, kind=None):
        self.version += 1
        return "v%d%s" % (self.version, kind or self.random.choice("abcdefgh"))

    def pick(self, of):
        return self.random.choice(sorted(of)) if of else None

    def failed(self, error):
        key = "%s %s" % (self.step, errno.errorcode.get(error.errno, error.errno))
        self.errors[key] = self.errors.get(key, 0) + 1

    def do(self, call, *args):
        """A change, tried again while the topmost branch is readonly."""
        while True:
            try:
                return call(*args)
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                self.failed(error)
                time.sleep(0.002)

    @contextlib.contextmanager
    def writing(self, path, flags):
        fd = self.do(os.open, path, flags | os.O_CLOEXEC, 0o644)
        try:
            yield fd
        finally:
            os.close(fd)

    def write_all(self, fd, content):
        view, at = memoryview(content), 0
        while at < len(content):
            at += self.do(os.write, fd, view[at:])

    def write_new(self, path, content):
        with self.writing(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
            self.write_all(fd, content)

    @contextlib.contextmanager
    def may_be_gone(self, *more):
        try:
            yield
        except OSError as error:
            self.failed(error)
            if error.errno not in GONE + more:
                raise

    # What is ours must be as we left it, whatever happens to the branches.

    def create(self):
        name = "own%d" % self.random.randrange(40)
        content = record(name, self.next_version())
        self.write_new(self.path(name), content)
        self.made[name] = content

    def read_own(self):
        name = self.pick(self.made)
        if name:
            check(name, read(self.path(name)), self.made[name])
            if name in self.xattrs:
                check(name + " (xattr)", os.getxattr(self.path(name), "user.stress"), self.xattrs[name])

    def append(self):
        name = self.pick(self.made)
        if name:
            with self.writing(self.path(name), os.O_WRONLY | os.O_APPEND) as fd:
                self.write_all(fd, b"more")
                if self.random.random() < 0.1:
                    os.fsync(fd)
            self.made[name] += b"more"

    def truncate(self):
        name = self.pick(self.made)
        if name:
            size = self.random.randrange(6000)
            self.do(os.truncate, self.path(name), size)
            self.made[name] = self.made[name][:size].ljust(size, b"\0")

    def mapped(self):
        name = self.pick(self.made)
        if name and self.made[name]:
            with self.writing(self.path(name), os.O_RDWR) as fd, mmap.mmap(fd, 0) as view:
                check(name, view[:], self.made[name])

                def store():
                    view[0:1] = b"M"
                    view.flush()
                self.do(store)
            self.made[name] = b"M" + self.made[name][1:]

    def rename(self):
        name = self.pick(self.made)
        new = "own%d" % self.random.randrange(40)
        if name and new != name:
            self.do(os.rename, self.path(name), self.path(new))
            self.made[new] = self.made.pop(name)
            self.xattrs.pop(new, None)
            if name in self.xattrs:
                self.xattrs[new] = self.xattrs.pop(name)

    def unlink(self):
        name = self.pick(self.made)
        if name:
            self.do(os.unlink, self.path(name))
            del self.made[name]
            self.xattrs.pop(name, None)
            if os.path.lexists(self.path(name)):
                raise Wrong("%s is still there" % name)

    def xattr(self):
        name = self.pick(self.made)
        if name and self.attributes:
            value = self.next_version().encode()
            self.do(os.setxattr, self.path(name), "user.stress", value)
            self.xattrs[name] = value

    def link(self):
        """A second name in another directory, which may be the one that stays."""
        name = self.pick(self.made)
        if not name:
            return
        other = os.path.join(self.shared, "links", "%d" % self.number)
        self.do(os.link, self.path(name), other)
        one, two = os.stat(self.path(name)), os.stat(other)
        if one.st_ino != two.st_ino or one.st_nlink != 2:
            raise Wrong("%s and its link: numbers %d, %d, %d links" % (name, one.st_ino, two.st_ino, one.st_nlink))
        with self.writing(other, os.O_WRONLY | os.O_APPEND) as fd:
            self.write_all(fd, b"link")
        self.made[name] += b"link"
        check(name, read(self.path(name)), self.made[name])
        if self.random.random() < 0.5:
            self.do(os.unlink, other)
        else:
            self.do(os.unlink, self.path(name))
            self.do(os.rename, other, self.path(name))

    def listing(self):
        found = sorted(os.listdir(self.dir))
        if len(found) != len(set(found)):
            raise Wrong("a name is listed twice: %s" % found)
        own = {name for name in found if name.startswith(("own", "tree"))}
        if own != set(self.made) | set(self.trees):
            raise Wrong("listed %s, made %s" % (sorted(own), sorted(set(self.made) | set(self.trees))))
        strange = [name for name in found if name not in own and not STRANGE.match(name)]
        if strange:
            raise Wrong("strange names: %s" % strange)

    def big_listing(self):
        """A directory of all, in which every branch has names."""
        where = os.path.join(self.shared, "many")
        name = "n.%d.%d" % (self.number, self.random.randrange(20))
        if name in self.many:
            self.do(os.unlink, os.path.join(where, name))
            self.many.discard(name)
        else:
            self.write_new(os.path.join(where, name), b"")
            self.many.add(name)
        found = os.listdir(where)
        if len(found) != len(set(found)):
            raise Wrong("a name is listed twice: %s" % sorted(n for n in found if found.count(n) > 1))
        own = {n for n in found if n.startswith("n.%d." % self.number)}
        if own != self.many:
            raise Wrong("listed %s, made %s" % (sorted(own), sorted(self.many)))

    def subtree(self):
        where = self.path("sub/deep")
        for path in (self.path("sub"), where):
            self.do(os.mkdir, path)
        self.write_new(os.path.join(where, "file"), b"x")
        if os.stat(where).st_ino != os.stat(where).st_ino:
            raise Wrong("a directory changes its number")
        self.do(os.unlink, os.path.join(where, "file"))
        self.do(os.rmdir, where)
        self.do(os.rmdir, self.path("sub"))

    def tree(self):
        """Directories are made, renamed and removed."""
        name = "tree%d" % self.random.randrange(6)
        if name not in self.trees:
            self.do(os.mkdir, self.path(name))
            self.do(os.mkdir, self.path(name + "/in"))
            files = {f: record("own." + f, self.next_version()) for f in ("a", "in/b")}
            for file, content in files.items():
                self.write_new(self.path(name + "/" + file), content)
            self.trees[name] = files
            return
        new = "tree%d" % self.random.randrange(6)
        if new not in self.trees:
            self.do(os.rename, self.path(name), self.path(new))
            self.trees[new] = self.trees.pop(name)
            if os.path.lexists(self.path(name)):
                raise Wrong("%s is still there" % name)
            name = new
        for file, content in self.trees[name].items():
            check(name + "/" + file, read(self.path(name + "/" + file)), content)
        if self.random.random() < 0.3:
            del self.trees[name]
            for file in ("a", "in/b"):
                self.do(os.unlink, self.path(name + "/" + file))
            self.do(os.rmdir, self.path(name + "/in"))
            self.do(os.rmdir, self.path(name))

    # What all processes change.

    def log(self):
        """All append to one file; each knows its own lines."""
        path = os.path.join(self.shared, "log")
        with self.writing(path, os.O_WRONLY | os.O_APPEND) as fd:
            self.do(os.write, fd, b"%03d %09d.\n" % (self.number, self.logged))
        self.logged += 1
        if self.random.random() < 0.05:
            self.read_log(path, exact=True)

    def read_log(self, path, exact=False):
        last = {}
        for at, line in enumerate(read(path).splitlines(True)):
            if not re.match(rb"[0-9]{3} [0-9]{9}\.\n$", line):
                raise Wrong("%s, line %d: %r" % (path, at + 1, line))
            who, number = int(line[:3]), int(line[4:13])
            before = last.get(who, -1)
            if number <= before or exact and number != before + 1:
                raise Wrong("%s, line %d: process %d: %d after %d" % (path, at + 1, who, number, before))
            last[who] = number
        if exact and last.get(self.number, -1) != self.logged - 1:
            raise Wrong("%s: %d lines of mine, not %d" % (path, last.get(self.number, -1) + 1, self.logged))

    def low_log(self):
        """The same with a file that is on lower branches only, to begin with."""
        path = os.path.join(self.shared, "lowlog%d" % self.random.randrange(8))
        with self.may_be_gone():
            with self.writing(path, os.O_WRONLY | os.O_APPEND) as fd:
                self.do(os.write, fd, b"%03d %09d.\n" % (self.number, self.logged_low()))
        with self.may_be_gone():
            if self.random.random() < 0.2:
                self.read_log(path)

    def logged_low(self):
        self.version += 1
        return self.version

    def publish(self):
        """What others see of our file is never older than what they have seen."""
        name, mine = "pub%d", "pub%d" % self.number
        temp = os.path.join(self.shared, mine + ".new")
        self.write_new(temp, record(mine, self.next_version()))
        self.do(os.rename, temp, os.path.join(self.shared, mine))
        for other in range(self.random.randrange(16)):
            with contextlib.suppress(FileNotFoundError):
                content = read(os.path.join(self.shared, name % other))
                version = int(check_version(name % other, content)[1:-1])
                if version < self.published.get(other, 0):
                    raise Wrong("%s: version %d after %d" % (name % other, version, self.published[other]))
                self.published[other] = version

    # What lies below comes and goes, but is whole.

    def check_low(self, name, content):
        if name in self.known:
            check(name, content, self.known[name])
        else:
            check_version(name, content)

    def read_low(self):
        name = self.random.choice(self.low)
        with self.may_be_gone(), opened(self.path(name)) as fd:
            first = read_fd(fd)
            self.check_low(name, first)
            with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
                time.sleep(self.random.random() / 100)
                check(name, view[:], first)
            if name not in self.known and self.attributes:
                check(name + " (xattr)", os.getxattr(fd, "user.origin"), name.encode())

    def hold_low(self):
        """Files stay open over changes of the branches."""
        if self.held and self.random.random() < 0.7:
            name, fd, content = self.held.pop(0)
            try:
                check(name + " (held)", read_fd(fd), content)
            finally:
                os.close(fd)
            return
        if self.held or self.random.random() < 0.7:
            return
        name = self.random.choice(self.low[WRITTEN:])
        with self.may_be_gone():
            fd = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC)
            self.held.append((name, fd, read_fd(fd)))
            self.check_low(name, self.held[-1][2])

    def write_low(self):
        name = self.random.choice(self.low[:WRITTEN])
        new = self.path("new")
        content = record(name, self.next_version())
        if self.random.random() < 0.5:
            # In one step, so that nobody sees half of it.
            self.write_new(new, content)
            self.do(os.rename, new, self.path(name))
            self.known[name] = content
            return
        with self.may_be_gone():
            self.do(os.unlink, self.path(name))
            self.known.pop(name, None)

    def write_low_in_place(self):
        name = self.random.choice([n for n in self.low[:WRITTEN] if not n.startswith(LARGE)])
        with self.may_be_gone():
            with self.writing(self.path(name), os.O_RDWR) as fd:
                before = read_fd(fd)
                self.check_low(name, before)
                content = record(name, self.next_version(version_of(name, before)[-1]))
                if self.random.random() < 0.5:
                    self.do(os.pwrite, fd, content, 0)
                else:
                    with mmap.mmap(fd, 0) as view:
                        def store():
                            view[:] = content
                            view.flush()
                        self.do(store)
                check(name, read_fd(fd), content)
            if name in self.known:
                self.known[name] = content

    def chmod_low(self):
        with self.may_be_gone():
            self.do(os.chmod, self.path(self.random.choice(self.low[:WRITTEN])), 0o600 + self.random.randrange(64))

    def links_low(self):
        """Two names of one lower file: while they are one, they show the same."""
        number = self.random.randrange(4)
        names = [self.path("hl%d.%d" % (number, self.number)), self.path("hl/hl%d.%d" % (number, self.number))]
        self.random.shuffle(names)
        label = "hl%d.%d" % (number, self.number)
        with self.may_be_gone(), self.writing(names[0], os.O_RDWR) as one:
            if self.random.random() < 0.3:
                version = check_version(label, read_fd(one))
                self.do(os.pwrite, one, record(label, self.next_version(version[-1])), 0)
            with opened(names[1]) as two:
                contents = read_fd(one), read_fd(two)
                for content in contents:
                    check_version(label, content)
                if os.fstat(one).st_ino == os.fstat(two).st_ino:
                    check(label + " (its other name)", *contents)

    def dir_low(self):
        """Lower directories: entered, renamed, removed."""
        number = self.random.randrange(LOW_DIRS)
        name, away = "lowd%d.%d" % (number, self.number), "away%d.%d" % (number, self.number)
        what = self.random.random()
        if what < 0.7:
            for dir in (name, away):
                with self.may_be_gone():
                    self.walk_low(self.path(dir))
            return
        with self.may_be_gone(errno.EXDEV, errno.ENOTEMPTY):
            if what < 0.85:
                self.do(os.rename, self.path(name), self.path(away))
            else:
                for file in os.listdir(self.path(away)):
                    with self.may_be_gone():
                        self.do(os.unlink, os.path.join(self.path(away), file))
                self.do(os.rmdir, self.path(away))

    def walk_low(self, where):
        home = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.chdir(where)
            names = os.listdir(".")
            if len(names) != len(set(names)):
                raise Wrong("%s: a name is listed twice: %s" % (where, names))
            for name in names:
                if os.path.isdir(name):
                    raise Wrong("%s: %s is a directory; listed: %s; in %s" % (where, name, names, os.getcwd()))
                with self.may_be_gone():
                    check_version(name, read(name), " (in %s)" % where)
        finally:
            os.fchdir(home)
            os.close(home)

    def absent(self):
        if os.path.lexists(self.path("never%d" % self.random.randrange(1000))):
            raise Wrong("a name appeared that nobody made")

    def look_again(self, path):
        """Which part of a path that was not there is there now?"""
        for _ in range(3):
            seen, at = [], self.root
            for part in os.path.relpath(path, self.root).split("/"):
                listed = part in os.listdir(at) if os.path.isdir(at) else None
                at = os.path.join(at, part)
                seen.append("%s %s, %s" % (part, "there" if os.path.lexists(at) else "absent", "listed" if listed else "unlisted"))
            print("FAIL   now: %s" % "; ".join(seen), flush=True)
            time.sleep(0.7)

    STEPS = ["create"] * 3 + ["read_own"] * 3 + ["append", "truncate", "mapped", "mapped", "rename", "unlink", "xattr", "link",
             "listing", "big_listing", "subtree", "tree", "tree", "log", "low_log", "publish"] + ["read_low"] * 3 + [
             "hold_low", "hold_low", "write_low", "write_low_in_place", "chmod_low", "links_low", "dir_low", "dir_low", "absent"]

    def run(self, stop):
        """Works until there is a file `stop`; the exit status is 1 if something was wrong."""
        os.chdir("/")
        try:
            while not os.path.exists(stop):
                self.step = self.random.choice(self.STEPS)
                getattr(self, self.step)()
                self.counts[self.step] = self.counts.get(self.step, 0) + 1
            self.step = "end"
            for name, content in self.made.items():
                check(name, read(self.path(name)), content)
            for name, content in self.known.items():
                check(name, read(self.path(name)), content)
            self.read_log(os.path.join(self.shared, "log"), exact=True)
            self.listing()
        except (OSError, Wrong, ValueError) as error:
            print("FAIL p%d %s: %s" % (self.number, self.step, error), flush=True)
            if getattr(error, "filename", None):
                self.look_again(error.filename)
            return 1
        finally:
            with open("%s.%d" % (stop.replace("stop", "result"), self.number), "w", encoding="ascii") as out:
                json.dump({"counts": self.counts, "errors": self.errors}, out)
        return 0
