"""Plans how one tree is cut into layers so that merging the layers gives the tree back.

The plan is made of decisions only; nothing is read but the names and types of the source tree, and nothing is
written. Layer 0 is the topmost. Every real entry gets a layer; then lower layers get things that a correct merge
must not show: names that an upper layer whiteouts, content below directories that an upper layer makes opaque,
older versions of files, entries of another type, and directories with the wrong owner and mode.
"""

import os
import random
import stat


def walk(root):
    """Yields (path below root, lstat result), the root as ""; parents come first, names in order."""
    yield "", os.lstat(root)
    stack = [""]
    while stack:
        parent = stack.pop()
        with os.scandir(os.path.join(root, parent)) as entries:
            found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        below = []
        for entry in found:
            path = parent + "/" + entry.name if parent else entry.name
            info = entry.stat(follow_symlinks=False)
            yield path, info
            if stat.S_ISDIR(info.st_mode):
                below.append(path)
        stack.extend(reversed(below))


def ancestors(path):
    """The directories above a path, nearest first, down to the root ""."""
    while path:
        path = path.rpartition("/")[0]
        yield path


class Plan:
    """`items[layer]` maps a path to what that layer holds there:
    ("real",), ("junk", kind, seed), ("junkdir", seed), ("whiteout",) or ("opaque",) for a mark in that directory.
    Directories of the source are in `instances[path]`, the set of layers that have them.
    """

    def __init__(self, root, layers, seed):
        self.count = layers
        self.random = random.Random(seed)
        self.items = [{} for _ in range(layers)]
        self.planted = []
        self.read_source(root)
        self.limit = {}
        self.closed = {}
        self.touched = set()
        self.instances = {path: set() for path in self.dirs}
        self.choose_opaque()
        self.spread_files()
        self.spread_dirs()
        self.plant()

    def read_source(self, root):
        self.dirs, self.files, links = [], [], {}
        for path, info in walk(root):
            if stat.S_ISDIR(info.st_mode):
                self.dirs.append(path)
                continue
            self.files.append(path)
            if info.st_nlink > 1:
                links.setdefault((info.st_dev, info.st_ino), []).append(path)
        self.groups = {names[0]: names for names in links.values()}
        self.children = {path: [] for path in self.dirs}
        for path in self.dirs[1:] + self.files:
            self.children[path.rpartition("/")[0]].append(path)

    # The real tree

    def choose_opaque(self):
        """Directories whose whole subtree stays at or above one layer, so that a mark can hide all below it."""
        self.opaque = []
        for path in self.dirs:
            above = self.limit[path.rpartition("/")[0]] if path else self.count - 1
            small = 0 < len(self.children[path]) <= 200
            if path and small and above > 0 and self.random.random() < 0.06:
                self.limit[path] = self.random.randrange(above)
                self.opaque.append(path)
            else:
                self.limit[path] = above

    def spread_files(self):
        """Half of the directories keep their files in one layer, in the others each file goes its own way."""
        grouped = {name for names in self.groups.values() for name in names}
        for path in self.dirs:
            lowest = self.limit[path]
            together = self.random.randint(0, lowest) if self.random.random() < 0.5 else None
            for child in self.children[path]:
                if child not in self.instances and child not in grouped:
                    self.put_real([child], self.random.randint(0, lowest) if together is None else together)
        for names in self.groups.values():
            lowest = min(self.limit[name.rpartition("/")[0]] for name in names)
            self.put_real(names, self.random.randint(0, lowest))

    def put_real(self, names, layer):
        for name in names:
            self.items[layer][name] = ("real",)
            self.need_parents(name, layer)

    def need_parents(self, path, layer):
        for directory in ancestors(path):
            if layer in self.instances[directory]:
                break
            self.instances[directory].add(layer)

    def spread_dirs(self):
        """Every directory exists somewhere, and some exist in layers that add nothing to them."""
        self.instances[""].update(range(self.count))
        for path in self.opaque:
            self.add_dir(path, self.limit[path])
            self.items[self.limit[path]][path + "/"] = ("opaque",)
        for path in self.dirs:
            if not self.instances[path] or self.random.random() < 0.2:
                self.add_dir(path, self.random.randint(0, self.limit[path]))

    def add_dir(self, path, layer):
        self.instances[path].add(layer)
        self.need_parents(path, layer)

    # What a merge must hide

    def plant(self):
        """Plants each kind in proportion to the size of the tree."""
        if self.count < 2:
            return
        share = max(8, len(self.files) // 60)
        for kind in (self.plant_below_opaque, self.plant_whiteout, self.plant_tree_whiteout, self.plant_older,
                     self.plant_recreated, self.plant_dir_below_file, self.plant_idle_whiteout):
            for _ in range(share):
                kind()
        for _ in range(share // 4):
            self.plant_file_below_dir()

    def note(self, kind, path, *layers):
        self.planted.append({"kind": kind, "path": path, "layers": list(layers)})

    def pick_dir(self, lowest=1):
        """A directory to which a layer at or below `lowest` may still add something visible."""
        for _ in range(50):
            path = self.random.choice(self.dirs)
            if self.limit[path] >= lowest:
                return path
        return ""

    def junk(self, layer, path, kind=None):
        """Puts an invented entry there, unless that layer has something in the way. True if it did."""
        for directory in ancestors(path):
            item = self.items[layer].get(directory)
            if self.closed.get(directory, self.count) <= layer or (item and item[0] != "junkdir"):
                return False
        if path in self.items[layer] or layer in self.instances.get(path, ()):
            return False
        kind = kind or self.random.choice(["file", "file", "file", "link", "fifo", "char", "dir"])
        for directory in ancestors(path):
            if directory in self.instances:
                self.instances[directory].add(layer)
            elif directory not in self.items[layer]:
                self.items[layer][directory] = ("junkdir", self.random.random())
        seed = self.random.random()
        self.items[layer][path] = ("junkdir", seed) if kind == "dir" else ("junk", kind, seed)
        return True

    def whiteout(self, layer, path):
        """Puts a whiteout of `path` there. Its directory must be one of the source."""
        parent = path.rpartition("/")[0]
        if any(self.closed.get(d, self.count) <= layer for d in ancestors(path)):
            return False
        if path in self.items[layer] or layer in self.instances.get(path, ()):
            return False
        self.add_dir(parent, layer)
        self.items[layer][path] = ("whiteout",)
        return True

    def invented(self, parent):
        """A name that the source does not use in `parent`."""
        while True:
            name = self.random.choice(["gone", "old", "tmp", "x\udcff", "\u00e4"]) + "-%06d" % self.random.randrange(10**6)
            path = parent + "/" + name if parent else name
            if path not in self.instances and path not in self.touched:
                self.touched.add(path)
                return path

    def two_layers(self, lowest):
        """An upper and a lower layer, both at or above `lowest`."""
        return sorted(self.random.sample(range(lowest + 1), 2))

    def plant_whiteout(self):
        parent = self.pick_dir()
        upper, lower = self.two_layers(self.limit[parent]) if self.limit[parent] else (0, 0)
        path = self.invented(parent)
        if upper != lower and self.whiteout(upper, path):
            self.junk(lower, path)
            self.note("whiteout", path, upper, lower)

    def plant_tree_whiteout(self):
        parent = self.pick_dir()
        if self.limit[parent] < 1:
            return
        upper, lower = self.two_layers(self.limit[parent])
        path = self.invented(parent)
        if self.whiteout(upper, path):
            for name in ("a", "b/c", "b/d"):
                self.junk(lower, path + "/" + name, "file")
            self.note("whiteout of a tree", path, upper, lower)

    def plant_idle_whiteout(self):
        parent = self.pick_dir(0)
        layer = self.random.randint(0, self.limit[parent])
        path = self.invented(parent)
        if self.whiteout(layer, path):
            self.note("whiteout of nothing", path, layer)

    def real_layer(self, path):
        return next(layer for layer in range(self.count) if self.items[layer].get(path) == ("real",))

    def pick_file(self, room):
        """A file that has `room` layers below it and no company yet, and its layer."""
        for _ in range(50):
            path = self.random.choice(self.files)
            if path in self.touched:
                continue
            layer = self.real_layer(path)
            if layer + room < self.count:
                self.touched.add(path)
                return path, layer
        return None, 0

    def plant_older(self):
        path, layer = self.pick_file(1)
        if path and self.junk(lower := self.random.randint(layer + 1, self.count - 1), path, "file"):
            self.note("older version", path, layer, lower)

    def plant_recreated(self):
        path, layer = self.pick_file(2)
        if not path:
            return
        middle, lower = sorted(self.random.sample(range(layer + 1, self.count), 2))
        if middle <= self.limit[path.rpartition("/")[0]] and self.whiteout(middle, path):
            self.junk(lower, path)
            self.note("deleted and made again", path, layer, middle, lower)

    def plant_dir_below_file(self):
        path, layer = self.pick_file(1)
        if path and self.junk(lower := self.random.randint(layer + 1, self.count - 1), path, "dir"):
            self.junk(lower, path + "/inner", "file")
            self.note("directory below a file", path, layer, lower)

    def plant_file_below_dir(self):
        path = self.random.choice(self.dirs[1:])
        last = max(self.instances[path])
        below = [layer for layer in range(last + 1, self.count) if path not in self.items[layer]]
        hidden = any(item.startswith(path + "/") for layer in below for item in self.items[layer])
        if below and not hidden and path not in self.touched:
            lower = self.random.choice(below)
            if self.junk(lower, path, "file"):
                self.closed[path] = lower
                self.touched.add(path)
                self.note("file below a directory", path, last, lower)

    def plant_below_opaque(self):
        if not self.opaque:
            return
        path = self.random.choice(self.opaque)
        lower = self.random.randint(self.limit[path] + 1, self.count - 1)
        real = [child for child in self.children[path]]
        target = self.random.choice(real) if self.random.random() < 0.5 else self.invented(path)
        if target in self.instances:
            target = self.invented(target)
        if self.junk(lower, target):
            self.note("below an opaque directory", target, self.limit[path], lower)
