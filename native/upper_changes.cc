// New files, and removals, in directories that the tree has lent: made here as it would make them,
// and told to it afterwards. Whatever is not plainly one of these is an upcall, a failure too: the
// tree fails in the same way, and has the words for it.
//
// Why this cannot collide with the tree: it is outside its gate (tree_gate.h), and hears of the
// change before it begins with anything else, so it never works on a directory that it does not
// know. What it goes by itself between two requests (waits, copies in work/, syncs) names nothing
// in the layer.
//
// Why it cannot collide with other lanes, or with what the kernel holds for true: it asks with the
// directory's lock held (i_rwsem, exclusive), for UNLINK with that of the file too. So there is no
// other request on a name of the directory, and none that removes it, replaces it or changes its
// ACLs: those hold its own lock. To be moved it may be; its descriptor stays good. LINK to the file
// and RENAME over it hold the file's lock. What lanes answer for the directory's attributes
// meanwhile, the kernel does not keep (UpcallChannel::still).
//
// Why nothing is lost when the process dies: the layer alone says what there is. News only save the
// tree a look at it.
#include "upper_changes.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "as_owner.h"
#include "attributes.h"
#include "upcall_decode.h"
#include "upper_open.h"

namespace firstlight {

namespace {

/** A change, with its news; the tree stays outside as long as it lives. */
class Change {
 public:
  explicit Change(UpcallChannel& channel) : channel_(channel) {
    if (!channel_.gate().keep_out()) return;
    begun_ = channel_.begin_change();
    if (!begun_) channel_.gate().let_in();
  }
  ~Change() {
    if (!begun_) return;
    channel_.end_change(std::move(news_));
    channel_.gate().let_in();
  }
  Change(const Change&) = delete;
  Change& operator=(const Change&) = delete;

  /** False: there can be no change now. */
  explicit operator bool() const { return begun_; }
  void tell(std::shared_ptr<Upcall> news) { news_ = std::move(news); }

 private:
  UpcallChannel& channel_;
  bool begun_ = false;
  std::shared_ptr<Upcall> news_;
};

std::shared_ptr<Upcall> news_of(const Context& c, double what, std::string_view name) {
  auto news = std::make_shared<Upcall>();
  news->numbers[0] = what;
  news->numbers[1] = static_cast<double>(c.node());
  news->name.assign(name);
  return news;
}

/** A lane's umask and capabilities are set when it needs them first. */
bool may_make_files() {
  static thread_local const bool ready = prepare_to_make_files() == 0;
  return ready;
}

UniqueFd make_file(const Context& c, const LentDirectory& directory, const char* name,
                   struct stat* st) {
  const auto& in = c.request.as<fuse_create_in>();
  const fuse_in_header& header = *c.request.header;
  AsOwner owner(header.uid, header.gid);
  if (!owner.enter()) return UniqueFd();
  // How durable writes are goes with the access; what else a program asks for, passthrough gives
  // it.
  int flags = static_cast<int>(in.flags & (O_ACCMODE | O_SYNC));
  flags |= O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  UniqueFd fd(openat(directory.fd.get(), name, flags, in.mode & 07777 & ~in.umask));
  if (!fd || fstat(fd.get(), st) == 0) return fd;
  unlinkat(directory.fd.get(), name, 0);
  return UniqueFd();
}

/** Makes the file, and says so. False: nothing has been made. */
bool create(const Context& c, const LentDirectory& directory, std::string_view name,
            UpperOpen* open, fuse_entry_out* entry) {
  UpcallChannel& channel = *c.session.channel();
  Change change(channel);
  if (!change) return false;
  uint64_t node = channel.next_node();
  if (node == 0) return false;
  struct stat st;
  UniqueFd fd = make_file(c, directory, name.data(), &st);
  if (!fd) {
    channel.return_node(node);
    return false;
  }
  *entry = {};
  entry->nodeid = node;
  entry->entry_valid = kForever;
  // The kernel may keep them, or its open(2) would ask for them at once, though the file may be
  // mapped to be written: an empty file has nothing to store to, and of whatever makes it longer
  // the kernel knows, and asks.
  entry->attr_valid = kForever;
  fill_from_stat(st, kFirstOwnNode + st.st_ino, &entry->attr);
  open->node = node;
  open->fd = std::make_shared<const UniqueFd>(std::move(fd));
  open->ino = entry->attr.ino;
  open->entry = entry;
  // Before anybody can know the node: the tree takes it for adopted when it hears of it. Without it
  // everything comes to the tree.
  UniqueFd again = reopen(open->fd->get(), O_RDONLY);
  if (again) c.session.adopt(node, std::move(again), open->ino, 0, true);
  auto news = news_of(c, Upcall::kCreated, name);
  news->numbers[Upcall::kArg] = static_cast<double>(node);
  news->numbers[Upcall::kArg + 1] = static_cast<double>(open->ino);
  news->numbers[Upcall::kArg + 2] = c.request.as<fuse_create_in>().flags;
  change.tell(std::move(news));
  return true;
}

/** Removes the name, and says so. False: it is there still. */
bool remove(const Context& c, const LentDirectory& directory, std::string_view name) {
  Change change(*c.session.channel());
  if (!change) return false;
  // For those who have it open; the tree keeps it until the kernel has forgotten the file.
  UniqueFd file(openat(directory.fd.get(), name.data(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  struct stat st;
  if (!file || fstat(file.get(), &st) != 0) return false;
  if (!S_ISREG(st.st_mode) || st.st_nlink != 1) return false;
  if (unlinkat(directory.fd.get(), name.data(), 0) != 0) return false;
  auto news = news_of(c, Upcall::kRemoved, name);
  news->fd = std::move(file);
  change.tell(std::move(news));
  return true;
}

}  // namespace

int op_create_upper(const Context& c) {
  const auto& in = c.request.as<fuse_create_in>();
  auto name = c.request.name(sizeof in);
  auto directory = name ? find_lent(c, *name) : nullptr;
  // Setuid and setgid ask for more than passthrough gives.
  bool plain = (in.mode & (S_ISUID | S_ISGID)) == 0;
  if (directory == nullptr || !directory->changes || !plain || !may_make_files()) {
    return send_upcall(c, decode_create);
  }
  c.session.may_block();
  UpperOpen open;
  fuse_entry_out entry;
  if (!create(c, *directory, *name, &open, &entry)) return send_upcall(c, decode_create);
  open.unique = c.request.header->unique;
  open.lane = c.request.lane;
  int result = open_upper(c.session, open);
  if (result == 0) return kAnswered;
  // The kernel has not taken the node.
  c.session.forget(open.node, 1);
  // A reply that did not arrive needs no other.
  return result == -ENOENT || result == -ENODEV ? kAnswered : result;
}

int op_unlink_upper(const Context& c) {
  auto name = c.request.name();
  auto directory = name ? find_lent(c, *name) : nullptr;
  if (directory == nullptr || !directory->changes) return send_upcall(c, decode_remove);
  c.session.may_block();
  return remove(c, *directory, *name) ? 0 : send_upcall(c, decode_remove);
}

}  // namespace firstlight
