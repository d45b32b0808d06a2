// Making the clone, and the words of the protocol in which a node stands.
#include "root_below.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <thread>
#include <vector>

#include "fuse_abi.h"
#include "negotiate.h"

namespace firstlight {

namespace {

constexpr char kName[] = "rootfs";

void fill_directory(fuse_attr* attr) {
  *attr = {};
  attr->ino = FUSE_ROOT_ID;
  attr->mode = S_IFDIR | 0755;
  attr->nlink = 2;
}

// The name is there for ever; attributes are asked for again, of whoever answers then.
size_t answer_lookup(const fuse_in_header& request, std::string_view name, uint8_t* reply) {
  if (request.nodeid != FUSE_ROOT_ID || name != kName) return 0;
  fuse_entry_out entry = {};
  entry.nodeid = kRootBelow;
  entry.entry_valid = UINT32_MAX;
  fill_directory(&entry.attr);
  memcpy(reply, &entry, sizeof entry);
  return sizeof entry;
}

size_t answer_getattr(uint8_t* reply) {
  fuse_attr_out out = {};
  fill_directory(&out.attr);
  memcpy(reply, &out, sizeof out);
  return sizeof out;
}

// One request: the two that a path takes. False where the device is of no use.
bool answer_one(int device, std::vector<uint64_t>& buffer) {
  auto* request = reinterpret_cast<uint8_t*>(buffer.data());
  ssize_t got = read(device, request, buffer.size() * sizeof buffer[0]);
  if (got < 0) return errno == EINTR || errno == EAGAIN || errno == ENOENT;
  const auto& header = *reinterpret_cast<const fuse_in_header*>(request);
  if (static_cast<size_t>(got) < sizeof header) return false;
  size_t body = static_cast<size_t>(got) - sizeof header;
  if (header.opcode == FUSE_FORGET || header.opcode == FUSE_BATCH_FORGET) return true;
  uint8_t reply[sizeof(fuse_entry_out)];
  size_t bytes = 0;
  if (header.opcode == FUSE_LOOKUP && body > 0) {
    const char* name = reinterpret_cast<const char*>(request + sizeof header);
    bytes = answer_lookup(header, {name, strnlen(name, body)}, reply);
  } else if (header.opcode == FUSE_GETATTR) {
    bytes = answer_getattr(reply);
  }
  fuse_out_header out = {};
  out.unique = header.unique;
  out.error = bytes > 0 ? 0 : -ENOENT;
  out.len = static_cast<uint32_t>(sizeof out + bytes);
  iovec pieces[2] = {{&out, sizeof out}, {reply, bytes}};
  return writev(device, pieces, bytes > 0 ? 2 : 1) >= 0 || errno == ENOENT;
}

// What a message says is one descriptor, beside a byte.
struct DescriptorMessage {
  alignas(cmsghdr) uint8_t control[CMSG_SPACE(sizeof(int))] = {};
  char byte = 0;
  iovec piece = {&byte, 1};
  msghdr header = {};

  DescriptorMessage() {
    header.msg_iov = &piece;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
  }
};

// Where it fails, the other end hears that there is none.
void send_descriptor(int socket, int fd) {
  DescriptorMessage message;
  cmsghdr* head = CMSG_FIRSTHDR(&message.header);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(head), &fd, sizeof fd);
  while (sendmsg(socket, &message.header, MSG_NOSIGNAL) < 0 && errno == EINTR) {
  }
}

// Empty where none was sent.
UniqueFd receive_descriptor(int socket) {
  DescriptorMessage message;
  ssize_t got;
  int flags = MSG_CMSG_CLOEXEC | MSG_DONTWAIT;
  while ((got = recvmsg(socket, &message.header, flags)) < 0 && errno == EINTR) {
  }
  cmsghdr* head = got > 0 ? CMSG_FIRSTHDR(&message.header) : nullptr;
  if (head == nullptr || head->cmsg_type != SCM_RIGHTS) return {};
  int fd;
  memcpy(&fd, CMSG_DATA(head), sizeof fd);
  return UniqueFd(fd);
}

// Gives the calling thread a table of descriptors of its own, with these two alone.
bool keep_only(int one, int other) {
  auto close_all = [](int first, int last, unsigned flags) {
    if (first > last) return true;
    return syscall(SYS_close_range, first, last, flags) == 0;
  };
  int low = std::min(one, other);
  int high = std::max(one, other);
  return close_all(high + 1, INT32_MAX, CLOSE_RANGE_UNSHARE) && close_all(low + 1, high - 1, 0) &&
         close_all(0, low - 1, 0);
}

// A thread that is killed waits for the answer to what it asks (fs/fuse/dev.c,
// request_wait_answer), and who would have answered is dead by then. So the wait has to end with
// the device, of which this thread must have no copy.
void ask(int mount, int answer) {
  if (keep_only(mount, answer)) {
    unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW;
    UniqueFd clone(open_tree(mount, kName, flags));
    if (clone) send_descriptor(answer, clone.get());
  }
  shutdown(answer, SHUT_RDWR);
}

// Has the kernel forget the name: where it stays the root, the tree says what it has there.
void drop_name(int device) {
  fuse_out_header header = {};
  fuse_notify_inval_entry_out entry = {};
  header.error = FUSE_NOTIFY_INVAL_ENTRY;
  header.len = sizeof header + sizeof entry + sizeof kName;
  entry.parent = FUSE_ROOT_ID;
  entry.namelen = sizeof kName - 1;
  iovec pieces[3] = {
      {&header, sizeof header}, {&entry, sizeof entry}, {const_cast<char*>(kName), sizeof kName}};
  // ENOENT: it had not got so far as to ask for it.
  while (writev(device, pieces, 3) < 0 && errno == EINTR) {
  }
}

uint64_t* word_at(uint8_t* request, size_t bytes, size_t offset) {
  return offset + sizeof(uint64_t) <= bytes ? reinterpret_cast<uint64_t*>(request + offset)
                                            : nullptr;
}

void take_up(uint64_t* node) {
  if (node != nullptr && *node == kRootBelow) *node = FUSE_ROOT_ID;
}

}  // namespace

UniqueFd clone_root_below(int mount, UniqueFd* device) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return {};
  UniqueFd done(ends[0]);
  UniqueFd answer(ends[1]);
  std::thread asks(ask, mount, answer.get());
  // As large as any request may be (fuse_dev_do_read).
  std::vector<uint64_t> buffer((kMaxWrite + abi::kMinReadBuffer) / sizeof(uint64_t));
  pollfd wait[2] = {{done.get(), POLLIN, 0}, {device->get(), POLLIN, 0}};
  for (;;) {
    int ready = poll(wait, 2, -1);
    if (ready < 0 && errno == EINTR) continue;
    // The thread is through.
    if (ready > 0 && wait[0].revents != 0) break;
    if (ready > 0 && answer_one(device->get(), buffer)) continue;
    // Nobody answers the thread any more, unless it hears that the connection is gone.
    device->reset();
    break;
  }
  asks.join();
  UniqueFd clone = receive_descriptor(done.get());
  if (!clone && *device) drop_name(device->get());
  return clone;
}

void take_root_up(uint8_t* request, size_t bytes) {
  if (bytes < sizeof(fuse_in_header)) return;
  auto* header = reinterpret_cast<fuse_in_header*>(request);
  take_up(&header->nodeid);
  size_t body = sizeof *header;
  switch (header->opcode) {
    case FUSE_RENAME:
      static_assert(offsetof(fuse_rename_in, newdir) == 0);
      [[fallthrough]];
    case FUSE_RENAME2:
      static_assert(offsetof(fuse_rename2_in, newdir) == 0);
      take_up(word_at(request, bytes, body));
      break;
    case FUSE_BATCH_FORGET: {
      size_t at = body + sizeof(fuse_batch_forget_in);
      for (; at < bytes; at += sizeof(fuse_forget_one)) take_up(word_at(request, bytes, at));
      break;
    }
    default:
      break;
  }
}

void put_root_down(iovec* pieces, int count, NotifyHead& room) {
  // All notifications that are sent begin with the node, or the directory, that they are about.
  static_assert(offsetof(fuse_notify_inval_inode_out, ino) == 0);
  static_assert(offsetof(fuse_notify_inval_entry_out, parent) == 0);
  if (count < 2 || pieces[1].iov_len < sizeof(uint64_t) || pieces[1].iov_len > sizeof room) return;
  memcpy(room, pieces[1].iov_base, pieces[1].iov_len);
  if (room[0] != FUSE_ROOT_ID) return;
  room[0] = kRootBelow;
  pieces[1].iov_base = room;
}

}  // namespace firstlight
