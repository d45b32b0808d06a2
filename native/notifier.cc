// The notifier's queues and threads.
#include "notifier.h"

#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>

#include <utility>

namespace firstlight {

Notifier::~Notifier() {
  stop();
  for (std::thread& thread : threads_) thread.join();
}

void Notifier::start() {
  std::lock_guard lock(mutex_);
  start_thread(&names_);
}

// Under the lock.
void Notifier::start_thread(Queue* queue) {
  running_++;
  threads_.emplace_back([this, queue] { run(queue); });
}

void Notifier::push(Item item) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  item.turn = next_turn_++;
  open_.insert(item.turn);
  if (item.kind == Item::kName) {
    names_.push_back(std::move(item));
  } else {
    pages_.push_back(std::move(item));
    // The one for names does not count.
    bool more = threads_.size() - 1 < kPageThreads;
    if (pages_.size() > idle_page_threads_ && more) start_thread(&pages_);
  }
  changed_.notify_all();
}

void Notifier::invalidate(uint64_t node, std::string name) {
  if (!name.empty()) return push({Item::kName, node, std::move(name)});
  // The attributes need not wait for a page.
  invalidate_attributes(node);
  push({Item::kPages, node, {}});
}

void Notifier::invalidate_attributes(uint64_t node) { send({Item::kAttributes, node, {}}); }

void Notifier::invalidate_pages(uint64_t node) { send({Item::kPages, node, {}}); }

void Notifier::mark(uint64_t mark) {
  std::lock_guard lock(mutex_);
  marks_.emplace_back(next_turn_, mark);
  settle_marks();
}

// Under the lock.
void Notifier::settle_marks() {
  while (!marks_.empty() && (open_.empty() || *open_.begin() >= marks_.front().first)) {
    passed_(marks_.front().second);
    marks_.pop_front();
  }
}

void Notifier::stop() {
  std::lock_guard lock(mutex_);
  stopping_ = true;
  for (Queue* queue : {&names_, &pages_}) {
    for (const Item& item : *queue) open_.erase(item.turn);
    queue->clear();
  }
  settle_marks();
  changed_.notify_all();
}

bool Notifier::ended(std::chrono::milliseconds bound) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, bound, [&] { return running_ == 0; });
}

void Notifier::run(Queue* queue) {
  pthread_setname_np(pthread_self(), "fl-notifier");
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
  bool pages = queue == &pages_;
  std::unique_lock lock(mutex_);
  for (;;) {
    if (pages) idle_page_threads_++;
    changed_.wait(lock, [&] { return stopping_ || !queue->empty(); });
    if (pages) idle_page_threads_--;
    if (queue->empty()) break;
    Item item = std::move(queue->front());
    queue->pop_front();
    lock.unlock();
    send(item);
    lock.lock();
    open_.erase(item.turn);
    settle_marks();
  }
  running_--;
  changed_.notify_all();
}

void Notifier::send(const Item& item) {
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
