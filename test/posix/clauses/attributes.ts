// Clauses about times, xattrs, identity and listings: docs/SEMANTICS.md, section 8.
import { type Clause, clause } from '../script.ts';

const NUMBERS = Array.from({ length: 300 }, (_, i) => `n${String(i).padStart(3, '0')}`);
const MANY = NUMBERS.map((name) => `mkfifo d/${name}`);
/** Of the first forty, those that clause 8.8 leaves alone. */
const UNCHANGED = NUMBERS.slice(0, 40).filter((name) => !/(05|35|10|30)$/.test(name));

export const attributes: Clause[] = [
  clause(
    '8.1',
    'utimensat sets times to the nanosecond, also of symlinks and by descriptor; now and omit work as they say.',
    `
    file f 0644 1000:1000
    symlink f l
    directory d 0755
    --
    mark f f
    tick
    utimes f 1.000000001 2.999999999
    lstat f atime,mtime -> ok 1.000000001 2.999999999
    since f f -> ok amc.
    same f f -> ok same
    utimes f omit 3
    lstat f atime,mtime -> ok 1.000000001 3.000000000
    utimes f omit omit
    lstat f atime,mtime -> ok 1.000000001 3.000000000
    mark g f
    utimes f 4 now
    lstat f atime -> ok 4.000000000
    utimes l 5 6 nofollow
    lstat l atime,mtime -> ok 5.000000000 6.000000000
    lstat f atime -> ok 4.000000000
    utimes d 7 8
    lstat d atime,mtime -> ok 7.000000000 8.000000000
    open r f r
    utimes @r 9 10.5
    lstat f atime,mtime -> ok 9.000000000 10.000000005
    utimes f -1 -1
    lstat f mtime -> ok -1.000000000
    utimes f 4294967296 4294967296
    lstat f mtime -> ok 4294967296.000000000
    `,
  ),
  clause(
    '8.2',
    "Setting a time is the owner's (EPERM); setting it to now is also a writer's (EACCES).",
    `
    file f 0666 1000:1000
    file g 0644 1000:1000
    --
    as 2000 2000
    utimes f 1 1 -> EPERM
    utimes f now now
    utimes g now now -> EACCES
    utimes f now 1 -> EPERM
    as 1000 1000
    utimes g 1 2
    utimes g now omit
    `,
  ),
  clause(
    '8.3',
    'Writing marks the time of modification and change, reading does not; birth does not change.',
    `
    file f 0644 0:0 =text
    --
    mark f f
    tick
    open w f rw
    lstat f size -> ok 4
    write w =more 4
    close w
    since f f -> ok mc.
    lstat f size -> ok 8
    mark g f
    chmod f 0600
    born g f -> ok same | fuse/image ok unknown (10.6)
    open x f w,append
    write x =x
    born g f -> ok same | fuse/image ok unknown (10.6)
    `,
    `
    file f 0644 0:0 =text
    --
    utimes f 1 2
    open w f rw
    lstat f mtime -> ok 2.000000000
    write w =T
    close w
    lstat f size -> ok 4
    mark h f
    tick
    open v f rw
    write v =U
    close v
    since h f -> ok mc.
    `,
    `
    --
    open n new rw,creat
    mark n new
    born n new -> ok same
    tick
    write n =text
    since n new -> ok mc.
    close n
    open n new r
    read n 9 -> ok =text
    chmod new 0600
    born n new -> ok same
    `,
    `
    file f 0644 0:0 =text
    --
    mark f f
    tick
    open w f rw
    close w
    since f f -> ok . | overlay/image ok c. (10.8) | fuse/image ok c. (10.8)
    mark g f
    tick
    open v f w
    close v
    since g f -> ok .
    `,
    `
    file f 0644 0:0 1*65536
    --
    open w f rw
    map m w 65536 rw shared
    close w
    lstat f size -> ok 65536
    mark f f
    tick
    poke m 0 =mapped
    since f f -> ok mc.
    open a f r
    close a
    open a f r
    close a
    open a f r
    close a
    open a f r
    msync m
    mark g f
    tick
    poke m 8192 =mapped
    since g f -> ok mc.
    unmap m
    close a
    lstat f size -> ok 65536
    `,
  ),
  clause(
    '8.4',
    'xattrs of the namespaces user, trusted and security can be set, replaced, listed and removed.',
    `
    file f 0644
    setxattr f user.old =1
    directory d 0755
    symlink f l
    mkfifo p 0666
    --
    mark f f
    tick
    setxattr f user.new =2
    since f f -> ok c.
    setxattr f user.new =3 create -> EEXIST
    setxattr f user.new =3 replace
    setxattr f user.x =3 replace -> ENODATA
    getxattr f user.new -> ok =3
    getxattr f user.old -> ok =1
    getxattr f user.none -> ENODATA
    getxattr f user.new 0 -> ok 1
    setxattr f user.long 1*1000
    getxattr f user.long 10 -> ERANGE
    listxattr f 3 -> ERANGE
    listxattr f -> ok user.long user.new user.old
    removexattr f user.old
    removexattr f user.old -> ENODATA
    listxattr f -> ok user.long user.new
    setxattr f trusted.a =t
    setxattr f security.thing =s
    listxattr f -> ok security.thing trusted.a user.long user.new
    setxattr f user.empty =
    getxattr f user.empty -> ok =
    setxattr f user.{n*250} =n
    setxattr f user.{n*251} =n -> ERANGE
    setxattr f user. =n -> EINVAL
    setxattr f nowhere.a =n -> EOPNOTSUPP
    setxattr d user.a =d
    setxattr d user.a =e
    listxattr d -> ok user.a
    setxattr l trusted.l =l
    getxattr l trusted.l -> ok =l
    getxattr f trusted.l -> ENODATA
    setxattr l user.l =l -> EPERM
    setxattr p user.p =p -> EPERM
    open r f r
    setxattr @r user.fd =9
    getxattr @r user.fd -> ok =9
    as 2000 2000
    setxattr f user.a =1 -> EACCES
    getxattr f user.new -> ok =3
    setxattr f trusted.b =1 -> EPERM
    getxattr f trusted.a -> ENODATA
    listxattr f -> ok security.thing user.empty user.fd user.long user.new user.{n*250}
    removexattr f user.new -> EACCES
    `,
  ),
  clause(
    '8.5',
    'File capabilities are kept, are seen, and go with the next write.',
    `
    file f 0755 0:0 =text
    setxattr f security.capability hex:0100000200040000000000000000000000000000
    --
    getxattr f security.capability 0 -> ok 20
    chmod f 0755
    getxattr f security.capability 0 -> ok 20
    open w f w
    getxattr f security.capability 0 -> ok 20
    write w =T
    getxattr f security.capability -> ENODATA
    `,
    `
    file f 0755 0:0 =text
    setxattr f security.capability hex:0100000200040000000000000000000000000000
    --
    chown f 1 1
    getxattr f security.capability -> ENODATA
    `,
  ),
  clause(
    '8.6',
    'A file keeps its inode number across every change, and hard links share it.',
    `
    file f 0644 0:0 =text
    directory d 0755
    --
    mark f f
    mark d d
    chmod f 0600
    same f f -> ok same
    setxattr f user.a =1
    open w f w,append
    write w =more
    same f f -> ok same
    truncate f 1
    same f f -> ok same
    rename f d/g
    same f d/g -> ok same
    link d/g h
    same f h -> ok same | overlay/image ok other (9.3)
    open n d/new rw,creat
    chmod d 0700
    same d d -> ok same
    list d -> ok g new
    list . -> ok d h
    `,
  ),
  clause(
    '8.7',
    'A listing agrees with what lookups say, in whatever pieces it is read, and shows every change.',
    `
    directory d 0755
    ${MANY.join('\n    ')}
    file d/f 0644
    --
    list d 64 -> ok f ${NUMBERS.join(' ')}
    list d 512 -> ok f ${NUMBERS.join(' ')}
    unlink d/n000
    unlink d/n299
    open f d/new rw,creat
    rename d/n100 d/z100
    mkdir d/dir
    list d 200 -> ok dir f ${NUMBERS.filter((name) => !/000|299|100/.test(name)).join(' ')} new z100
    lstat d/n000 -> ENOENT
    open r d r,dir
    getdents r 32768 all -> ok 303
    unlink d/n001
    getdents r 32768 -> ok 0
    seek r 0 set
    forget
    getdents r 32768 all -> ok 302
    given n001 -> ok 0
    given n002 -> ok 1
    given z100 -> ok 1
    `,
  ),
  clause(
    '8.8',
    'A directory that changes while it is listed neither repeats nor loses names that did not change.',
    `
    directory d 0755
    ${MANY.slice(0, 40).join('\n    ')}
    --
    open r d r,dir
    getdents r 400
    open n d/new rw,creat
    unlink d/n005
    unlink d/n035
    rename d/n010 d/y010
    rename d/n030 d/x030
    chmod d/n020 0600
    truncate d/new 5
    getdents r 100
    mkdir d/later
    getdents r 32768 all
    getdents r 32768 -> ok 0
    ${UNCHANGED.map((name) => `given ${name} -> ok 1`).join('\n    ')}
    `,
  ),
  clause(
    '8.9',
    'statfs tells of the filesystem that takes the writes: names up to 255 bytes, sizes that make sense.',
    `
    file f 0644
    --
    statfs . -> ok namelen=255 sane=yes
    statfs f -> ok namelen=255 sane=yes
    statfs missing -> ENOENT
    `,
  ),
  clause(
    '8.10',
    'Directories count their subdirectories as links; files count their names.',
    `
    only plain,fuse
    directory d 0755
    directory d/a 0755
    directory d/b 0755
    file d/f 0644
    --
    lstat d nlink -> ok 4
    mkdir d/c
    lstat d nlink -> ok 5
    rmdir d/a
    lstat d nlink -> ok 4
    rename d/b c
    lstat d nlink -> ok 3
    unlink d/f
    lstat d nlink -> ok 3
    lstat d/f nlink -> ENOENT
    `,
  ),
];
