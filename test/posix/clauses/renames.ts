// Clauses about rename: docs/SEMANTICS.md, section 6.
import { type Clause, clause } from '../script.ts';

export const renames: Clause[] = [
  clause(
    '6.1',
    'rename moves a file, with its identity and all attributes, and marks both directories.',
    `
    directory d 0755
    directory e 0755
    file d/f 0640 1000:1000 =text
    setxattr d/f user.a =1
    --
    mark f d/f
    mark d d
    mark e e
    tick
    rename d/f e/g
    same f e/g -> ok same
    lstat d/f -> ENOENT
    lstat e/g mode,uid,gid,size -> ok 0640 1000 1000 4
    getxattr e/g user.a -> ok =1
    since f e/g -> ok c.
    since d d -> ok mc.
    since e e -> ok mc.
    list d -> ok
    list e -> ok g
    open r e/g r
    read r 9 -> ok =text
    rename e/g d/f
    rename d/f d/h
    same f d/h -> ok same
    list d -> ok h
    `,
    `
    symlink target l
    mkfifo p 0600
    mknod c c 0600 1 3
    --
    rename l m
    readlink m -> ok target
    rename p q
    lstat q type,mode -> ok fifo 0600
    rename c e
    lstat e type,rdev -> ok char 1:3
    list . -> ok e m q
    `,
  ),
  clause(
    '6.2',
    'rename replaces what stands at the new name, at once; who has it open keeps it.',
    `
    file f 0644 0:0 =new
    file g 0600 0:0 =old
    symlink x l
    --
    open o g r
    mark f f
    rename f g
    lstat f -> ENOENT
    same f g -> ok same
    lstat g mode,nlink -> ok 0644 1
    read o 9 -> ok =old
    lstat @o nlink -> ok 0 | overlay/image ok 1 (9.4)
    open n g r
    read n 9 -> ok =new
    rename g l
    lstat l type -> ok file
    read n 9 0 -> ok =new
    `,
  ),
  clause(
    '6.3',
    'Two names of one file: rename of the one to the other does nothing.',
    `
    file f 0644 0:0 =text
    link f g
    --
    rename f g
    list . -> ok f g | overlay/image ok g (9.2)
    lstat f nlink -> ok 2 | overlay/image ENOENT (9.2)
    rename f f -> ok | overlay/image ENOENT (9.2)
    lstat f nlink -> ok 2 | overlay/image ENOENT (9.2)
    `,
  ),
  clause(
    '6.4',
    'rename refuses EISDIR, ENOTDIR, ENOTEMPTY, EINVAL (into itself), EBUSY and EXDEV.',
    `
    file f 0644
    directory d 0755
    directory d/e 0755
    directory full 0755
    file full/f 0644
    directory empty 0755
    --
    rename f d -> EISDIR
    rename d f -> ENOTDIR
    rename empty full -> ENOTEMPTY | overlay/image EXDEV (9.6)
    rename d d/e -> EINVAL
    rename d d/e/x -> EINVAL
    rename d/e d -> ENOTEMPTY
    rename f OTHER/f -> EXDEV
    rename d/. x -> EBUSY
    rename d/e/.. x -> EBUSY
    rename f f/ -> ENOTDIR
    list . -> ok d empty f full
    `,
  ),
  clause(
    '6.5',
    'RENAME_NOREPLACE gives EEXIST where the new name is taken.',
    `
    file f 0644 0:0 =f
    file g 0644 0:0 =g
    symlink missing l
    directory d 0755
    --
    rename f g noreplace -> EEXIST
    rename f l noreplace -> EEXIST
    rename f d noreplace -> EEXIST
    rename f f noreplace -> EEXIST
    rename f h noreplace
    lstat f -> ENOENT
    open r h r
    read r 9 -> ok =f
    unlink g
    rename h g noreplace
    `,
  ),
  clause(
    '6.6',
    'RENAME_EXCHANGE swaps two names of any kinds; ENOENT where one is missing.',
    `
    file f 0644 0:0 =f
    file g 0600 0:0 =g
    symlink t l
    directory d 0755
    --
    mark f f
    mark g g
    rename f g exchange
    same f g -> ok same
    same g f -> ok same
    lstat f mode -> ok 0600
    rename f missing exchange -> ENOENT
    rename missing f exchange -> ENOENT
    rename f l exchange
    lstat f type -> ok symlink
    readlink f -> ok t
    same g l -> ok same
    rename l d/x
    rename d/x f exchange
    readlink d/x -> ok t
    rename f g noreplace,exchange -> EINVAL
    rename d d/x exchange -> EINVAL
    `,
    `
    only plain,fuse
    file f 0644 0:0 =f
    directory d 0755
    file d/x 0644 0:0 =x
    --
    rename f d exchange
    lstat d type -> ok file
    list f -> ok x
    open r f/x r
    read r 9 -> ok =x
    `,
  ),
  clause(
    '6.7',
    'RENAME_WHITEOUT is refused with EINVAL.',
    `
    only overlay,fuse
    file f 0644
    --
    rename f g whiteout -> EINVAL
    list . -> ok f
    `,
  ),
  clause(
    '6.8',
    'A directory of the image can be renamed, with all that stands below it; what was there before is replaced where empty.',
    `
    directory d 0750 1000:1000
    directory d/e 0755
    file d/f 0644 0:0 =f
    file d/e/g 0644 0:0 =g
    directory to 0755
    directory empty 0711
    --
    mark d d
    mark g d/e/g
    rename d to/d -> ok | overlay/image EXDEV (9.6)
    same d to/d -> ok same | overlay/image ENOENT (9.6)
    same g to/d/e/g -> ok same | overlay/image ENOENT (9.6)
    list to -> ok d | overlay/image ok (9.6)
    `,
    `
    only plain,fuse
    directory d 0750 1000:1000
    directory d/e 0755
    file d/f 0644 0:0 =f
    file d/e/g 0644 0:0 =g
    directory empty 0711
    --
    rename d empty
    lstat d -> ENOENT
    lstat empty mode,uid,gid -> ok 0750 1000 1000
    list empty -> ok e f
    list empty/e -> ok g
    open w empty/e/g w,append
    write w =more
    open r empty/e/g r
    read r 9 -> ok =gmore
    mkdir d
    list d -> ok
    open n d/f rw,creat,excl
    rename empty/e d/e
    list d -> ok e f
    list d/e -> ok g
    rename d/e/g empty/h
    read r 9 0 -> ok =gmore
    rename empty d -> ENOTEMPTY
    unlink d/f
    rmdir d/e
    rename empty d
    list d -> ok f h
    rename d a
    rename a b
    rename b c
    list c -> ok f h
    open q c/f r
    read q 9 -> ok =f
    mkdir c/sub
    rename c/f c/sub/f
    rename c/sub x
    list x -> ok f
    list c -> ok h
    `,
  ),
  clause(
    '6.9',
    'Moving a directory to another parent asks for the right to write in it, and keeps ".." true.',
    `
    only plain,fuse
    directory a 0777
    directory b 0777
    directory a/mine 0755 2000:2000
    directory a/theirs 0755 1000:1000
    --
    as 2000 2000
    rename a/theirs b/theirs -> EACCES
    rename a/theirs a/others
    rename a/mine b/mine
    mark b b
    same b b/mine/.. -> ok same
    list a -> ok others
    list b -> ok mine
    `,
  ),
  clause(
    '6.10',
    'Names that were removed or renamed away in the image can be made again, as something else.',
    `
    file f 0644 0:0 =f
    directory d 0755
    file d/x 0644 0:0 =x
    symlink t l
    --
    unlink f
    mkdir f
    list f -> ok
    unlink d/x
    rmdir d
    open w d rw,creat
    write w =d
    unlink l
    mkfifo l
    lstat l type -> ok fifo
    rmdir f
    symlink d f
    open r f r
    read r 9 -> ok =d
    list . -> ok d f l
    unlink f
    open n f rw,creat,excl 0600
    lstat f size,mode,nlink -> ok 0 0600 1
    rename f x
    rename l f
    list . -> ok d f x
    `,
  ),
];
