#!/usr/bin/env python3
"""Neutral union-filesystem scenario driver.

Runs scenarios (see README.md for the format) against ANY implementation that can be
mounted with an aufs-style option string, and either records what happened or compares
it with the recorded expectation.

  driver.py --in inputs.json  --record out.json --mounter kernel:aufs
  driver.py --in scenarios.json --check         --mounter ./my-mounter

A mounter is either "kernel:<fstype>" (mount(2) is called directly) or the path of a
program called as
  MOUNTER mount   TARGET OPTS     -> exit 0, or exit N = errno number
  MOUNTER remount TARGET OPTS
  MOUNTER umount  TARGET
  MOUNTER show    TARGET branches|mounts   (optional, free text, never compared)
OPTS is one string "br=/abs/b0=rw:/abs/b1=ro,opt,opt=val"; branch 0 is the topmost.

Only the standard library is used. Needs root (or a user+mount namespace) for most
scenarios; scenarios list what they need in "requires".
"""
import argparse, base64, ctypes, errno, fcntl, hashlib, json, mmap, os, re, shutil
import signal, stat, struct, subprocess, sys, time, traceback

T0 = 1000000000            # mtime/atime given to every entry made by a setup tree
libc = ctypes.CDLL(None, use_errno=True)
MS_REMOUNT = 32
SYS_renameat2 = {"x86_64": 316, "aarch64": 276}.get(os.uname().machine, 316)
AT_FDCWD = -100
FLAGS = {
    "r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR, "creat": os.O_CREAT,
    "excl": os.O_EXCL, "trunc": os.O_TRUNC, "append": os.O_APPEND, "dir": os.O_DIRECTORY,
    "nofollow": os.O_NOFOLLOW, "tmpfile": os.O_TMPFILE, "direct": os.O_DIRECT,
    "path": os.O_PATH, "nonblock": os.O_NONBLOCK, "sync": os.O_SYNC,
}
IN = {1: "ACCESS", 2: "MODIFY", 4: "ATTRIB", 8: "CLOSE_WRITE", 16: "CLOSE_NOWRITE", 32: "OPEN",
      64: "MOVED_FROM", 128: "MOVED_TO", 256: "CREATE", 512: "DELETE", 1024: "DELETE_SELF",
      2048: "MOVE_SELF", 0x8000: "IGNORED"}


def ename(e):
    return errno.errorcode.get(e, "E%s" % e)


def mkbytes(v):
    return v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v


# ---------------------------------------------------------------- setup trees
def build_tree(root, tree):
    todo = []
    for ent in tree:
        n = ent.get("rep", 1)
        for i in range(n):
            e = dict(ent)
            if "rep" in ent:
                e["p"] = ent["p"] % (i + ent.get("start", 0))
            todo.append(e)
    times = []
    for e in todo:
        p = os.path.join(root, e["p"])
        t = e["t"]
        if t == "d":
            if e["p"] != ".":
                os.makedirs(p, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(p), exist_ok=True)
        if t == "f":
            with open(p, "wb") as f:
                if "chunks" in e:
                    for off, data in e["chunks"]:
                        f.seek(off)
                        f.write(mkbytes(data))
                elif "fill" in e:
                    f.write((mkbytes(e["fill"]) * (e["size"] // len(e["fill"]) + 1))[: e["size"]])
                else:
                    f.write(mkbytes(e.get("data", "")))
            if "chunks" in e and "size" in e:
                os.truncate(p, e["size"])
        elif t == "l":
            os.symlink(e["to"], p)
        elif t == "h":
            os.link(os.path.join(root, e["to"]), p, follow_symlinks=False)
        elif t == "p":
            os.mkfifo(p)
        elif t in "cb":
            os.mknod(p, (stat.S_IFCHR if t == "c" else stat.S_IFBLK) | 0o600, os.makedev(*e.get("dev", [1, 3])))
        elif t == "s":
            os.mknod(p, stat.S_IFSOCK | 0o644)
        if "uid" in e or "gid" in e:
            os.chown(p, e.get("uid", 0), e.get("gid", 0), follow_symlinks=False)
        if t not in "lh":
            os.chmod(p, int(e["m"], 8) if "m" in e else (0o755 if t == "d" else 0o644))
        for k, v in e.get("x", {}).items():
            val = base64.b64decode(v[4:]) if v.startswith("b64:") else mkbytes(v)
            os.setxattr(p, k, val, follow_symlinks=False)
        times.append(p)
    for dp, dn, fn in os.walk(root, topdown=False):
        for n in fn + dn:
            os.utime(os.path.join(dp, n), (T0, T0), follow_symlinks=False)
    os.utime(root, (T0, T0))


# ---------------------------------------------------------------- dumps
PLINK = re.compile(r"^\d+\.\d+$")
TMPWH = re.compile(r"^(\.wh\.\.wh\..*\.)[0-9a-f]{4}$")


def norm_name(n, parent):
    if parent.endswith(".wh..wh.plnk") and PLINK.match(n):
        return "<ino>.<hino>"
    if not n.startswith(".wh..wh.") or n in (".wh..wh..opq", ".wh..wh.aufs", ".wh..wh.plnk", ".wh..wh.orph"):
        return n
    n = re.sub(r"^(\.wh\.\.wh\.\.dr\.)(fsid|dev|uuid)_[0-9a-f_-]+\.?.*$", r"\1<brid>", n)
    return TMPWH.sub(r"\1<hex4>", n)


def ent_info(p, st, relp, opts):
    m = st.st_mode
    d = {"p": relp, "m": "%04o" % stat.S_IMODE(m), "u": st.st_uid, "g": st.st_gid, "n": st.st_nlink}
    if stat.S_ISREG(m):
        d["t"] = "f"
        d["s"] = st.st_size
        try:
            with open(p, "rb") as f:
                b = f.read()
            if len(b) <= 64:
                try:
                    d["d"] = b.decode("ascii")
                except UnicodeDecodeError:
                    d["h"] = hashlib.sha256(b).hexdigest()[:16]
            else:
                d["h"] = hashlib.sha256(b).hexdigest()[:16]
        except OSError as e:
            d["d!"] = ename(e.errno)
    elif stat.S_ISDIR(m):
        d["t"] = "d"
    elif stat.S_ISLNK(m):
        d["t"] = "l"
        try:
            d["to"] = os.readlink(p)
        except OSError as e:
            d["to!"] = ename(e.errno)
    elif stat.S_ISFIFO(m):
        d["t"] = "p"
    elif stat.S_ISSOCK(m):
        d["t"] = "s"
    elif stat.S_ISCHR(m) or stat.S_ISBLK(m):
        d["t"] = "c" if stat.S_ISCHR(m) else "b"
        d["dev"] = [os.major(st.st_rdev), os.minor(st.st_rdev)]
    d["mt"] = "T0" if int(st.st_mtime) == T0 else ("new" if st.st_mtime > 1100000000 + 1 else int(st.st_mtime))
    try:
        xs = {}
        for k in sorted(os.listxattr(p, follow_symlinks=False)):
            if k.startswith("security.selinux"):
                continue
            v = os.getxattr(p, k, follow_symlinks=False)
            try:
                s = v.decode("ascii")
                xs[k] = s if s.isprintable() else "b64:" + base64.b64encode(v).decode()
            except UnicodeDecodeError:
                xs[k] = "b64:" + base64.b64encode(v).decode()
        if xs:
            d["x"] = xs
    except OSError:
        pass
    if opts.get("blocks") and stat.S_ISREG(m):
        d["sparse"] = st.st_blocks * 512 < st.st_size
    return d


def dump(root, opts):
    out, ids = [], {}

    def walk(dirp, rel):
        try:
            names = os.listdir(dirp)
        except OSError as e:
            out.append({"p": rel or ".", "ls!": ename(e.errno)})
            return
        dup = len(names) - len(set(names))
        if dup:
            out.append({"p": rel or ".", "dups": dup})
        for n in sorted(set(names)):
            p = os.path.join(dirp, n)
            if not rel and n == "lost+found":
                continue
            nn = norm_name(n, rel)
            rp = os.path.join(rel, nn) if rel else nn
            try:
                st = os.lstat(p)
            except OSError as e:
                out.append({"p": rp, "stat!": ename(e.errno)})
                continue
            d = ent_info(p, st, rp, opts)
            if not stat.S_ISDIR(st.st_mode) and st.st_nlink > 1:
                d["id"] = ids.setdefault((st.st_dev, st.st_ino), "i%d" % (len(ids) + 1))
            if opts.get("brief_over") and len(names) > opts["brief_over"]:
                out.append({"p": rel or ".", "count": len(set(names))})
                return
            out.append(d)
            if d["t"] == "d":
                walk(p, rp)

    st = os.lstat(root)
    r = ent_info(root, st, ".", opts)
    out.append(r)
    walk(root, "")
    return out


# ---------------------------------------------------------------- mounters
class Mounter:
    def __init__(self, spec):
        self.spec = spec

    def _sys(self, target, flags, opts):
        fs = self.spec.split(":", 1)[1]
        r = libc.mount(b"none", target.encode(), fs.encode(), ctypes.c_ulong(flags), opts.encode())
        return 0 if r == 0 else ctypes.get_errno()

    def do(self, what, target, opts=""):
        if self.spec.startswith("kernel:"):
            if what == "umount":
                for i in range(20):
                    r = libc.umount2(target.encode(), 0)
                    e = 0 if r == 0 else ctypes.get_errno()
                    if e != errno.EBUSY:
                        return e
                    time.sleep(0.05)
                return e
            flags = MS_REMOUNT if what == "remount" else 0
            words = [w for w in opts.split(",") if w]
            keep = []
            for w in words:
                if w == "ro":
                    flags |= 1
                elif w == "rw":
                    flags &= ~1
                else:
                    keep.append(w)
            return self._sys(target, flags, ",".join(keep))
        args = [self.spec, what, target] + ([opts] if what != "umount" else [])
        return subprocess.run(args).returncode


# ---------------------------------------------------------------- operations
class Ctx:
    pass


def P(c, op, key="path"):
    base = c.union if "on" not in op or op["on"] == "union" else c.br[op["on"]]
    v = op[key]
    return base if v in ("", ".") else os.path.join(base, v)


def st_pick(st, want):
    m = st.st_mode
    full = {
        "type": {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFSOCK: "s",
                 stat.S_IFCHR: "c", stat.S_IFBLK: "b"}[stat.S_IFMT(m)],
        "mode": "%04o" % stat.S_IMODE(m), "size": st.st_size, "nlink": st.st_nlink, "uid": st.st_uid, "gid": st.st_gid,
        "mtime": "T0" if int(st.st_mtime) == T0 else "new" if st.st_mtime > 1100000001 else int(st.st_mtime),
        "sparse": st.st_blocks * 512 < st.st_size,
    }
    return {k: full[k] for k in want}


def sx(b):
    try:
        s = b.decode("ascii")
        return s if len(s) <= 200 else {"len": len(b), "h": hashlib.sha256(b).hexdigest()[:16]}
    except UnicodeDecodeError:
        return {"len": len(b), "h": hashlib.sha256(b).hexdigest()[:16]}


def do_op(c, op):
    o = op["op"]
    fd = c.fds.get(op.get("fd"))
    if o == "create":
        f = os.open(P(c, op), os.O_CREAT | os.O_EXCL | os.O_WRONLY, int(op.get("mode", "0644"), 8))
        if "data" in op:
            os.write(f, mkbytes(op["data"]))
        os.close(f)
    elif o == "open":
        fl = 0
        for w in op["flags"].split("|"):
            fl |= FLAGS[w]
        if op["fd"] in c.fds:
            os.close(c.fds.pop(op["fd"]))
        c.fds[op["fd"]] = os.open(P(c, op), fl, int(op.get("mode", "0644"), 8))
    elif o == "close":
        os.close(c.fds.pop(op["fd"]))
    elif o == "read":
        return sx(os.pread(fd, op.get("n", 4096), op.get("off", 0)))
    elif o == "write":
        return os.write(fd, mkbytes(op["data"]))
    elif o == "pwrite":
        return os.pwrite(fd, mkbytes(op["data"]), op["off"])
    elif o == "fstat":
        return st_pick(os.fstat(fd), op.get("want", ["type", "mode", "size", "nlink"]))
    elif o == "ftruncate":
        os.ftruncate(fd, op["size"])
    elif o == "fchmod":
        os.fchmod(fd, int(op["mode"], 8))
    elif o == "fchown":
        os.fchown(fd, op["uid"], op["gid"])
    elif o == "fsync":
        os.fsync(fd)
    elif o == "fallocate":
        r = libc.fallocate(fd, op.get("fmode", 0), ctypes.c_long(op["off"]), ctypes.c_long(op["len"]))
        if r:
            raise OSError(ctypes.get_errno(), "fallocate")
    elif o == "lseek_data":
        return os.lseek(fd, op["off"], os.SEEK_DATA)
    elif o == "lseek_hole":
        return os.lseek(fd, op["off"], os.SEEK_HOLE)
    elif o == "cat":
        with open(P(c, op), "rb") as f:
            return sx(f.read())
    elif o == "put":          # O_WRONLY|O_TRUNC|O_CREAT and write
        f = os.open(P(c, op), os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        try:
            os.write(f, mkbytes(op["data"]))
        finally:
            os.close(f)
    elif o == "append":
        f = os.open(P(c, op), os.O_APPEND | os.O_WRONLY)
        try:
            os.write(f, mkbytes(op["data"]))
        finally:
            os.close(f)
    elif o == "fillwrite":    # write op["size"] bytes, from op["from"] on
        f = os.open(P(c, op), os.O_CREAT | os.O_WRONLY, 0o644)
        try:
            os.lseek(f, op.get("from", 0), os.SEEK_SET)
            n, b = op["size"], b"Z" * 65536
            while n > 0:
                n -= os.write(f, b[: min(n, 65536)])
            os.fsync(f)
        finally:
            os.close(f)
    elif o == "truncate":
        os.truncate(P(c, op), op["size"])
    elif o == "mkdir":
        os.mkdir(P(c, op), int(op.get("mode", "0755"), 8))
    elif o == "rmdir":
        os.rmdir(P(c, op))
    elif o == "unlink":
        os.unlink(P(c, op))
    elif o == "symlink":
        os.symlink(op["to"], P(c, op))
    elif o == "readlink":
        return os.readlink(P(c, op))
    elif o == "link":
        os.link(P(c, op), P(c, op, "new"), follow_symlinks=False)
    elif o == "linkfd":       # link an O_TMPFILE fd
        r = libc.linkat(AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD, P(c, op, "new").encode(), 0x400)
        if r:
            raise OSError(ctypes.get_errno(), "linkat")
    elif o == "rename":
        os.rename(P(c, op), P(c, op, "new"))
    elif o == "renameat2":
        fl = {"noreplace": 1, "exchange": 2, "whiteout": 4}[op["flag"]]
        r = libc.syscall(SYS_renameat2, AT_FDCWD, P(c, op).encode(), AT_FDCWD, P(c, op, "new").encode(), fl)
        if r:
            raise OSError(ctypes.get_errno(), "renameat2")
    elif o == "mknod":
        k = op["kind"]
        os.mknod(P(c, op), {"p": stat.S_IFIFO, "s": stat.S_IFSOCK, "c": stat.S_IFCHR, "b": stat.S_IFBLK}[k] | int(op.get("mode", "0644"), 8),
                 os.makedev(*op.get("dev", [0, 0])))
    elif o == "chmod":
        os.chmod(P(c, op), int(op["mode"], 8))
    elif o == "chown":
        os.chown(P(c, op), op["uid"], op["gid"], follow_symlinks=False)
    elif o == "futime":
        os.utime(fd, (op["t"], op["t"]))
    elif o == "utime":
        t = op.get("t")
        os.utime(P(c, op), None if t is None else (t, t), follow_symlinks=False)
    elif o == "setxattr":
        v = op["value"]
        os.setxattr(P(c, op), op["name"], base64.b64decode(v[4:]) if v.startswith("b64:") else mkbytes(v), follow_symlinks=False)
    elif o == "getxattr":
        b = os.getxattr(P(c, op), op["name"], follow_symlinks=False)
        try:
            s = b.decode("ascii")
            return s if s.isprintable() else "b64:" + base64.b64encode(b).decode()
        except UnicodeDecodeError:
            return "b64:" + base64.b64encode(b).decode()
    elif o == "removexattr":
        os.removexattr(P(c, op), op["name"], follow_symlinks=False)
    elif o == "listxattr":
        return sorted(x for x in os.listxattr(P(c, op), follow_symlinks=False) if x != "security.selinux")
    elif o == "stat":
        return st_pick(os.lstat(P(c, op)), op.get("want", ["type", "mode", "size"]))
    elif o == "exists":
        os.lstat(P(c, op))
    elif o == "access":
        a = {"r": os.R_OK, "w": os.W_OK, "x": os.X_OK, "f": os.F_OK}[op["how"]]
        if libc.access(P(c, op).encode(), a):
            raise OSError(ctypes.get_errno(), "access")
    elif o == "ls":
        return sorted(norm_name(n, op["path"]) for n in os.listdir(P(c, op)) if n != "lost+found")
    elif o == "ls_types":
        r = {}
        with os.scandir(P(c, op)) as it:
            for e in it:
                r[e.name if len(e.name) < 40 else e.name[:8] + "..%d" % len(e.name)] = (
                    "l" if e.is_symlink() else "d" if e.is_dir(follow_symlinks=False) else "f" if e.is_file(follow_symlinks=False) else "?")
        return r
    elif o == "ls_count":
        n = os.listdir(P(c, op))
        return {"n": len(n), "unique": len(set(n))}
    elif o == "ls_ino_matches":   # d_ino and d_type from readdir are those from lstat, for every entry
        bad = []
        # All of it first: who looks at each at once gets it from lookups, by READDIRPLUS.
        with os.scandir(P(c, op)) as it:
            entries = list(it)
        for e in entries:
            real = os.lstat(e.path)
            listed = (e.is_symlink(), e.is_dir(follow_symlinks=False), e.is_file(follow_symlinks=False))
            kind = (stat.S_ISLNK(real.st_mode), stat.S_ISDIR(real.st_mode), stat.S_ISREG(real.st_mode))
            if e.inode() != real.st_ino or listed != kind:
                bad.append(e.name)
        return sorted(bad)
    elif o == "opendir":
        libc.opendir.restype = ctypes.c_void_p
        d = libc.opendir(P(c, op).encode())
        if not d:
            raise OSError(ctypes.get_errno(), "opendir")
        c.dirs[op["fd"]] = d
    elif o in ("readdir", "rewinddir", "closedir"):
        d = ctypes.c_void_p(c.dirs[op["fd"]])
        if o == "rewinddir":
            libc.rewinddir(d)
            return None
        if o == "closedir":
            libc.closedir(d)
            c.dirs.pop(op["fd"])
            return None
        libc.readdir.restype = ctypes.c_void_p
        out, lim = [], op.get("max", 10 ** 9)
        while len(out) < lim:
            e = libc.readdir(d)
            if not e:
                break
            out.append(ctypes.string_at(e + 19).decode())
        return sorted(x for x in out if x not in (".", "..", "lost+found")) if "max" not in op else len(out)
    elif o == "ino":              # remember an inode number under a label
        c.inos[op["as"]] = os.lstat(P(c, op)).st_ino
    elif o == "ino_cmp":
        return "same" if c.inos[op["as"]] == os.lstat(P(c, op)).st_ino else "different"
    elif o == "fino_cmp":
        return "same" if c.inos[op["as"]] == os.fstat(fd).st_ino else "different"
    elif o == "dev_cmp":          # are all entries on the same st_dev as the union root?
        d0 = os.lstat(c.union).st_dev
        return "same" if os.lstat(P(c, op)).st_dev == d0 else "different"
    elif o == "mmap":
        prot = {"r": mmap.PROT_READ, "rw": mmap.PROT_READ | mmap.PROT_WRITE}[op["prot"]]
        c.maps[op["as"]] = mmap.mmap(fd, op["len"], flags=mmap.MAP_SHARED if op.get("shared", True) else mmap.MAP_PRIVATE, prot=prot)
    elif o == "mread":
        return sx(bytes(c.maps[op["as"]][: op["n"]]))
    elif o == "mwrite":
        c.maps[op["as"]][op["off"]: op["off"] + len(op["data"])] = mkbytes(op["data"])
        c.maps[op["as"]].flush()
    elif o == "munmap":
        c.maps.pop(op["as"]).close()
    elif o == "flock":
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif o == "setlk":
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif o == "setlk_other":      # try the same record lock from another process by path
        pid = os.fork()
        if pid == 0:
            try:
                f = os.open(P(c, op), os.O_RDWR)
                fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os._exit(0)
            except OSError as e:
                os._exit(e.errno)
        return ename(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).replace("E0", "ok")
    elif o == "copy_file_range":
        return os.copy_file_range(c.fds[op["src"]], fd, op["n"], 0, 0)
    elif o == "statfs":
        v = os.statvfs(P(c, op))
        r = {"namemax": v.f_namemax}
        if op.get("blocks"):
            kb = v.f_blocks * v.f_frsize // 1024
            r["size_kb"] = kb
        if "sum_of" in op:    # which numbers are not the sums of those branches' (in bytes, where they count blocks)?
            parts = [os.statvfs(c.br[b]) for b in op["sum_of"]]
            r["no_sum"] = [k for k, unit in (("f_blocks", "f_frsize"), ("f_bfree", "f_frsize"), ("f_bavail", "f_frsize"),
                                             ("f_files", ""), ("f_ffree", ""))
                           if getattr(v, k) * getattr(v, unit, 1) != sum(getattr(p, k) * getattr(p, unit, 1) for p in parts)]
        return r
    elif o == "inotify_add":
        if c.inot is None:
            c.inot = libc.inotify_init1(0o4000)
        wd = libc.inotify_add_watch(c.inot, P(c, op).encode(), op.get("mask", 0xfff & ~(1 | 16 | 32)))
        if wd < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        c.wds[wd] = op["as"]
    elif o == "inotify_read":
        time.sleep(op.get("wait", 0.15))
        out = []
        try:
            buf = os.read(c.inot, 65536)
        except BlockingIOError:
            buf = b""
        i = 0
        while i < len(buf):
            wd, mask, ck, ln = struct.unpack_from("iIII", buf, i)
            name = buf[i + 16: i + 16 + ln].rstrip(b"\0").decode()
            out.append("%s:%s%s" % (c.wds.get(wd, "?"), "|".join(v for k, v in IN.items() if mask & k), (":" + name) if name else ""))
            i += 16 + ln
        return out
    elif o == "sleep":
        time.sleep(op["s"])
    elif o == "remount":
        return c.remount(op["opts"])
    elif o == "umount_mount":     # unmount and mount again with the same (or given) options
        return c.cycle(op.get("opts"))
    elif o == "chdir":
        os.chdir(P(c, op))
    elif o == "exec":             # run a program file through the union, return exit status
        return subprocess.run([P(c, op)]).returncode
    elif o == "show":             # implementation-specific text, recorded but never compared
        return c.show(op["what"])
    elif o == "which_branch":     # on which branch(es) does this name really exist?
        return [b for b in c.order if os.path.lexists(os.path.join(c.br[b], op["path"]))]
    elif o == "tree":             # every entry below, one word each; a branch's bookkeeping is left out
        return words_of(P(c, op), op.get("want", []))
    elif o == "shared_extents":   # does the file share blocks with another one (reflink)?
        return shares_extents(P(c, op))
    elif o == "spread":           # how many of these names are on each branch
        import fnmatch
        r = {}
        for b in c.order:
            d = os.path.join(c.br[b], op.get("dir", ""))
            names = os.listdir(d) if os.path.isdir(d) else []
            r[b] = len([n for n in names if fnmatch.fnmatch(n, op["glob"]) and not n.startswith(".wh.")])
        return r
    else:
        raise ValueError("unknown op " + o)
    return None


def words_of(root, want):
    """["a=DATA", "big#SIZE", "d/", "s->TARGET", "p|", "k%", "c:MAJOR,MINOR", ...], with fields of stat behind "@"."""
    out = []
    for entry in dump(root, {}):
        name = entry["p"]
        if name == "." or re.match(r"\.wh\.\.wh\.(aufs|uaufs|plnk|orph)", name):
            continue
        kind = entry.get("t")
        if kind == "f":
            word = name + ("=" + entry["d"] if "d" in entry else "#%d" % entry["s"])
        elif kind == "l":
            word = name + "->" + entry["to"]
        elif kind in ("c", "b"):
            word = "%s%s:%d,%d" % (name, kind, *entry["dev"])
        else:
            word = name + {"d": "/", "p": "|", "s": "%"}.get(kind, "?")
        out.append(word + "".join("@%s" % entry[field] for field in want if field != "n" or kind != "d"))
    return sorted(out)


def shares_extents(path):
    """FIEMAP, linux/fiemap.h: are there extents, all of them marked FIEMAP_EXTENT_SHARED?"""
    room = 32
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        request = bytearray(struct.pack("=QQLLLL", 0, 2 ** 64 - 1, 1, 0, room, 0) + bytes(56 * room))
        fcntl.ioctl(f.fileno(), 0xC020660B, request)
    count = struct.unpack_from("=L", request, 20)[0]
    flags = [struct.unpack_from("=L", request, 32 + 56 * i + 40)[0] for i in range(count)]
    return count > 0 and all(flag & 0x2000 for flag in flags)


def as_user(c, op):
    """run op in a child with another uid/gid; result comes back through a pipe"""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        res = {}
        try:
            gid = op.get("gid_as", op["as_uid"])
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(op["as_uid"], op["as_uid"], op["as_uid"])
            if "umask" in op:
                os.umask(int(op["umask"], 8))
            v = do_op(c, op)
            res = {"r": "ok"} if v is None else {"r": "ok", "v": v}
        except OSError as e:
            res = {"r": ename(e.errno)}
        except BaseException as e:
            res = {"r": "driver-error", "v": repr(e)}
        os.write(w, json.dumps(res).encode())
        os._exit(0)
    os.close(w)
    buf = b""
    while True:
        b = os.read(r, 65536)
        if not b:
            break
        buf += b
    os.close(r)
    os.waitpid(pid, 0)
    return json.loads(buf or b'{"r":"driver-error"}')


def one_op(c, op):
    """run op; what came of it"""
    if "as_uid" in op:
        return as_user(c, op)
    if "umask" in op:
        os.umask(int(op["umask"], 8))
    try:
        v = do_op(c, op)
        return {"r": "ok"} if v is None else {"r": "ok", "v": v}
    except OSError as e:
        return {"r": ename(e.errno)}
    except Exception as e:
        return {"r": "driver-error", "v": repr(e)}
    finally:
        os.umask(0o022)


def subst(s, c):
    return re.sub(r"@(b\d+|U)", lambda m: c.union if m.group(1) == "U" else c.br[m.group(1)], s)


def default_show(mounter):
    def mk(c):
        def unpath(t):
            for n in sorted(c.br, key=len, reverse=True):
                t = t.replace(c.br[n], "@" + n)
            return re.sub(r"si=[0-9a-f]+", "si=<id>", t.replace(c.union, "@U"))

        def show(what):
            if what == "mounts":
                with open("/proc/self/mounts") as f:
                    return [unpath(x.strip()) for x in f if x.split()[1] == c.union]
            if mounter.spec == "kernel:aufs":
                import glob
                out = []
                for d in glob.glob("/sys/fs/aufs/si_*"):
                    names = [n for n in os.listdir(d) if re.match(r"^br\d+$", n)]
                    for n in sorted(names, key=lambda x: int(x[2:])):
                        out.append(n + " " + unpath(open(os.path.join(d, n)).read().strip()))
                return out
            if mounter.spec.startswith("kernel:"):
                return None
            r = subprocess.run([mounter.spec, "show", c.union, what], capture_output=True, text=True)
            return [unpath(x) for x in r.stdout.splitlines()]
        return show
    return mk


def clean(work):
    try:
        with open("/proc/self/mounts") as f:
            mnts = [l.split()[1] for l in f]
    except OSError:
        mnts = []
    for m in reversed(mnts):
        if m.startswith(work + "/"):
            if libc.umount2(m.encode(), 0):
                libc.umount2(m.encode(), 2)      # MNT_DETACH
    shutil.rmtree(work, ignore_errors=True)


def run(sc, mounter, work, show_cb=None):
    clean(work)
    os.makedirs(work, exist_ok=True)
    os.umask(0o022)
    c = Ctx()
    c.union = os.path.join(work, "u")
    os.makedirs(c.union)
    c.br, c.order, c.fds, c.dirs, c.inos, c.maps, c.wds, c.inot = {}, [], {}, {}, {}, {}, {}, None
    os.chmod(work, 0o755)
    parts = []
    for i, b in enumerate(sc["branches"]):
        name = b.get("name", "b%d" % i)
        d = os.path.join(work, name)
        os.makedirs(d)
        if "tmpfs" in b:
            r = libc.mount(b"tmpfs", d.encode(), b"tmpfs", 0, b["tmpfs"].encode())
            if r:
                return {"setup": ename(ctypes.get_errno())}
        c.br[name] = d
        c.order.append(name)
        build_tree(d, b.get("tree", []))
        if b.get("mounted", True):
            parts.append(d + ("=" + b["perm"] if b.get("perm") else ""))
    opts = ",".join((["br=" + ":".join(parts)] if parts else []) + [subst(x, c) for x in sc.get("options", [])])
    res = {}

    def remount(o):
        e = mounter.do("remount", c.union, subst(o, c))
        if e:
            raise OSError(e, "remount")

    def cycle(o):
        e = mounter.do("umount", c.union)
        if e:
            raise OSError(e, "umount")
        e = mounter.do("mount", c.union, subst(o, c) if o else opts)
        if e:
            raise OSError(e, "mount")

    c.remount, c.cycle = remount, cycle
    c.show = show_cb(c) if show_cb else (lambda what: None)
    e = mounter.do("mount", c.union, opts)
    if e:
        res["mount"] = ename(e)
        clean(work)
        return res
    cwd = os.getcwd()
    try:
        ops = []
        for op in sc.get("ops", []):
            got = one_op(c, op)
            # What takes effect after a while: on a loaded machine, after a longer one.
            end = time.monotonic() + op.get("await", 0)
            while got != op.get("awaited", got) and time.monotonic() < end:
                time.sleep(0.05)
                got = one_op(c, op)
            ops.append(got)
        res["ops"] = ops
        if sc.get("settle"):
            time.sleep(sc["settle"])
        dopt = sc.get("dump", {})
        if not dopt.get("skip"):
            res["union"] = dump(c.union, dopt)
            res["branches"] = {b: dump(c.br[b], dopt) for b in c.order}
    finally:
        os.chdir(cwd)
        for m in list(c.maps.values()):
            m.close()
        for f in c.fds.values():
            try:
                os.close(f)
            except OSError:
                pass
        for d in c.dirs.values():
            libc.closedir(ctypes.c_void_p(d))
        if c.inot is not None:
            os.close(c.inot)
        e = mounter.do("umount", c.union)
        if e:
            res["umount"] = ename(e)
        if sc.get("dump", {}).get("after_umount"):
            res["after_umount"] = {b: dump(c.br[b], sc.get("dump", {})) for b in c.order}
        clean(work)
    return res


# ---------------------------------------------------------------- comparison
SOFT = {"n"}   # directory link counts are only compared in --strict mode


def cmp_lists(exp, got, strict, ignore):
    ek = {e["p"] + ("#" + e["t"] if "t" in e else ""): e for e in exp}
    gk = {e["p"] + ("#" + e["t"] if "t" in e else ""): e for e in got}
    out = []
    for k in sorted(set(ek) | set(gk)):
        if any(re.search(r, k.rsplit("#", 1)[0]) for r in ignore.get("paths", [])):
            continue
        if k not in gk:
            out.append("missing " + k)
        elif k not in ek:
            out.append("extra " + k)
        else:
            a, b = dict(ek[k]), dict(gk[k])
            for f in ignore.get("fields", []):
                a.pop(f, None)
                b.pop(f, None)
            if not strict and a.get("t") == "d":
                a.pop("n", None)
                b.pop("n", None)
            if a != b:
                out.append("%s: expected %s got %s" % (k, {x: a.get(x) for x in a if a.get(x) != b.get(x)}, {x: b.get(x) for x in set(a) | set(b) if a.get(x) != b.get(x)}))
    return out


def compare(sc, got, strict, levels, ignore):
    exp = sc["expect"]
    diffs = []
    if exp.get("mount") != got.get("mount"):
        return ["mount: expected %s got %s" % (exp.get("mount", "ok"), got.get("mount", "ok"))]
    if "ops" in levels:
        for i, (a, b) in enumerate(zip(exp.get("ops", []), got.get("ops", []))):
            op = sc["ops"][i]
            if op["op"] == "show" or op.get("nocmp"):
                continue
            alt = op.get("also_ok", [])
            if a != b and b.get("r") not in alt:
                diffs.append("op %d %s: expected %s got %s" % (i, json.dumps(op), a, b))
    if "union" in levels and "union" in exp:
        diffs += ["union " + d for d in cmp_lists(exp["union"], got.get("union", []), strict, ignore)]
    if "branches" in levels and "branches" in exp:
        for b in exp["branches"]:
            diffs += ["%s %s" % (b, d) for d in cmp_lists(exp["branches"][b], got.get("branches", {}).get(b, []), strict, ignore)]
    return diffs


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--in", dest="inp", required=True)
    ap.add_argument("--mounter", required=True)
    ap.add_argument("--work", default="/tmp/union-scn")
    ap.add_argument("--record")
    ap.add_argument("--check", action="store_true")
    ap.add_argument("--only", help="regex on the scenario id")
    ap.add_argument("--lines", help="with --record: also append one JSON line per scenario (survives crashes)")
    ap.add_argument("--skip", default="", help="comma list of scenario ids not to run")
    ap.add_argument("--shard", help="I/N: run every N-th scenario, starting with I")
    ap.add_argument("--levels", default="ops,union,branches")
    ap.add_argument("--strict", action="store_true")
    ap.add_argument("--ignore-branch-meta", action="store_true", help="ignore .wh..wh.aufs/.plnk/.orph at branch roots")
    ap.add_argument("--ignore-fields", default="", help="comma list of entry fields, e.g. mt,n")
    a = ap.parse_args()
    doc = json.load(open(a.inp))
    ignore = {"fields": [x for x in a.ignore_fields.split(",") if x], "paths": []}
    if a.ignore_branch_meta:
        ignore["paths"].append(r"^\.wh\.\.wh\.(aufs|uaufs|plnk|orph)")
    m = Mounter(a.mounter)
    bad = n = 0
    if a.shard:
        i, k = map(int, a.shard.split("/"))
        doc["scenarios"] = doc["scenarios"][i::k]
    for sc in doc["scenarios"]:
        if (a.only and not re.search(a.only, sc["id"])) or sc["id"] in a.skip.split(","):
            continue
        if a.check and not sc.get("expect"):
            print("skip", sc["id"], "(nothing recorded)", flush=True)
            continue
        n += 1
        try:
            got = run(sc, m, a.work, default_show(m))
        except Exception as e:
            traceback.print_exc()
            got = {"driver": repr(e)}
        if a.record:
            sc["expect"] = got
            print("recorded", sc["id"], flush=True)
            if a.lines:
                with open(a.lines, "a") as f:
                    f.write(json.dumps({"id": sc["id"], "expect": got}) + "\n")
                    f.flush()
                    os.fsync(f.fileno())
        if a.check:
            d = compare(sc, got, a.strict, a.levels.split(","), ignore)
            print("%s %s" % ("ok  " if not d else "FAIL", sc["id"]), flush=True)
            for x in d:
                print("     " + x)
            bad += bool(d)
    if a.record:
        json.dump(doc, open(a.record, "w"), indent=1, sort_keys=True)
    if a.check:
        print("%d passed, %d failed" % (n - bad, bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
