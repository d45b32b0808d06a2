// Clauses about modes, owners and permissions: docs/SEMANTICS.md, section 4.
import { type Clause, clause } from '../script.ts';

export const modes: Clause[] = [
  clause(
    '4.1',
    'chmod changes the mode and the time of change, of every kind of file, and nothing else.',
    `
    file f 0644 1000:1000 =text
    directory d 0755
    mkfifo p 0644
    --
    mark f f
    tick
    chmod f 0711
    lstat f mode,uid,gid,size -> ok 0711 1000 1000 4
    since f f -> ok c.
    same f f -> ok same
    chmod d 0700
    lstat d mode -> ok 0700
    chmod p 0600
    lstat p mode -> ok 0600
    `,
    `
    file f 0644
    --
    open r f r
    chmod @r 0600
    lstat f mode -> ok 0600
    lstat @r mode -> ok 0600
    `,
    `
    file f 0644
    symlink f l
    --
    chmod l 0600
    lstat f mode -> ok 0600
    lstat l type,mode -> ok symlink 0777
    `,
  ),
  clause(
    '4.2',
    'Only its owner and root change the mode of a file; others get EPERM.',
    `
    file f 0666 1000:1000
    --
    as 1000 1000
    chmod f 0644
    as 2000 2000
    chmod f 0666 -> EPERM
    as 2000 1000 1000
    chmod f 0666 -> EPERM
    as 0 0
    lstat f mode -> ok 0644
    `,
  ),
  clause(
    '4.3',
    'chmod by an owner outside the group of the file drops its setgid bit.',
    `
    file f 0644 1000:2000
    file g 0644 1000:1000
    --
    as 1000 1000
    chmod f 2755
    lstat f mode -> ok 0755
    chmod g 2755
    lstat g mode -> ok 2755
    as 0 0
    chmod f 6755
    lstat f mode -> ok 6755
    `,
  ),
  clause(
    '4.5',
    'chown by root sets owner and group, also of symlinks; -1 leaves one of them.',
    `
    file f 0644
    symlink f l
    directory d 0755
    mkfifo p 0644
    --
    mark f f
    tick
    chown f 1000 2000
    lstat f uid,gid -> ok 1000 2000
    since f f -> ok c.
    same f f -> ok same
    chown f -1 3000
    lstat f uid,gid -> ok 1000 3000
    chown f 4000 -1
    lstat f uid,gid -> ok 4000 3000
    chown f 4294967294 65534
    lstat f uid,gid -> ok 4294967294 65534
    chown l 5 6 nofollow
    lstat l uid,gid -> ok 5 6
    lstat f uid,gid -> ok 4294967294 65534
    chown l 7 8
    lstat f uid,gid -> ok 7 8
    chown d 9 10
    chown p 11 12
    lstat d uid,gid -> ok 9 10
    lstat p uid,gid -> ok 11 12
    open r f r
    chown @r 13 14
    lstat f uid,gid -> ok 13 14
    `,
  ),
  clause(
    '4.6',
    'An owner may change the group to one of its own, and nothing else: EPERM.',
    `
    file f 0644 1000:1000
    --
    as 1000 1000 2000
    chown f -1 2000
    chown f 1000 1000
    chown f -1 3000 -> EPERM
    chown f 0 -1 -> EPERM
    as 2000 2000
    chown f -1 2000 -> EPERM
    chown f -1 -1 -> ok
    as 0 0
    lstat f uid,gid -> ok 1000 1000
    `,
  ),
  clause(
    '4.7',
    'chown clears setuid and setgid of a program, for root too; a directory keeps its bits.',
    `
    file f 6755 1000:1000
    file g 2644 1000:1000
    directory d 6755 1000:1000
    --
    chown f 2000 2000
    lstat f mode -> ok 0755
    chown g 2000 2000
    lstat g mode -> ok 2644
    chown d 2000 2000
    lstat d mode -> ok 6755
    chmod f 6755
    chown f 1000 1000
    chmod f 6755
    as 1000 1000 2000
    chown f -1 2000
    lstat f mode -> ok 0755
    `,
  ),
  clause(
    '4.8',
    'A write by somebody without privileges clears setuid and setgid, also on files that stood in the image.',
    `
    file f 6777 1000:1000 =text
    --
    as 2000 2000
    open w f w
    write w =T
    close w
    lstat f mode,size -> ok 0777 4
    `,
    `
    file f 6777 1000:1000 =text
    --
    as 2000 2000
    truncate f 1
    lstat f mode,size -> ok 0777 1
    `,
    `
    file f 6777 1000:1000 =text
    --
    as 2000 2000
    open w f w,trunc
    lstat f mode,size -> ok 0777 0
    `,
    `
    file f 6777 1000:1000 =text
    --
    open w f w
    write w =T
    lstat f mode -> ok 6777
    truncate f 1
    lstat f mode -> ok 6777
    `,
  ),
  clause(
    '4.9',
    'The mode decides who reads, writes and searches: owner first, then group, supplementary groups too, then others.',
    `
    file f 0704 1000:1000 =text
    file g 0046 1000:1000 =text
    file h 0440 1000:3000 =text
    --
    as 1000 1000
    open a f rw
    open b g r -> EACCES
    as 2000 1000
    open c f r -> EACCES
    open d g r
    open e g w -> EACCES
    as 2000 2000
    open h f r
    open i f w -> EACCES
    open j g rw
    open k h r -> EACCES
    as 2000 2000 3000
    open l h r
    open m h w -> EACCES
    access h r
    access h w -> EACCES
    as 0 0
    open n h rw
    access f x
    access h x -> EACCES
    `,
    `
    directory d 0711 1000:1000
    file d/f 0644 1000:1000
    directory e 0744 1000:1000
    file e/f 0644 1000:1000
    --
    as 2000 2000
    lstat d/f type -> ok file
    list d -> EACCES
    lstat e/f -> EACCES
    open x e r,dir
    unlink d/f -> EACCES
    open y d/new rw,creat -> EACCES
    rename d/f d/g -> EACCES
    mkdir d/d -> EACCES
    `,
  ),
  clause(
    '4.10',
    'In a sticky directory only the owner of a file, of the directory, and root remove or rename.',
    `
    directory d 1777 1000:1000
    file d/f 0666 2000:2000
    directory d/g 0777 2000:2000
    file d/h 0666 3000:3000
    --
    as 3000 3000
    unlink d/f -> EPERM
    rename d/f d/x -> EPERM
    rename d/h d/f -> EPERM
    rename d/h d/f exchange -> EPERM
    rmdir d/g -> EPERM
    as 2000 2000
    rename d/f d/x
    unlink d/x
    as 1000 1000
    rmdir d/g
    unlink d/h
    list d -> ok
    `,
  ),
  clause(
    '4.11',
    'New files take their group from a setgid directory; new directories take the bit too.',
    `
    directory d 2777 1000:3000
    directory d/was 0755
    --
    rmdir d/was
    as 2000 2000
    open f d/f rw,creat 0666
    mkdir d/d 0755
    mkdir d/was 0755
    lstat d/was mode,uid,gid -> ok 2755 2000 3000
    mkfifo d/p 0644
    symlink t d/l
    lstat d/f uid,gid -> ok 2000 3000
    lstat d/d mode,uid,gid -> ok 2755 2000 3000
    lstat d/p uid,gid -> ok 2000 3000
    lstat d/l uid,gid -> ok 2000 3000
    open g d/g rw,creat 2775
    lstat d/g mode -> ok 0755
    `,
  ),
  clause(
    '4.12',
    'New files get the mode that was asked for, less the umask, and the ids of their maker.',
    `
    --
    as 1000 2000
    umask 027
    open f f rw,creat 0666
    mkdir d 0777
    mkfifo p 0666
    umask 0
    open g g rw,creat 0777
    mkdir e 1777
    as 0 0
    mknod n c 0666 1 3
    lstat f mode,uid,gid,nlink,size -> ok 0640 1000 2000 1 0
    lstat d mode,uid,gid -> ok 0750 1000 2000
    lstat p mode,uid,gid,nlink -> ok 0640 1000 2000 1
    lstat g mode -> ok 0777
    lstat e mode -> ok 1777
    lstat n mode,rdev,type -> ok 0666 1:3 char
    `,
  ),
  clause(
    '4.13',
    'POSIX ACLs: named users and groups, the mask, and the group bits of the mode that show it.',
    `
    file f 0600 1000:1000 =text
    --
    setacl f access u::6,u:2000:6,g::0,g:3000:4,m::6,o::0
    lstat f mode -> ok 0660
    as 2000 2000
    open a f rw
    as 2001 3000
    open b f r
    open c f w -> EACCES
    as 2002 2002
    open d f r -> EACCES
    as 1000 1000
    chmod f 0640
    as 2000 2000
    open e f w -> EACCES
    open g f r
    setacl f access u::6,g::6,o::6 -> EPERM
    as 0 0
    listxattr f -> ok system.posix_acl_access
    removexattr f system.posix_acl_access
    listxattr f -> ok
    `,
    `
    file f 0600 1000:1000 =text
    setacl f access u::6,u:2000:4,g::0,m::4,o::0
    --
    as 2000 2000
    open a f r
    open b f w -> EACCES
    as 1000 1000
    open c f w
    write c =T
    as 2000 2000
    open d f r
    read d 9 -> ok =Text
    as 0 0
    listxattr f -> ok system.posix_acl_access
    lstat f mode -> ok 0640
    `,
  ),
  clause(
    '4.14',
    'A default ACL is inherited by new files and directories, and then the umask does not count.',
    `
    directory d 0777
    setacl d default u::7,u:2000:7,g::7,m::7,o::0
    --
    umask 077
    open f d/f rw,creat 0666
    mkdir d/d 0777
    umask 022
    listxattr d/f -> ok system.posix_acl_access
    lstat d/f mode -> ok 0660
    listxattr d/d -> ok system.posix_acl_access system.posix_acl_default
    lstat d/d mode -> ok 0770
    as 2000 2000
    open g d/f rw
    open h d/d/h rw,creat 0666
    lstat d/d/h mode -> ok 0660
    `,
  ),
];
