"""Tests of the test tools: a comparison that sees nothing would make everything look right.

Run: python3 -m unittest discover -s tests/tools (as root: devices and foreign owners are made).
"""

import os
import shutil
import stat
import subprocess
import tempfile
import unittest

import layermerge
import layerplan
import layerwrite
import treelist

HERE = os.path.dirname(os.path.realpath(__file__))


def write(path, data="x"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        file.write(data)


def small_tree(top):
    for directory in ("a", "a/b", "a/b/c", "d", "empty", "e/f"):
        os.makedirs(os.path.join(top, directory), exist_ok=True)
        for name in ("1", "2", "3"):
            if directory != "empty":
                write(os.path.join(top, directory, name), directory + name)
    os.link(top + "/a/1", top + "/d/linked")
    os.symlink("1", top + "/a/link")
    os.mknod(top + "/d/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mkfifo(top + "/d/fifo")
    os.setxattr(top + "/a/2", "user.x", b"1")
    write(os.path.join(top, "not-utf8-\udcff"))


class Scratch(unittest.TestCase):
    """Gives every test a directory that it need not remove."""

    def setUp(self):
        self.top = tempfile.mkdtemp(dir="/var/tmp")
        self.addCleanup(shutil.rmtree, self.top)

    def path(self, name):
        return os.path.join(self.top, name)


class TreeCompare(Scratch):
    """Every kind of difference is seen, and nothing else."""

    def setUp(self):
        super().setUp()
        small_tree(self.path("A"))
        subprocess.run(["cp", "-a", self.path("A"), self.path("B")], check=True)

    def compare(self, *options):
        command = [os.path.join(HERE, "treecmp"), *options, self.path("A"), self.path("B")]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)

    def assert_seen(self, text, *options):
        result = self.compare(*options)
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn(text, result.stdout)

    def test_equal_trees(self):
        result = self.compare("--mtime", "--dir-mtime", "--dir-nlink", "--dirents")
        self.assertEqual(result.returncode, 0, result.stdout)

    def test_missing_and_extra(self):
        os.unlink(self.path("B/a/3"))
        self.assert_seen("a/3: only in A")
        write(self.path("B/new"))
        self.assert_seen("new: only in B")

    def test_content_of_equal_size(self):
        write(self.path("B/a/3"), "A3")
        self.assert_seen("a/3: hash")

    def test_mode_owner_and_time(self):
        os.chmod(self.path("B/a/3"), 0o4755)
        self.assert_seen("a/3: mode")
        os.chown(self.path("B/d"), 1, 2)
        self.assert_seen("d: uid")
        os.utime(self.path("B/a/2"), (1, 1))
        self.assert_seen("a/2: mtime", "--mtime")

    def test_links(self):
        os.unlink(self.path("B/d/linked"))
        shutil.copy2(self.path("B/a/1"), self.path("B/d/linked"))
        self.assert_seen("d/linked: nlink")
        self.assert_seen("d/linked: group")
        os.unlink(self.path("B/a/link"))
        os.symlink("2", self.path("B/a/link"))
        self.assert_seen("a/link: target")

    def test_device_and_type(self):
        os.unlink(self.path("B/d/null"))
        os.mknod(self.path("B/d/null"), stat.S_IFCHR | 0o600, os.makedev(1, 5))
        self.assert_seen("d/null: rdev")
        os.unlink(self.path("B/d/fifo"))
        os.mkdir(self.path("B/d/fifo"))
        self.assert_seen("d/fifo: type")

    def test_xattrs(self):
        os.setxattr(self.path("B/a/2"), "user.x", b"2")
        self.assert_seen("a/2: xattrs")
        os.setxattr(self.path("B/e"), "trusted.t", b"")
        self.assert_seen("e: xattrs")

    def test_snapshot_sees_a_touched_file(self):
        for name in ("before", "after"):
            subprocess.run([os.path.join(HERE, "treecmp"), "snapshot", self.path("A"), "-o", self.path(name)], check=True)
            os.chmod(self.path("A/a/1"), 0o644)
        command = [os.path.join(HERE, "treecmp"), "--ctime", self.path("before"), self.path("after")]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        self.assertIn("a/1: ctime", result.stdout)


class Merge(Scratch):
    """The reference merger on layers written by hand, topmost first."""

    def merged(self, *layers, dialect="aufs"):
        for number, files in enumerate(layers):
            os.makedirs(self.path(str(number)))
            for name in files:
                if name.endswith("/"):
                    os.makedirs(self.path("%d/%s" % (number, name)))
                else:
                    write(self.path("%d/%s" % (number, name)), "from %d" % number)
        merger = layermerge.Merger([self.path(str(n)) for n in range(len(layers))], dialect)
        return {entry["path"]: entry for entry in merger.records()}

    def source(self, entry):
        return next(n for n in range(4) if entry["hash"] == self.hash_of("from %d" % n))

    def hash_of(self, text):
        write(self.path("text"), text)
        return treelist.content_hash(self.path("text"))

    def test_the_topmost_wins(self):
        found = self.merged(["a"], ["a", "b"], ["b", "c"])
        self.assertEqual([self.source(found[name]) for name in "abc"], [0, 1, 2])

    def test_a_whiteout_hides_what_is_below_it_only(self):
        found = self.merged(["b"], [".wh.a", ".wh.b"], ["a", "b", "c"])
        self.assertEqual(sorted(found), [".", "b", "c"])

    def test_an_entry_beside_its_whiteout_counts(self):
        found = self.merged([".wh.d", "d/new"], ["d/old"])
        self.assertEqual(sorted(found), [".", "d", "d/new"])

    def test_an_opaque_directory_is_the_last(self):
        found = self.merged(["d/a"], ["d/.wh..wh..opq", "d/b"], ["d/c"])
        self.assertEqual(sorted(found), [".", "d", "d/a", "d/b"])

    def test_directories_merge_around_a_file(self):
        found = self.merged(["x/a"], ["x"], ["x/c"])
        self.assertEqual(sorted(found), [".", "x", "x/a", "x/c"])

    def test_a_file_hides_a_directory(self):
        found = self.merged(["x"], ["x/a"])
        self.assertEqual(found["x"]["type"], "file")
        self.assertNotIn("x/a", found)


class Cut(Scratch):
    """Layers of any count and seed merge to the tree that they were cut from."""

    def test_round_trip(self):
        small_tree(self.path("tree"))
        whole = list(treelist.Walk(self.path("tree")).records())
        for seed in range(6):
            for count in (1, 2, 3, 9):
                out = self.path("%d-%d" % (seed, count))
                plan = layerplan.Plan(self.path("tree"), count, seed)
                writer = layerwrite.Writer(plan, self.path("tree"), out, "aufs")
                writer.write()
                merged = list(layermerge.Merger(writer.layers, "aufs").records())
                for entry in merged + whole:
                    if entry["type"] == "dir":
                        entry.pop("nlink", None)
                self.assertEqual(merged, whole, "seed %d, %d layers" % (seed, count))


class Stream(Scratch):
    """A replay gives what the recording gave, and all operations succeed now and then."""

    def test_replay(self):
        for name, options in (("A", ("--record", "--count=3000")), ("B", ("--replay",))):
            os.mkdir(self.path(name))
            command = [os.path.join(HERE, "opstream"), self.path(name), *options, "--log", self.path(name + ".log")]
            command.insert(3, self.path("stream"))
            subprocess.run(command, check=True)
        with open(self.path("A.log"), encoding="ascii") as one, open(self.path("B.log"), encoding="ascii") as other:
            lines = one.readlines()
            self.assertEqual(lines, other.readlines())
        done = {line.split()[1] for line in lines if not line.rsplit("= ", 1)[1].startswith("E")}
        invented = {line.split()[1] for line in lines}
        self.assertEqual(invented, done)


if __name__ == "__main__":
    unittest.main()
