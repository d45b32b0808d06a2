// Clauses about making and removing names: docs/SEMANTICS.md, section 5.
import { type Clause, clause } from '../script.ts';

export const names: Clause[] = [
  clause(
    '5.1',
    'mkdir makes an empty directory and marks the parent; what stands there already gives EEXIST, a symlink too.',
    `
    file f 0644
    directory d 0755
    symlink missing l
    mkfifo p 0644
    --
    mark . .
    tick
    mkdir e 0755
    since . . -> ok mc.
    list e -> ok
    mkdir f -> EEXIST
    mkdir d -> EEXIST
    mkdir l -> EEXIST
    mkdir p -> EEXIST
    mkdir . -> EEXIST
    mkdir d/. -> EEXIST
    mkdir e/ -> EEXIST
    mkdir g/
    lstat g type -> ok dir
    `,
  ),
  clause(
    '5.2',
    'rmdir removes an empty directory, also one that was full in the image; else ENOTEMPTY, ENOTDIR, EINVAL.',
    `
    directory d 0755
    file d/f 0644
    directory d/e 0755
    directory empty 0755
    file f 0644
    symlink empty l
    --
    rmdir d -> ENOTEMPTY
    rmdir f -> ENOTDIR
    rmdir l -> ENOTDIR
    rmdir empty/. -> EINVAL
    rmdir d/e/.. -> ENOTEMPTY
    mark . .
    tick
    rmdir empty
    since . . -> ok mc.
    lstat empty -> ENOENT
    unlink d/f
    rmdir d -> ENOTEMPTY
    rmdir d/e
    list d -> ok
    rmdir d
    list . -> ok f l
    mkdir d 0700
    list d -> ok
    lstat d mode -> ok 0700
    `,
  ),
  clause(
    '5.3',
    'unlink removes a name of any kind but a directory (EISDIR), counts links down, marks parent and file.',
    `
    file f 0644 0:0 =text
    link f g
    symlink f l
    mkfifo p 0644
    directory d 0755
    --
    mark f f
    mark . .
    tick
    unlink g
    since f f -> ok c. | overlay/image ok . (9.2)
    since . . -> ok mc.
    lstat f nlink -> ok 1 | overlay/image ok 2 (9.2)
    unlink l
    unlink p
    unlink d -> EISDIR
    unlink f
    list . -> ok d
    lstat f -> ENOENT
    open f f rw,creat,excl
    lstat f nlink,size -> ok 1 0
    `,
    `
    mknod c c 0644 1 3
    --
    unlink c
    lstat c -> ENOENT
    `,
  ),
  clause(
    '5.4',
    'A file that is open lives on without a name, and so does a directory.',
    `
    file f 0644 0:0 =text
    directory d 0755
    --
    open a f rw
    open b d r,dir
    unlink f
    rmdir d
    read a 9 -> ok =text
    write a =more
    read a 99 0 -> ok =textmore
    lstat @a nlink,size -> ok 0 8
    chmod @a 0600
    lstat @a mode -> ok 0600
    lstat f -> ENOENT
    open c @b/f rw,creat -> ENOENT
    mkdir @b/d -> ENOENT
    getdents b 4096 -> ENOENT
    mkdir d
    open f f rw,creat,excl
    read a 99 0 -> ok =textmore
    read f 9 0 -> ok =
    `,
    `
    file f 0644 0:0 =text
    file g 0644 0:0 =text
    file h 0644 0:0 =text
    --
    put f w =TEXT
    open p f path
    open q g path
    chmod h 0640
    open r h path
    unlink f
    unlink g
    put g2 w,creat =other
    rename g2 h
    chmod @p 0600 proc
    chmod @q 0600 proc -> ok | overlay/image EEXIST (9.9)
    chmod @r 0600 proc
    lstat @p mode,nlink,size -> ok 0600 0 4
    lstat @q mode,nlink,size -> ok 0600 0 4 | overlay/image ok 0644 1 4 (9.9)
    lstat @r mode,nlink,size -> ok 0600 0 4
    open a @p r
    read a 9 -> ok =TEXT
    open b @q r
    read b 9 -> ok =text
    open c @r r
    read c 9 -> ok =text
    `,
    `
    mkfifo p 0644
    --
    open a p rw,nonblock
    put q w,creat =other
    rename q p
    chmod @a 0600
    unlink p -> ok | overlay/image ESTALE (9.9)
    `,
  ),
  clause(
    '5.5',
    'link gives a file one more name, and both are the same file, also where it stood in the image.',
    `
    file f 0644 0:0 =text
    directory d 0755
    --
    mark f f
    tick
    link f d/g
    since f f -> ok c.
    same f d/g -> ok same | overlay/image ok other (9.3)
    same f f -> ok same
    lstat f nlink -> ok 2
    lstat d/g nlink -> ok 2
    open w d/g w,append
    write w =more
    open r f r
    read r 99 -> ok =textmore
    chmod f 0600
    lstat d/g mode -> ok 0600
    unlink f
    lstat d/g nlink,size -> ok 1 8
    link d/g f
    same f f -> ok same | overlay/image ok other (9.3)
    `,
    `
    file f 0644
    symlink f l
    --
    link l m
    lstat m type,nlink -> ok symlink 2
    link l n follow
    lstat n type,nlink -> ok file 2
    `,
  ),
  clause(
    '5.6',
    'link answers EEXIST for a name that is there, EPERM for a directory, EXDEV for another filesystem.',
    `
    file f 0644
    directory d 0755
    symlink missing l
    --
    link f f -> EEXIST
    link f d -> EEXIST
    link f l -> EEXIST
    link d e -> EPERM
    link f OTHER/f -> EXDEV
    `,
  ),
  clause(
    '5.7',
    'The names of a hard link in the image stay names of one file, whichever of them is changed.',
    `
    only plain,fuse
    file a 0644 0:0 =text
    link a b
    directory d 0755
    link a d/c
    --
    mark a a
    open w b w,append
    write w =more
    open r d/c r
    read r 99 -> ok =textmore
    same a a -> ok same
    same a b -> ok same
    same a d/c -> ok same
    lstat a nlink,size -> ok 3 8
    chmod d/c 0600
    lstat a mode -> ok 0600
    unlink a
    lstat b nlink -> ok 2
    rename d/c e
    same a e -> ok same
    truncate e 2
    lstat b size -> ok 2
    `,
    `
    only plain,fuse
    file a 0644 0:0 =text
    link a b
    link a c
    --
    unlink b
    lstat a nlink -> ok 2
    setxattr c user.x =1
    getxattr a user.x -> ok =1
    link c d
    lstat a nlink -> ok 3
    utimes d 5 6.000000007
    lstat a mtime -> ok 6.000000007
    `,
  ),
  clause(
    '5.8',
    'symlink keeps any target up to 4,095 bytes; longer ones are ENAMETOOLONG, an empty one ENOENT.',
    `
    file f 0644
    symlink f l
    --
    readlink l -> ok f
    readlink f -> EINVAL
    lstat l type,mode,size -> ok symlink 0777 1
    readlink l 0 -> EINVAL
    symlink x f -> EEXIST
    symlink x l -> EEXIST
    symlink {t*4095} m
    lstat m size -> ok 4095
    symlink {t*4096} n -> ENAMETOOLONG
    symlink some%20where/%ff%01 o
    readlink o -> ok some%20where/%ff%01
    symlink /dev/null abs
    readlink abs -> ok /dev/null
    readlink abs 4 -> ok /dev
    `,
  ),
  clause(
    '5.9',
    'mkfifo, mknod and bind make fifos, devices, sockets and files; devices only for root; EEXIST for what is there.',
    `
    file f 0644
    symlink missing l
    --
    mkfifo f -> EEXIST
    mkfifo l -> EEXIST
    mknod f c 0644 1 3 -> EEXIST
    mknod c c 0640 1 3
    lstat c type,mode,rdev -> ok char 0640 1:3
    mknod b b 0600 259 100000
    lstat b type,rdev -> ok block 259:100000
    mknod g f 0644
    lstat g type,size -> ok file 0
    open g g rw
    mknod p p 0644
    lstat p type -> ok fifo
    mknod s s 0644
    lstat s type -> ok socket
    bind t
    lstat t type -> ok socket
    bind t -> EADDRINUSE
    as 2000 2000
    mknod d c 0666 1 3 -> EPERM
    mknod e b 0666 1 3 -> EPERM
    mknod h f 0644
    mkfifo i
    lstat h uid -> ok 2000
    as 0 0
    open n c rw
    write n =gone
    read n 10 -> ok =
    `,
  ),
  clause(
    '5.10',
    'A character device 0/0 is how a whiteout is written: making one is refused with EPERM.',
    `
    only overlay,fuse
    --
    mknod w c 0644 0 0 -> EPERM
    lstat w -> ENOENT
    mknod b b 0644 0 0
    lstat b type,rdev -> ok block 0:0
    `,
  ),
  clause(
    '5.11',
    'Names are bytes: up to 255 of any but / and NUL, and paths below the limit of one call can be chained.',
    `
    open f {n*255} w,creat
    close f
    --
    lstat {n*255} type -> ok file
    open g {m*255} rw,creat
    write g =x
    rename {m*255} {k*255}
    unlink {k*255}
    open h %ff%fe%01%7f rw,creat
    mkdir %e2%98%83
    symlink t {l*255}
    mkdir {d*255}
    mkdir {d*255}/{d*255}
    open i {d*255}/{d*255}/{f*255} rw,creat
    write i =deep
    list {d*255}/{d*255} -> ok {f*255}
    list . -> ok {d*255} {l*255} {n*255} %e2%98%83 %ff%fe%01%7f
    `,
  ),
];
