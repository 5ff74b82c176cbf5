"""Tests of mergecheck: a watcher that sees nothing would let every merge pass.

Run: python3 -m unittest discover -s tests/tools (as root: devices and foreign owners are made).
"""

import os
import shutil
import subprocess
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.realpath(__file__))
TOOL = os.path.join(HERE, "mergecheck")


class MergeCheck(unittest.TestCase):
    def setUp(self):
        self.top = tempfile.mkdtemp(dir="/var/tmp")
        self.addCleanup(shutil.rmtree, self.top)
        self.tree = self.path("tree")
        os.mkdir(self.tree)
        self.tool("fill", self.tree, "1", "5")
        with open(self.path("tree/file"), "w", encoding="ascii") as file:
            file.write("content")
        os.link(self.path("tree/file"), self.path("tree/linked"))
        os.symlink("target", self.path("tree/link"))
        self.tool("snapshot", self.tree, self.path("book"))

    def path(self, name):
        return os.path.join(self.top, name)

    def tool(self, *args):
        subprocess.run([TOOL, *args], check=True)

    def sees(self, *args):
        done = subprocess.run([TOOL, *args], capture_output=True, text=True, check=False)
        return done.returncode == 1

    def test_the_same_tree_passes(self):
        self.tool("check", self.tree, self.path("book"))

    def test_every_difference_is_seen(self):
        def rewrite(top):
            with open(top + "/file", "r+", encoding="ascii") as file:
                file.write("C")

        def retarget(top):
            os.unlink(top + "/link")
            os.symlink("tArget", top + "/link")

        def replace(top):
            shutil.copy2(top + "/file", top + "/other")
            os.rename(top + "/other", top + "/file")

        changes = {
            "mode": lambda top: os.chmod(top + "/file", 0o611),
            "owner": lambda top: os.chown(top + "/file", 7, 7),
            "link": lambda top: os.link(top + "/file", top + "/other"),
            "name": lambda top: os.unlink(top + "/linked"),
            "xattr": lambda top: os.setxattr(top + "/file", "user.x", b"y"),
            "size": lambda top: os.truncate(top + "/file", 3),
            "directory": lambda top: os.mkdir(top + "/other"),
            "rename": lambda top: os.rename(top + "/file", top + "/other"),
            "target": retarget,
            "inode": replace,
            "content": rewrite,
        }
        for what, change in changes.items():
            with self.subTest(what):
                copy = self.path(what)
                subprocess.run(["cp", "-a", self.tree, copy], check=True)
                self.tool("snapshot", copy, self.path("book"))
                stats = {p: os.stat(p) for p in (copy + "/file", copy)}
                change(copy)
                # Without the times, which betray most changes.
                for path, s in stats.items():
                    if os.path.exists(path):
                        os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))
                self.assertTrue(self.sees("check", copy, self.path("book")))
        os.utime(self.tree, (5, 5))
        self.tool("snapshot", self.tree, self.path("book"))
        os.utime(self.tree, (5, 6))
        self.assertTrue(self.sees("check", self.tree, self.path("book")))
        os.utime(self.tree + "/file", (5, 5))
        self.tool("snapshot", self.tree, self.path("book"))
        os.utime(self.tree + "/file", (5, 6))
        self.assertTrue(self.sees("check", self.tree, self.path("book")))

    def test_a_name_that_is_not_counted_is_seen(self):
        active = self.path("active")
        os.mkdir(active)
        open(self.path("empty"), "w", encoding="ascii").close()
        os.link(self.path("empty"), active + "/w")
        self.assertTrue(self.sees("verify", self.top, self.path("empty")))
        os.rename(self.path("empty"), active + "/l")
        open(self.path("empty"), "w", encoding="ascii").close()
        self.tool("verify", self.top, self.path("empty"))

    def watch(self, *args):
        watcher = subprocess.Popen([TOOL, *args], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.addCleanup(watcher.stderr.close)
        time.sleep(0.5)
        self.assertIsNone(watcher.poll())
        return watcher

    def test_the_watchers_see_a_change_while_they_run(self):
        killed, book = self.path("killed"), self.path("book")
        watchers = [
            self.watch("tree", self.tree, book, killed),
            self.watch("data", self.tree, book, killed, self.path("seen")),
        ]
        path = self.path("tree/file")
        s = os.stat(path)
        with open(path, "r+", encoding="ascii") as file:
            file.write("C")
        os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns + 1))
        for watcher in watchers:
            self.assertEqual(watcher.wait(20), 1)


if __name__ == "__main__":
    unittest.main()
