#!/usr/bin/env python3
"""Lists everything a program can see of a tree, one JSON object a line, in byte order of the paths.

    tree-list.py DIR [--no-content] [--no-xattr] [--xattr-skip PREFIX]... [--skip PATH]...

Two trees are equal when their lists are equal. Left out are only facts that belong to the
filesystem and not to the image: inode numbers (hard links show as groups), sizes, link counts and
block counts of directories, access and change times. Bytes that are no text are written as \\xHH.
"""
import argparse
import hashlib
import json
import os
import stat
import sys

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def text(data):
    return data.decode("utf-8", "backslashreplace")


def digest(path):
    sha = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def xattrs(path, skip):
    found = {}
    for name in os.listxattr(path, follow_symlinks=False):
        if not name.startswith(skip):
            found[name] = os.getxattr(path, name, follow_symlinks=False).hex()
    return found


def paths_below(root, skip):
    """Every path below root, relative, root itself as b'' first."""
    pending = [b""]
    while pending:
        relative = pending.pop()
        yield relative
        full = os.path.join(root, relative) if relative else root
        if not stat.S_ISDIR(os.lstat(full).st_mode):
            continue
        for name in os.listdir(full):
            child = os.path.join(relative, name) if relative else name
            if child not in skip:
                pending.append(child)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--no-content", action="store_true")
    parser.add_argument("--no-xattr", action="store_true")
    parser.add_argument("--xattr-skip", action="append", default=[])
    parser.add_argument("--skip", action="append", default=[])
    options = parser.parse_args()
    root = os.fsencode(options.root)
    skip = {os.fsencode(path) for path in options.skip}
    skip_xattrs = tuple(options.xattr_skip)
    groups = {}
    for relative in sorted(paths_below(root, skip)):
        full = os.path.join(root, relative) if relative else root
        status = os.lstat(full)
        kind = KINDS[stat.S_IFMT(status.st_mode)]
        entry = {
            "path": text(relative) or ".",
            "type": kind,
            "mode": format(stat.S_IMODE(status.st_mode), "04o"),
            "uid": status.st_uid,
            "gid": status.st_gid,
            "mtime_ns": status.st_mtime_ns,
        }
        if kind != "dir":
            entry["nlink"] = status.st_nlink
            if status.st_nlink > 1:
                # The group's first path in byte order names it.
                entry["group"] = groups.setdefault((status.st_dev, status.st_ino), entry["path"])
        if kind in ("file", "symlink"):
            entry["size"] = status.st_size
        if kind == "symlink":
            entry["target"] = text(os.readlink(full))
        if kind in ("char", "block"):
            entry["rdev"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
        attributes = {} if options.no_xattr else xattrs(full, skip_xattrs)
        if attributes:
            entry["xattrs"] = attributes
        if kind == "file" and not options.no_content:
            entry["sha256"] = digest(full)
        sys.stdout.write(json.dumps(entry, sort_keys=True) + "\n")


main()
