// Mounting (fsopen(2), fsmount(2), move_mount(2); else mount(2)), the handshake, and reading and
// writing /dev/fuse.
#include "transport_dev.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>

#include <mutex>

#include "root_below.h"

namespace firstlight {

namespace {

// The kernel sends INIT as soon as there is a filesystem; more than this is a kernel that hangs.
constexpr int kHandshakeMs = 10000;

void do_nothing(int) {}

// The reader of a lane's own thread; none on other threads.
thread_local LaneReader* own_reader = nullptr;

// So long a string fsconfig(2) takes (strndup_user, with its NUL). mount(2) takes PATH_MAX.
constexpr size_t kOptionMax = 255;

// A mount that stands nowhere yet, and goes with its descriptor; an empty one with errno set.
UniqueFd mount_detached(const MountOptions& options, int device) {
  UniqueFd context(fsopen("fuse", FSOPEN_CLOEXEC));
  if (!context) return {};
  auto set = [&](const char* key, const char* value) {
    auto command = value == nullptr ? FSCONFIG_SET_FLAG : FSCONFIG_SET_STRING;
    return fsconfig(context.get(), command, key, value, 0) == 0;
  };
  bool ready = set("subtype", "firstlight") && set("source", options.source.c_str()) &&
               set("fd", std::to_string(device).c_str()) && set("rootmode", "40000") &&
               set("user_id", "0") && set("group_id", "0") && set("default_permissions", nullptr);
  if (ready && options.allow_other) ready = set("allow_other", nullptr);
  bool writable = options.wanted.writable;
  if (ready && !writable) ready = set("ro", nullptr);
  if (!ready || fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) return {};
  // Neither nosuid nor nodev: a root filesystem has setuid programs and device nodes.
  return UniqueFd(fsmount(context.get(), FSMOUNT_CLOEXEC, writable ? 0 : MOUNT_ATTR_RDONLY));
}

// The older way, by which the mount can be seen before the handshake: 0 or a positive errno.
int mount_at_once(const MountOptions& options, int device) {
  std::string data = "fd=" + std::to_string(device) +
                     ",rootmode=40000,user_id=0,group_id=0,default_permissions" +
                     (options.allow_other ? ",allow_other" : "");
  unsigned long flags = options.wanted.writable ? 0 : MS_RDONLY;
  int result = ::mount(options.source.c_str(), options.mount_point.c_str(), "fuse.firstlight",
                       flags, data.c_str());
  return result == 0 ? 0 : errno;
}

// Makes the detached mount; where that cannot be had, none but the one at its path. 0 or a positive
// errno.
int make_mount(const MountOptions& options, int device, UniqueFd* detached) {
  if (options.source.size() > kOptionMax) return mount_at_once(options, device);
  *detached = mount_detached(options, device);
  if (*detached) return 0;
  // ENOSYS, EPERM: filters of system calls that were written before there were these (containers').
  // Who may not mount hears so of mount(2).
  bool filtered = errno == ENOSYS || errno == EPERM;
  return filtered ? mount_at_once(options, device) : errno;
}

// Puts a detached mount at a path: 0 or a positive errno.
int attach(int mount, const char* path) {
  unsigned flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS;
  if (move_mount(mount, "", AT_FDCWD, path, flags) == 0) return 0;
  int error = errno;
  if (error != EINVAL) return error;
  // So it calls a file, too, of which mount(2) has a better word.
  UniqueFd directory(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC));
  return directory || errno != ENOTDIR ? error : ENOTDIR;
}

}  // namespace

int wake_signal() {
  // A realtime signal beyond those that the C library, Node.js and sanitizers use. Without
  // SA_RESTART, so that read(2) ends with EINTR.
  static std::once_flag once;
  int number = SIGRTMIN + 9;
  std::call_once(once, [number] {
    struct sigaction action = {};
    action.sa_handler = do_nothing;
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, nullptr);
  });
  return number;
}

std::unique_ptr<DevTransport> DevTransport::mount(const MountOptions& options, Features* features,
                                                  int* error, std::string* what) {
  auto fail = [&](int code, std::string text) {
    *error = code;
    *what = std::move(text);
    return nullptr;
  };
  UniqueFd device(open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!device) return fail(errno, "open /dev/fuse");
  UniqueFd detached;
  int code = make_mount(options, device.get(), &detached);
  if (code != 0) return fail(code, "mount " + options.mount_point);
  std::unique_ptr<DevTransport> transport(new DevTransport());
  transport->lanes_.push_back(std::move(device));
  bool stands = !detached;
  code = transport->handshake(options.wanted, features, what);
  bool below = features->posix_acl && !stands;
  if (code == 0) code = transport->take_root(below, &detached, what);
  if (code == 0) {
    code = transport->clone_lanes(options.lanes);
    *what = "clone /dev/fuse";
  }
  // Lazily: somebody may look into the mount already. Closing the device then ends it for them.
  if (code != 0 && stands) umount2(options.mount_point.c_str(), MNT_DETACH);
  if (code != 0) return fail(code, *what);
  if (stands) return transport;
  // What has failed until here has shown nothing to anybody.
  code = attach(detached.get(), options.mount_point.c_str());
  if (code != 0) return fail(code, "mount " + options.mount_point);
  return transport;
}

int DevTransport::take_root(bool below, UniqueFd* mount, std::string* what) {
  if (!below) return 0;
  // Also without a clone: the kernel forgets what it was told for a moment.
  node_below_ = true;
  UniqueFd root = clone_root_below(mount->get(), &lanes_[0]);
  *what = "make the root";
  if (!lanes_[0]) return EIO;
  root_below_ = static_cast<bool>(root);
  if (root_below_) *mount = std::move(root);
  return 0;
}

int DevTransport::handshake(const Wanted& wanted, Features* features, std::string* what) {
  int fd = lanes_[0].get();
  alignas(8) uint8_t buffer[abi::kMinReadBuffer * 2];
  pollfd wait = {fd, POLLIN, 0};
  int ready;
  while ((ready = poll(&wait, 1, kHandshakeMs)) < 0 && errno == EINTR) {
  }
  *what = "handshake with the kernel";
  if (ready <= 0) return ready < 0 ? errno : ETIMEDOUT;
  ssize_t got;
  while ((got = read(fd, buffer, sizeof buffer)) < 0 && errno == EINTR) {
  }
  if (got < 0) return errno;
  const auto* header = reinterpret_cast<const fuse_in_header*>(buffer);
  constexpr size_t kOldestInit = 16;
  if (static_cast<size_t>(got) < sizeof *header + kOldestInit || header->opcode != FUSE_INIT) {
    return EPROTO;
  }
  abi::InitOut out;
  const auto* in = reinterpret_cast<const fuse_init_in*>(buffer + sizeof *header);
  int status = negotiate(in, static_cast<size_t>(got) - sizeof *header, wanted, &out, features);
  if (status != 0) *what = "FUSE protocol " + features->protocol() + " is too old";
  fuse_out_header reply = {};
  reply.unique = header->unique;
  reply.error = status;
  reply.len = sizeof reply + (status == 0 ? sizeof out : 0);
  iovec pieces[2] = {{&reply, sizeof reply}, {&out, sizeof out}};
  if (writev(fd, pieces, status == 0 ? 2 : 1) < 0) return errno;
  return -status;
}

int DevTransport::clone_lanes(uint32_t lanes) {
  uint32_t first = static_cast<uint32_t>(lanes_[0].get());
  while (lanes_.size() < lanes) {
    UniqueFd clone(open("/dev/fuse", O_RDWR | O_CLOEXEC));
    if (!clone || ioctl(clone.get(), abi::kDevClone, &first) != 0) return errno;
    lanes_.push_back(std::move(clone));
  }
  for (const UniqueFd& lane : lanes_) readers_.emplace_back(lane.get(), &gate_, lanes == 1);
  return 0;
}

ssize_t DevTransport::receive(uint32_t lane, uint8_t* buffer, size_t bytes) {
  own_reader = &readers_[lane];
  for (;;) {
    if (stopped_.load(std::memory_order_acquire)) return 0;
    ssize_t got = own_reader->read(buffer, bytes);
    if (got >= 0) {
      if (node_below_) take_root_up(buffer, static_cast<size_t>(got));
      return got;
    }
    switch (errno) {
      case EINTR:   // a signal: stopped, or a debugger
      case EAGAIN:  // another lane was faster
      case ENOENT:  // the caller went away while the request was being handed over
        continue;
      case ENODEV:        // unmounted
      case ECONNABORTED:  // aborted through /sys/fs/fuse/connections
        return 0;
      default:
        return -errno;
    }
  }
}

void DevTransport::about_to_block() {
  if (own_reader != nullptr) own_reader->pass_on();
}

void DevTransport::may_block() {
  if (own_reader != nullptr) own_reader->may_block();
}

int DevTransport::reply(uint32_t lane, const iovec* pieces, int count) {
  ssize_t sent;
  while ((sent = writev(lanes_[lane].get(), pieces, count)) < 0 && errno == EINTR) {
  }
  return sent < 0 ? -errno : 0;
}

int DevTransport::open_backing(int fd) {
  abi::BackingMap map = {fd, 0, 0};
  int id = ioctl(lanes_[0].get(), abi::kBackingOpen, &map);
  return id < 0 ? -errno : id;
}

void DevTransport::close_backing(int32_t id) {
  uint32_t number = static_cast<uint32_t>(id);
  // Fails only where the connection is gone, and the id with it.
  ioctl(lanes_[0].get(), abi::kBackingClose, &number);
}

int DevTransport::notify(iovec* pieces, int count) {
  NotifyHead head;
  if (root_below_) put_root_down(pieces, count, head);
  ssize_t sent;
  while ((sent = writev(lanes_[0].get(), pieces, count)) < 0 && errno == EINTR) {
  }
  return sent < 0 ? -errno : 0;
}

ssize_t DevTransport::receive_now(uint8_t* buffer, size_t bytes) {
  fcntl(lanes_[0].get(), F_SETFL, O_RDWR | O_NONBLOCK);
  ssize_t got;
  while ((got = read(lanes_[0].get(), buffer, bytes)) < 0 && (errno == EINTR || errno == ENOENT)) {
  }
  if (got > 0 && node_below_) take_root_up(buffer, static_cast<size_t>(got));
  return got < 0 ? -errno : got;
}

void DevTransport::stop() { stopped_.store(true, std::memory_order_release); }

}  // namespace firstlight
