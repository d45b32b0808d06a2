// Clauses about opening, reading, writing, mapping and locking: docs/SEMANTICS.md, section 7.
import { type Clause, clause } from '../script.ts';

export const contents: Clause[] = [
  clause(
    '7.1',
    'O_CREAT makes a file or opens what is there; with O_EXCL it gives EEXIST, for a dangling symlink too.',
    `
    file f 0644 0:0 =text
    symlink f l
    symlink target dangling
    directory d 0755
    --
    mark . .
    tick
    open a new rw,creat
    since . . -> ok mc.
    open b f rw,creat
    lstat f size -> ok 4
    open c f rw,creat,excl -> EEXIST
    open d l rw,creat,excl -> EEXIST
    open e dangling rw,creat,excl -> EEXIST
    open f dangling rw,creat
    lstat target type -> ok file
    open g d rw,creat -> EISDIR
    open h l rw,nofollow -> ELOOP
    open i d rw -> EISDIR
    open j f r,dir -> ENOTDIR
    open k new r,creat,excl -> EEXIST
    `,
    `
    --
    umask 022
    open r r r,creat,excl 0
    lstat r mode -> ok 0000
    as 1000 1000
    open w w rw,creat,excl 0444
    write w =text
    open x w w -> EACCES
    read w 9 0 -> ok =text
    `,
  ),
  clause(
    '7.2',
    'O_TRUNC empties a file and keeps who it is; the right to write is needed.',
    `
    file f 0644 1000:1000 =text
    --
    mark f f
    tick
    open a f w,trunc
    lstat f size,mode,uid -> ok 0 0644 1000
    same f f -> ok same
    since f f -> ok mc.
    as 2000 2000
    open b f w,trunc -> EACCES
    `,
    `
    file f 0644 0:0 7*300000
    --
    open a f rw,trunc
    read a 9 -> ok =
    write a =x
    lstat f size -> ok 1
    `,
  ),
  clause(
    '7.3',
    'Every write-open of an unchanged file sees and keeps the whole content around what it writes.',
    `
    file f 0644 0:0 7*300000
    file g 0644 0:0 =text
    --
    open r f r
    open w f rw
    read w 300000 -> ok 300000:af9ab19fad7334a7
    write w =XX 150000
    read w 4 149999 -> *
    lstat f size -> ok 300000
    read w 300000 0 -> *
    open a g w,append
    write a =1
    write a =2
    open b g w,append
    write b =3
    write a =4
    open c g r
    read c 99 -> ok =text1234
    seek a 0 cur -> ok 8
    `,
  ),
  clause(
    '7.4',
    'truncate by name and by descriptor shortens and lengthens, with zeros; EISDIR, EINVAL, EACCES, EFBIG.',
    `
    file f 0644 1000:1000 =textmore
    directory d 0755
    mkfifo p 0644
    --
    mark f f
    tick
    truncate f 4
    since f f -> ok mc.
    same f f -> ok same
    open r f rw
    read r 99 0 -> ok =text
    truncate @r 6
    read r 99 0 -> ok =text%00%00
    truncate @r 0
    lstat f size -> ok 0
    truncate f 4294967296
    lstat f size,sparse -> ok 4294967296 yes
    read r 4 4294967292 -> ok =%00%00%00%00
    truncate d 0 -> EISDIR
    truncate p 0 -> EINVAL
    truncate f -1 -> EINVAL
    truncate f 9223372036854775807 -> EFBIG
    open o f r
    truncate @o 0 -> EINVAL
    as 2000 2000
    truncate f 0 -> EACCES
    `,
  ),
  clause(
    '7.5',
    'Holes stay holes, when a file is copied up too: SEEK_DATA and SEEK_HOLE, punching, zeroing, reserving.',
    `
    file f 0644
    open w f w
    write w 1*4096 1048576
    truncate @w 4194304
    close w
    --
    lstat f size -> ok 4194304
    open r f rw
    lstat f sparse -> ok yes | overlay/image * (10.1) | fuse/image * (10.1)
    write r =x 2097152
    read r 4096 1048576 -> ok 4096:bfafa52632c7a63f
    read r 4 0 -> ok =%00%00%00%00
    lstat f size,sparse -> ok 4194304 yes | overlay/image * (10.1) | fuse/image * (10.1)
    `,
    `
    file f 0644
    --
    open r f rw
    write r 1*65536
    truncate @r 1048576
    write r 2*65536 983040
    seek r 0 data -> ok 0
    seek r 0 hole -> ok 65536
    seek r 65536 data -> ok 983040
    seek r 1048576 data -> ENXIO
    seek r 1048577 hole -> ENXIO
    fallocate r punch 4096 8192
    seek r 0 hole -> ok 4096
    seek r 4096 data -> ok 12288
    read r 4 4096 -> ok =%00%00%00%00
    lstat f size -> ok 1048576
    fallocate r zero 16384 4096
    read r 4 16384 -> ok =%00%00%00%00
    fallocate r plain 1048576 4096
    lstat f size -> ok 1052672
    fallocate r keep 2097152 4096
    lstat f size -> ok 1052672
    fallocate r plain -1 4096 -> EINVAL
    fallocate r plain 0 0 -> EINVAL
    open o f r
    fallocate o plain 0 4096 -> EBADF
    `,
    `
    file f 0644 0:0 1*65536
    --
    open r f r
    seek r 0 data -> ok 0
    seek r 0 hole -> ok 65536
    seek r 65536 data -> ENXIO
    seek r 100 end -> ok 65636
    read r 1 -> ok =
    `,
  ),
  clause(
    '7.6',
    'copy_file_range copies between files of the tree, from files of the image too.',
    `
    file f 0644 0:0 3*300000
    --
    open r f r
    open w g rw,creat
    copyrange r 100000 w 0 150000 -> ok 150000 | overlay/image EXDEV (9.5)
    lstat g size -> ok 150000 | overlay/image ok 0 (9.5)
    copyrange r 299999 w 150000 5000 -> ok 1 | overlay/image EXDEV (9.5)
    copyrange r 300000 w 0 10 -> ok 0
    open x f rw
    copyrange x 0 x 200000 1000 -> ok 1000
    copyrange x 0 x 500 1000 -> EINVAL
    copyrange w 0 r 0 10 -> EBADF
    `,
  ),
  clause(
    '7.7',
    'Shared mappings and descriptors show each other what is written, across open, fsync and rename.',
    `
    file f 0644 0:0 1*65536
    --
    open w f rw
    map m w 65536 rw shared
    poke m 0 =mapped
    read w 6 0 -> ok =mapped
    write w =written 4096
    peek m 4096 7 -> ok =written
    poke m 65530 =end
    msync m
    sync w
    sync w data
    rename f g
    open r g r
    read r 3 65530 -> ok =end
    unlink g
    poke m 8192 =gone
    read w 4 8192 -> ok =gone
    unmap m
    close w
    read r 4 8192 -> ok =gone
    `,
    `
    file f 0644 0:0 =text
    --
    open w f rw
    map m w 8192 rw shared
    peek m 4 4 -> ok =%00%00%00%00
    peek m 4096 1 -> SIGBUS
    truncate @w 8192
    poke m 4096 =x
    read w 1 4096 -> ok =x
    map p w 4096 rw private
    poke p 0 =Q
    read w 4 0 -> ok =text
    open r f r
    map q r 4096 r shared
    peek q 0 4 -> ok =text
    write w =TEXT 0
    peek q 0 4 -> ok =TEXT
    map z r 4096 rw shared -> EACCES
    `,
  ),
  clause(
    '7.8',
    'A program that runs cannot be written, a file open for writing cannot be run: ETXTBSY.',
    `
    copyself waits
    --
    exec waits
    open w waits w -> ETXTBSY
    open t waits w,trunc -> ETXTBSY
    truncate waits 0 -> ETXTBSY
    rename waits moved-waits
    end -> ok 0
    rename moved-waits waits
    open w waits w
    exec waits -> ETXTBSY
    close w
    exec waits
    unlink waits
    end -> ok 0
    `,
    `
    file f 0644 0:0 =text
    file g 0755 0:0 =text
    --
    exec f -> EACCES
    exec g -> ENOEXEC
    exec . -> EACCES
    `,
  ),
  clause(
    '7.9',
    'O_TMPFILE makes a file without a name, which link gives one; with O_EXCL it cannot have one.',
    `
    directory d 0755
    --
    open t d rw,tmpfile 0640
    list d -> ok
    write t =text
    lstat @t nlink,mode,size -> ok 0 0640 4
    link @t d/f
    lstat d/f nlink,mode,size -> ok 1 0640 4
    open r d/f r
    read r 9 -> ok =text
    write t =more
    read r 9 0 -> ok =textmore
    open u d rw,tmpfile,excl 0600
    link @u d/g -> ENOENT
    open v d r,tmpfile -> EINVAL
    open x d/f rw,tmpfile -> ENOTDIR
    `,
  ),
  clause(
    '7.10',
    'flock and fcntl locks keep others out, on files of the image too, and end with their descriptor.',
    `
    file f 0644 0:0 =text
    --
    open a f r
    open b f r
    flock a sh
    flock b sh
    flock b ex -> EAGAIN
    flock a un
    flock b ex
    flock a sh -> EAGAIN
    close b
    flock a ex
    open c f rw
    lock c posix w 0 2
    locked a r 0 1 -> ok w | fuse/image ok free (10.3)
    locked a r 2 1 -> ok free
    lock c posix r 0 2
    locked a r 0 1 -> ok free
    locked a w 1 1 -> ok r | fuse/image ok free (10.3)
    lock c posix u 0 0
    locked a w 0 9 -> ok free
    open d f rw
    lock c ofd w 0 2
    lock d ofd w 1 2 -> EAGAIN
    lock d ofd w 2 2
    close c
    lock d ofd w 0 2
    lock a posix w 0 1 -> EBADF
    `,
  ),
  clause(
    '7.11',
    'O_DIRECT, O_SYNC and O_DSYNC are taken, and what they write is what others read.',
    `
    file f 0644 0:0 1*65536
    --
    open d f rw,direct
    open r f r
    write d 2*4096 8192 -> ok 4096
    read d 4096 8192 -> ok 4096:dd3bebda7052d271
    read r 4096 8192 -> ok 4096:dd3bebda7052d271
    open s f rw,sync
    write s =sync 0
    read r 4 0 -> ok =sync
    open e f rw,dsync
    write e =dsyn 4
    read r 8 0 -> ok =syncdsyn
    sync e fs
    `,
  ),
  clause(
    '7.12',
    'A file and a directory may be reopened through /proc/self/fd, and O_PATH gives no right to read.',
    `
    file f 0644 0:0 =text
    directory d 0755
    --
    open p f path
    read p 4 -> EBADF
    lstat @p size -> ok 4
    open r @p r
    read r 9 -> ok =text
    open w @p rw -> ok | fuse/image ESTALE (10.4)
    write w =T -> ok 1 | fuse/image EBADF (10.4)
    read r 9 0 -> ok =Text | fuse/image ok =text (10.4)
    open q d path,dir
    open n @q/n rw,creat
    list d -> ok n
    `,
  ),
];
