// A writable session without a kernel: requests of every kind, sound and damaged, from several
// lanes, and a tree on a thread of its own that answers them in any way that the interface allows.
// The fake transport holds both to the protocol.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <condition_variable>
#include <map>
#include <set>
#include <thread>

#include "../ops.h"
#include "../upcall_reply.h"
#include "harness.h"

namespace firstlight::test {

namespace {

constexpr uint32_t kLanes = 3;
constexpr uint64_t kOwnFiles = 4;
constexpr uint32_t kLease = 64;

struct Deaf : SessionEvents {
  std::atomic<int> closes{0};
  void wanted(uint32_t, uint32_t, uint32_t) override {}
  void timed_out(uint32_t, double) override {}
  void closed(const std::string&) override { closes++; }
};

// Answers whatever comes, at once or later. A file of its own for each node, as a tree has.
class WildTree {
 public:
  WildTree(std::shared_ptr<UpcallChannel> channel, const Store& store, uint64_t seed)
      : channel_(std::move(channel)), store_(store), random_(seed) {
    channel_->attach([this] {
      std::lock_guard lock(mutex_);
      woken_ = true;
      wake_.notify_one();
    });
    lease();
    thread_ = std::thread([this] { run(); });
  }
  ~WildTree() {
    {
      std::lock_guard lock(mutex_);
      ended_ = true;
      wake_.notify_one();
    }
    thread_.join();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (!ended_) {
      wake_.wait(lock, [&] { return woken_ || ended_; });
      woken_ = false;
      lock.unlock();
      while (auto upcall = channel_->take_next()) take(upcall);
      release_held(false);
      lock.lock();
    }
    lock.unlock();
    release_held(true);
    channel_->detach();
  }

  void take(const std::shared_ptr<Upcall>& upcall) {
    if (upcall->call == 0) return take_message(upcall);
    TreeInside inside(channel_->gate());
    while (auto news = channel_->take_news()) take_message(news);
    compare_lent();
    answer_or_not(upcall);
    compare_lent();
  }

  // News of what the lanes have done in a lent directory must be true, whole and in order.
  void take_message(const std::shared_ptr<Upcall>& upcall) {
    check(*upcall);
    double what = upcall->numbers[0];
    if (static_cast<int>(what) == FUSE_FORGET && upcall->numbers[Upcall::kArg] == 0)
      die("a FORGET of nothing");
    bool created = what == Upcall::kCreated;
    if (!created && what != Upcall::kRemoved) return;
    auto& names = lent_[static_cast<uint64_t>(upcall->numbers[1])];
    if (created) {
      if (!names.insert(upcall->name).second) die("a file was made over another");
      if (!made_.insert(upcall->numbers[Upcall::kArg]).second) die("a node id was given twice");
      if (made_.size() % kLease == kLease / 2) lease();
    } else {
      if (names.erase(upcall->name) == 0) die("what was not there was removed");
      struct stat st;
      if (fstat(upcall->fd.get(), &st) != 0 || st.st_nlink != 0) die("another file was removed");
    }
  }

  // Nothing changes while the tree is inside, and nothing has that it has not heard of.
  void compare_lent() {
    for (const auto& [node, names] : lent_) {
      std::set<std::string> found;
      DIR* directory = opendir(lent_dir(node).c_str());
      if (directory == nullptr) die("a lent directory");
      while (const dirent* entry = readdir(directory)) {
        std::string name = entry->d_name;
        if (name != "." && name != "..") found.insert(name);
      }
      closedir(directory);
      if (found != names) die("the lent directory is not what the tree was told");
    }
  }

  std::string lent_dir(uint64_t node) { return store_.dir() + "/lent" + std::to_string(node); }

  void lend(Session& session, uint64_t node) {
    std::string path = lent_dir(node);
    if (lent_.try_emplace(node).second && mkdir(path.c_str(), 0755) != 0) die("a lent directory");
    auto directory = std::make_shared<LentDirectory>();
    directory->fd.reset(open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    directory->row = kNone;
    directory->changes = random_() % 8 != 0;
    session.lent().put(node, std::move(directory));
  }

  void lease() {
    channel_->lease_nodes(next_lease_, kLease);
    next_lease_ += kLease;
  }

  void check(const Upcall& upcall) {
    for (double number : upcall.numbers) {
      if (number != number) die("an upcall with no number");
    }
  }

  void answer_or_not(const std::shared_ptr<Upcall>& upcall) {
    check(*upcall);
    if (random_() % 8 == 0) do_something(*upcall);
    switch (random_() % 16) {
      case 0:
        held_.push_back(upcall->call);
        break;
      case 1: {
        auto session = channel_->session();
        if (session != nullptr) {
          channel_->wait_for_content(upcall->call,
                                     static_cast<uint32_t>(random_() % session->toc().contents()));
        }
        break;
      }
      case 2:
        reply_result(*channel_, upcall->call, 1 + static_cast<int>(random_() % 100));
        break;
      case 3:
        channel_->again(upcall->call);
        break;
      default:
        answer(*upcall);
    }
    channel_->hold(upcall);
    if (held_.size() > 20) release_held(false);
  }

  void release_held(bool all) {
    for (uint64_t call : held_) {
      if (!all && random_() % 2 == 0) {
        channel_->again(call);
      } else {
        reply_result(*channel_, call, EIO);
      }
    }
    held_.clear();
  }

  // Nodes change while requests are under way.
  void do_something(const Upcall& upcall) {
    auto session = channel_->session();
    if (session == nullptr) return;
    uint64_t node = random_() % 4 == 0 ? upcall.node : 1 + random_() % session->toc().rows();
    switch (random_() % 5) {
      case 4:
        node = kFirstOwnNode + random_() % kOwnFiles;
        if (random_() % 3 == 0) {
          session->lent().drop(node);
        } else {
          lend(*session, node);
        }
        break;
      case 0:
        channel_->thaw(node);
        break;
      case 1:
        session->notifier().invalidate(node, random_() % 2 == 0 ? "" : "name");
        break;
      case 2:
        session->notifier().mark(random_());
        break;
      case 3:
        node = kFirstOwnNode + random_() % kOwnFiles;
        if (random_() % 2 == 0) {
          bool directory = random_() % 4 == 0;
          session->adopt(node, open_own(node), node, directory ? 2 : 0, random_() % 2 == 0);
        } else {
          session->disown(node);
        }
    }
  }

  UniqueFd open_own(uint64_t node) {
    std::string path = store_.dir() + "/own" + std::to_string(node);
    UniqueFd fd(open(path.c_str(), O_RDONLY | O_CREAT | O_CLOEXEC, 0600));
    if (!fd) die("a file of the writable layer");
    return fd;
  }

  void answer(const Upcall& upcall) {
    double slots[kAttrSlots] = {7, 100, 8, -5, 3, 1e9, 0, 1e9, 0, S_IFREG | 0644, 1};
    uint64_t own = kFirstOwnNode + random_() % kOwnFiles;
    TreeEntry entry = {own, slots, random_() % 2 == 0 ? 0.0 : 1e300, 1500.5};
    uint64_t call = upcall.call;
    TreeFile file;
    switch (upcall.opcode) {
      case FUSE_LOOKUP:
      case FUSE_MKDIR:
      case FUSE_MKNOD:
      case FUSE_SYMLINK:
      case FUSE_LINK:
        if (random_() % 4 == 0) {
          reply_no_entry(*channel_, call);
        } else {
          reply_entry(*channel_, call, entry);
        }
        break;
      case FUSE_GETATTR:
      case FUSE_SETATTR:
      case abi::kOpStatx:
        reply_attr(*channel_, call, slots, 100);
        break;
      case FUSE_OPEN:
        // One file for each node: what has a file of its own is never opened from the template.
        if (upcall.node < kFirstOwnNode) {
          reply_from_template(*channel_, call);
          break;
        }
        if (upcall.node >= kFirstOwnNode + kOwnFiles) {
          reply_result(*channel_, call, ESTALE);
          break;
        }
        file.fd = open_own(upcall.node);
        file.direct = random_() % 3 == 0;
        file.tag = static_cast<double>(random_() % 3);
        reply_open(*channel_, call, std::move(file));
        break;
      case FUSE_CREATE:
      case FUSE_TMPFILE:
        file.fd = open_own(own);
        reply_create(*channel_, call, entry, std::move(file));
        break;
      case FUSE_READDIR:
      case FUSE_READDIRPLUS:
        for (uint64_t i = 1; add_dirent(*channel_, call, "some-name", i, entry); i++) {
        }
        reply_listing(*channel_, call);
        break;
      case FUSE_STATFS:
        reply_statfs(*channel_, call, slots);
        break;
      case FUSE_GETXATTR:
      case FUSE_LISTXATTR:
        if (upcall.room == 0) {
          reply_size(*channel_, call, 5);
          break;
        }
        [[fallthrough]];
      case FUSE_READLINK:
        reply_data(*channel_, call, "value", 5);
        break;
      default:
        reply_result(*channel_, call, 0);
    }
  }

  std::shared_ptr<UpcallChannel> channel_;
  const Store& store_;
  Random random_;
  std::vector<uint64_t> held_;
  std::map<uint64_t, std::set<std::string>> lent_;
  std::set<double> made_;
  uint64_t next_lease_ = kFirstOwnNode + 1000;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool woken_ = false;
  bool ended_ = false;
  std::thread thread_;
};

struct World {
  Store store;
  std::shared_ptr<Template> tree;
  Deaf events;
  FakeTransport* transport;
  std::shared_ptr<UpcallChannel> channel = UpcallChannel::make();
  std::unique_ptr<WildTree> wild;
  std::shared_ptr<Session> session;
  std::atomic<uint64_t> unique{1};

  World(const std::vector<uint8_t>& toc, bool passthrough, Random& random)
      : store(toc), tree(store.open()) {
    if (tree == nullptr) die("the template does not open");
    auto made = std::make_unique<FakeTransport>(kLanes);
    transport = made.get();
    Features features;
    features.passthrough = passthrough;
    features.direct_io_allow_mmap = passthrough || random() % 2 == 0;
    features.writable = true;
    features.setxattr_ext = random() % 2 == 0;
    if (random() % 8 != 0) wild = std::make_unique<WildTree>(channel, store, random());
    // Where it is shown, forgets gather.
    if (random() % 2 == 0) {
      channel->hold_root(UniqueFd(open(store.dir().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)));
    }
    session = std::make_shared<Session>(tree, std::move(made), features, random() % 20, &events, 3,
                                        std::make_shared<AccessTrace>(), channel);
    session->run();
  }
  ~World() {
    if (unique.load() % 4 == 1) wild.reset();  // the tree first, or the session
    session->abort();
    session->join();
    wild.reset();
    if (transport->missing() != 0) die("requests without a reply");
    if (tree->table().waiting() != 0) die("waits that outlive their session");
    if (events.closes != 1) die("closed not once");
  }
};

struct Message {
  fuse_in_header header = {};
  uint8_t body[600] = {};
  size_t bytes = 0;

  template <class T>
  void put(const T& value) {
    memcpy(body + bytes, &value, sizeof value);
    bytes += sizeof value;
  }
  void put_name(const char* name) {
    memcpy(body + bytes, name, strlen(name) + 1);
    bytes += strlen(name) + 1;
  }
};

const char* some_name(Random& random) {
  static const char* kNames[] = {"a-dir", "f07", "f01", "new", "user.x", "b-file", "", "x"};
  return kNames[random() % std::size(kNames)];
}

void fill_file_request(World& world, Random& random, Message* m, uint64_t fh) {
  uint64_t offset = random() % 5000;
  switch (m->header.opcode) {
    case FUSE_READ:
      m->put(fuse_read_in{fh, offset, static_cast<uint32_t>(random() % 9000), 0, 0, 0, 0});
      break;
    case FUSE_WRITE: {
      uint32_t flags = random() % 3 == 0 ? FUSE_WRITE_KILL_SUIDGID : 0;
      uint32_t size = random() % 20 == 0 ? static_cast<uint32_t>(random()) : 100;
      m->put(fuse_write_in{fh, offset, size, flags, 0, 0, 0});
      m->bytes += 100;
      break;
    }
    case FUSE_RELEASE:
      m->put(fuse_release_in{fh, 0, 0, 0});
      break;
    case FUSE_FLUSH:
      m->put(fuse_flush_in{fh, 0, 0, 0});
      break;
    case FUSE_FSYNC:
      m->put(fuse_fsync_in{fh, static_cast<uint32_t>(random() % 2), 0});
      break;
    case FUSE_FALLOCATE:
      m->put(
          fuse_fallocate_in{fh, offset, random() % 9000, static_cast<uint32_t>(random() % 4), 0});
      break;
    case FUSE_LSEEK:
      m->put(fuse_lseek_in{fh, offset, static_cast<uint32_t>(random() % 6), 0});
      break;
    default: {
      uint64_t other_node = m->header.nodeid, other = fh;
      world.transport->pick_handle(random, &other_node, &other);
      m->put(fuse_copy_file_range_in{fh, offset, other_node, other, offset / 2, 3000, 0});
    }
  }
}

void fill_name_request(Random& random, Message* m) {
  uint32_t word = static_cast<uint32_t>(random());
  switch (m->header.opcode) {
    case FUSE_FORGET:
      m->put(fuse_forget_in{random() % 5});
      break;
    case FUSE_BATCH_FORGET:
      m->put(fuse_batch_forget_in{static_cast<uint32_t>(random() % 5), 0});
      for (int i = 0; i < 3; i++) m->put(fuse_forget_one{kFirstOwnNode + i, 1});
      break;
    case FUSE_GETATTR:
      m->put(fuse_getattr_in{});
      break;
    case abi::kOpStatx:
      m->put(abi::StatxIn{});
      break;
    case FUSE_SETATTR:
      m->put(fuse_setattr_in{word & 0xfff, 0, random(), random(), 0, random(), 1, 2, 3, 4, 5, 6, 0,
                             7, 8, 0});
      break;
    case FUSE_MKNOD:
      m->put(fuse_mknod_in{word, word, 022, 0});
      break;
    case FUSE_MKDIR:
      m->put(fuse_mkdir_in{0755, 022});
      break;
    case FUSE_RENAME:
      m->put(fuse_rename_in{1 + random() % 8});
      m->put_name("from");
      break;
    case FUSE_RENAME2:
      m->put(fuse_rename2_in{1 + random() % 8, word % 4, 0});
      m->put_name("from");
      break;
    case FUSE_LINK:
      m->put(fuse_link_in{1 + random() % 8});
      break;
    case FUSE_OPEN:
      m->put(fuse_open_in{word % 3 | (word % 7 == 0 ? O_TRUNC : 0u), 0});
      return;
    case FUSE_CREATE:
    case FUSE_TMPFILE:
      m->put(fuse_create_in{O_RDWR, 0644, 022, 0});
      break;
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
      m->put(fuse_read_in{0, random() % 60, static_cast<uint32_t>(random() % 9000), 0, 0, 0, 0});
      return;
    case FUSE_SETXATTR:
      m->put(fuse_setxattr_in{word % 16, 0, word % 2, 0});
      break;
    case FUSE_GETXATTR:
    case FUSE_LISTXATTR:
      m->put(fuse_getxattr_in{word % 3 * 100, 0});
      break;
    case FUSE_FSYNCDIR:
      m->put(fuse_fsync_in{0, word % 2, 0});
      return;
    default:
      break;
  }
  m->put_name(some_name(random));
  if (m->header.opcode == FUSE_SYMLINK || m->header.opcode == FUSE_SETXATTR)
    m->put_name("a target");
}

void one_request(World& world, Random& random, uint32_t lane, uint8_t* scratch) {
  static const uint32_t kOfFiles[] = {FUSE_READ,
                                      FUSE_WRITE,
                                      FUSE_RELEASE,
                                      FUSE_RELEASE,
                                      FUSE_FLUSH,
                                      FUSE_FSYNC,
                                      FUSE_LSEEK,
                                      FUSE_RELEASE,
                                      FUSE_FALLOCATE,
                                      FUSE_COPY_FILE_RANGE,
                                      abi::kOpCopyFileRange64};
  static const uint32_t kOfNames[] = {
      FUSE_LOOKUP,  FUSE_FORGET,      FUSE_GETATTR,      FUSE_SETATTR,  FUSE_READLINK,
      FUSE_SYMLINK, FUSE_MKNOD,       FUSE_MKDIR,        FUSE_UNLINK,   FUSE_RMDIR,
      FUSE_RENAME,  FUSE_LINK,        FUSE_OPEN,         FUSE_OPEN,     FUSE_OPEN,
      FUSE_STATFS,  FUSE_SETXATTR,    FUSE_GETXATTR,     FUSE_CREATE,   FUSE_LISTXATTR,
      FUSE_READDIR, FUSE_REMOVEXATTR, FUSE_READDIRPLUS,  FUSE_RENAME2,  FUSE_TMPFILE,
      FUSE_SYNCFS,  FUSE_LOOKUP,      FUSE_BATCH_FORGET, abi::kOpStatx, FUSE_FSYNCDIR,
      FUSE_CREATE,  FUSE_UNLINK};
  Message m;
  m.header.unique = world.unique.fetch_add(2);
  m.header.pid = random() % 3 == 0 ? static_cast<uint32_t>(gettid()) : 0;
  m.header.uid = static_cast<uint32_t>(random() % 2);
  m.header.nodeid = random() % 3 == 0 ? kFirstOwnNode + random() % (kOwnFiles + 1)
                                      : 1 + random() % world.tree->toc().rows();
  uint64_t node = 0, fh = 0;
  bool on_handle = random() % 2 == 0 && world.transport->pick_handle(random, &node, &fh);
  if (on_handle) {
    m.header.opcode = kOfFiles[random() % std::size(kOfFiles)];
    m.header.nodeid = node;
    // The kernel releases only what is open, once.
    if (m.header.opcode == FUSE_RELEASE && !world.transport->released(node, fh)) return;
    fill_file_request(world, random, &m, fh);
  } else if (random() % 10 == 0) {
    m.header.opcode = FUSE_INTERRUPT;
    m.put(fuse_interrupt_in{world.unique.load() - 2 * (random() % 30)});
  } else {
    m.header.opcode = kOfNames[random() % std::size(kOfNames)];
    fill_name_request(random, &m);
  }
  bool harmless = m.header.opcode != FUSE_RELEASE && m.header.opcode != FUSE_OPEN;
  if (harmless && random() % 8 == 0) {
    for (int i = 0; i < 3; i++) m.body[random() % 128] = static_cast<uint8_t>(random());
    m.bytes = random() % 200;
  }
  size_t total = sizeof m.header + m.bytes;
  m.header.len = static_cast<uint32_t>(total);
  world.transport->expect(m.header.unique, m.header.opcode, m.header.nodeid);
  // Exactly as many bytes as came, so that a read past them is seen.
  std::unique_ptr<uint8_t[]> exact(new uint8_t[total]);
  memcpy(exact.get(), &m.header, sizeof m.header);
  memcpy(exact.get() + sizeof m.header, m.body, m.bytes);
  world.session->dispatch(exact.get(), total, lane, scratch);
}

void mark_something(World& world, Random& random) {
  const Toc& toc = world.tree->toc();
  std::vector<uint32_t> one = {static_cast<uint32_t>(random() % toc.contents())};
  if (random() % 4 == 0) {
    world.tree->table().mark_failed(one, EIO);
    world.tree->table().clear_failed(one);
    return;
  }
  world.store.put(toc, one[0]);
  world.tree->table().mark_ready(one);
}

}  // namespace

void fuzz_writable(const Deadline& deadline, Random& random) {
  const std::vector<uint8_t> toc = make_toc();
  std::atomic<uint64_t> requests{0};
  while (!deadline.passed()) {
    World world(toc, random() % 3 != 0, random);
    std::vector<std::thread> threads;
    for (uint32_t lane = 0; lane < kLanes; lane++) {
      threads.emplace_back([&, lane, seed = random()] {
        Random own(seed);
        Scratch scratch;
        for (int n = 0; n < 1500 && !deadline.passed(); n++) {
          one_request(world, own, lane, scratch.get());
          requests++;
        }
      });
    }
    threads.emplace_back([&, seed = random()] {
      Random own(seed);
      for (int n = 0; n < 200 && !deadline.passed(); n++) {
        mark_something(world, own);
        std::this_thread::yield();
      }
    });
    for (std::thread& thread : threads) thread.join();
  }
  printf("writable: %llu requests\n", static_cast<unsigned long long>(requests.load()));
}

}  // namespace firstlight::test
