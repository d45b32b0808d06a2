// The notifier's queue and thread.
#include "notifier.h"

#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>

#include <utility>

namespace firstlight {

Notifier::~Notifier() {
  stop();
  if (thread_.joinable()) thread_.join();
}

void Notifier::start() {
  ended_ = false;
  thread_ = std::thread([this] { run(); });
}

void Notifier::push(Item item) {
  std::lock_guard lock(mutex_);
  if (item.kind == Item::kMark ? ended_ : stopping_) {
    if (item.kind == Item::kMark) passed_(item.node);
    return;
  }
  items_.push_back(std::move(item));
  changed_.notify_one();
}

void Notifier::invalidate(uint64_t node, std::string name) {
  auto kind = name.empty() ? Item::kNode : Item::kName;
  push({kind, node, std::move(name)});
}

void Notifier::invalidate_attributes(uint64_t node) { send({Item::kAttributes, node, {}}); }

void Notifier::mark(uint64_t mark) { push({Item::kMark, mark, {}}); }

void Notifier::stop() {
  std::lock_guard lock(mutex_);
  stopping_ = true;
  std::erase_if(items_, [](const Item& item) { return item.kind != Item::kMark; });
  changed_.notify_all();
}

bool Notifier::ended(std::chrono::milliseconds bound) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, bound, [&] { return ended_; });
}

void Notifier::run() {
  pthread_setname_np(pthread_self(), "fl-notifier");
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || !items_.empty(); });
    if (items_.empty()) break;
    Item item = std::move(items_.front());
    items_.pop_front();
    lock.unlock();
    send(item);
    lock.lock();
  }
  ended_ = true;
  changed_.notify_all();
}

void Notifier::send(const Item& item) {
  if (item.kind == Item::kMark) return passed_(item.node);
  fuse_out_header header = {};
  iovec pieces[3] = {{&header, sizeof header}, {}, {}};
  fuse_notify_inval_entry_out entry = {};
  fuse_notify_inval_inode_out inode = {};
  int count = 2;
  if (item.kind == Item::kName) {
    header.error = FUSE_NOTIFY_INVAL_ENTRY;
    entry.parent = item.node;
    entry.namelen = static_cast<uint32_t>(item.name.size());
    pieces[1] = {&entry, sizeof entry};
    // With its NUL.
    pieces[count++] = {const_cast<char*>(item.name.c_str()), item.name.size() + 1};
  } else {
    header.error = FUSE_NOTIFY_INVAL_INODE;
    inode.ino = item.node;
    // From 0, without an end: all pages. A negative offset: none.
    inode.off = item.kind == Item::kAttributes ? -1 : 0;
    pieces[1] = {&inode, sizeof inode};
  }
  for (int i = 0; i < count; i++) header.len += static_cast<uint32_t>(pieces[i].iov_len);
  // ENOENT: the kernel does not know it, so there is nothing to forget. ENODEV: the mount is gone.
  transport_.notify(pieces, count);
}

}  // namespace firstlight
