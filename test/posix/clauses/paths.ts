// The clause about errors of paths, which all calls share: docs/SEMANTICS.md, section 4.
import { type Clause, clause } from '../script.ts';

export const paths: Clause[] = [
  clause(
    '4.4',
    'Calls on names answer ENOENT, ENOTDIR, EACCES, ELOOP and ENAMETOOLONG for the path, in every call.',
    `
    file f 0644
    directory closed 0700 1000:1000
    file closed/f 0644 1000:1000
    symlink loop1 loop2
    symlink loop2 loop1
    --
    chmod missing 0644 -> ENOENT
    chmod f/x 0644 -> ENOTDIR
    chmod loop1 0644 -> ELOOP
    chmod loop1/f 0644 -> ELOOP
    chmod {n*256} 0644 -> ENAMETOOLONG
    chmod {n*255} 0644 -> ENOENT
    chmod {./*2046}ff 0644 -> ENOENT
    chmod {./*2047}f 0644 -> ok
    chmod {./*2047}ff 0644 -> ENAMETOOLONG
    as 2000 2000
    chmod closed/f 0644 -> EACCES
    chown closed/f -1 -1 -> EACCES
    lstat closed/f -> EACCES
    truncate closed/f 0 -> EACCES
    unlink closed/f -> EACCES
    unlink closed/missing -> EACCES
    open x closed/f r -> EACCES
    open x closed/new rw,creat -> EACCES
    mkdir closed/d -> EACCES
    mkfifo closed/p -> EACCES
    symlink f closed/l -> EACCES
    link f closed/l -> EACCES
    link closed/f l -> EACCES
    rename closed/f g -> EACCES
    rename f closed/g -> EACCES
    rmdir closed/d -> EACCES
    utimes closed/f now now -> EACCES
    readlink closed/f -> EACCES
    `,
    `
    file f 0644
    symlink loop1 loop2
    symlink loop2 loop1
    --
    chown f/x 0 0 -> ENOTDIR
    chown missing 0 0 -> ENOENT
    chown loop1 0 0 -> ELOOP
    chown {n*256} 0 0 -> ENAMETOOLONG
    truncate f/x 0 -> ENOTDIR
    truncate missing 0 -> ENOENT
    truncate loop1 0 -> ELOOP
    truncate {n*256} 0 -> ENAMETOOLONG
    unlink f/x -> ENOTDIR
    unlink missing -> ENOENT
    unlink loop1/x -> ELOOP
    unlink {n*256} -> ENAMETOOLONG
    rmdir f/x -> ENOTDIR
    rmdir missing -> ENOENT
    rmdir loop1/x -> ELOOP
    rmdir {n*256} -> ENAMETOOLONG
    mkdir f/x -> ENOTDIR
    mkdir missing/x -> ENOENT
    mkdir loop1/x -> ELOOP
    mkdir {n*256} -> ENAMETOOLONG
    mkfifo f/x -> ENOTDIR
    mkfifo missing/x -> ENOENT
    mkfifo loop1/x -> ELOOP
    mkfifo {n*256} -> ENAMETOOLONG
    mknod f/x c 0644 1 3 -> ENOTDIR
    mknod missing/x c 0644 1 3 -> ENOENT
    mknod {n*256} c 0644 1 3 -> ENAMETOOLONG
    symlink t f/x -> ENOTDIR
    symlink t missing/x -> ENOENT
    symlink t loop1/x -> ELOOP
    symlink t {n*256} -> ENAMETOOLONG
    link f f/x -> ENOTDIR
    link missing x -> ENOENT
    link f missing/x -> ENOENT
    link f {n*256} -> ENAMETOOLONG
    link {n*256} x -> ENAMETOOLONG
    rename f f/x -> ENOTDIR
    rename missing x -> ENOENT
    rename f missing/x -> ENOENT
    rename f {n*256} -> ENAMETOOLONG
    rename {n*256} x -> ENAMETOOLONG
    rename loop1/x x -> ELOOP
    open x f/x r -> ENOTDIR
    open x missing r -> ENOENT
    open x missing/x rw,creat -> ENOENT
    open x loop1 r -> ELOOP
    open x {n*256} rw,creat -> ENAMETOOLONG
    utimes f/x now now -> ENOTDIR
    utimes missing now now -> ENOENT
    utimes loop1 now now -> ELOOP
    lstat {n*256} -> ENAMETOOLONG
    setxattr missing user.a =x -> ENOENT
    setxattr f/x user.a =x -> ENOTDIR
    getxattr {n*256} user.a -> ENAMETOOLONG
    `,
  ),
];
