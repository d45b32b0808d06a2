// The threads of a session and what they share.
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>

#include "ops.h"
#include "procfs.h"
#include "transport_dev.h"

namespace firstlight {

namespace {

using std::chrono::milliseconds;

// The upper layer has room: nobody writes so much while forgets gather (UpcallChannel), so that no
// program misses the space of files that have been removed.
constexpr uint64_t kRoomBytes = uint64_t{256} << 20;
// How often the signals of an interrupted caller are looked at: kill -9 must work within a second.
constexpr milliseconds kInterruptPoll{100};
// Requests are small where nothing is written (max_write is the least the kernel takes); names and
// forgets fit well. A WRITE brings its header beside the data.
constexpr size_t kRequestBytes = 16384;
constexpr size_t kWritableRequestBytes = kMaxWrite + 16384;
// While the session ends: how often requests are looked for that keep a notification waiting.
constexpr milliseconds kDrainPoll{5};

// Signals belong to the owner's threads, except the one that ends a blocking read.
void block_signals() {
  sigset_t all;
  sigfillset(&all);
  sigdelset(&all, wake_signal());
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
}

bool has_room(int fd) {
  struct statfs fs;
  return fstatfs(fd, &fs) == 0 && fs.f_bavail >= kRoomBytes / static_cast<uint64_t>(fs.f_bsize);
}

// Descriptors that only save work take the lower half of those that there may be: what programs
// open comes first. A new one gets the lowest free number, so the number tells how many there are.
bool is_affordable(const UniqueFd& fd) {
  rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return true;
  return static_cast<rlim_t>(fd.get()) < files.rlim_cur / 2;
}

}  // namespace

Scratch::Scratch(size_t bytes) : size_(bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    // As operator new does without exceptions: there is no reply to be made without a buffer.
    fputs("firstlight: no address space for a reply buffer\n", stderr);
    ::abort();
  }
  bytes_ = static_cast<uint8_t*>(memory);
}

Scratch::~Scratch() { munmap(bytes_, size_); }

Session::Session(std::shared_ptr<Template> tree, std::unique_ptr<Transport> transport,
                 Features features, uint32_t wait_timeout_ms, SessionEvents* events,
                 size_t idle_backings, std::shared_ptr<AccessTrace> trace,
                 std::shared_ptr<UpcallChannel> channel)
    : template_(std::move(tree)),
      transport_(std::move(transport)),
      features_(features),
      wait_bound_(wait_timeout_ms),
      events_(events),
      backing_(*template_, *transport_, idle_backings),
      divergence_(features.writable, template_->toc().rows(), transport_->lanes()),
      handles_(*transport_, divergence_),
      channel_(std::move(channel)),
      notifier_(*transport_, [this](uint64_t mark) { channel_->post(mark); }),
      trace_(std::move(trace)) {
  features_.threads = transport_->lanes();
}

Session::~Session() {
  // run() was called: closed, and joined by now. Otherwise there is nothing to end.
  join();
}

void Session::run() {
  wake_signal();  // its handler stands before a thread can need it
  if (features_.writable) {
    channel_->session_began(shared_from_this());
    notifier_.start();
  } else {
    template_->table().watch(this);
  }
  for (uint32_t lane = 0; lane < transport_->lanes(); lane++) {
    lanes_.emplace_back([this, lane] { lane_main(lane); });
  }
  // Last: it joins the lanes.
  housekeeper_ = std::thread([this] { housekeeper_main(); });
}

void Session::lane_main(uint32_t lane) {
  char name[16];
  snprintf(name, sizeof name, "fl-lane-%u", lane % 1000);
  pthread_setname_np(pthread_self(), name);
  block_signals();
  Scratch scratch;
  size_t room = features_.writable ? kWritableRequestBytes : kRequestBytes;
  Scratch buffer(room);
  ssize_t got;
  while ((got = transport_->receive(lane, buffer.get(), room)) > 0) {
    dispatch(buffer.get(), static_cast<size_t>(got), lane, scratch.get());
  }
  std::lock_guard lock(mutex_);
  if (got < 0) {
    if (error_.empty())
      error_ = std::string("reading requests: ") + strerror(static_cast<int>(-got));
    transport_->stop();
  }
  lanes_ended_.fetch_add(1);
  wake_.notify_all();
}

void Session::dispatch(const uint8_t* bytes, size_t length, uint32_t lane, uint8_t* scratch) {
  const auto* header = reinterpret_cast<const fuse_in_header*>(bytes);
  // Without a header there is nobody to answer.
  if (length < sizeof *header) return;
  Request request = {header, bytes + sizeof *header, length - sizeof *header, lane};
  const Operation* operation = find_operation(header->opcode);
  int result = -ENOSYS;
  if (header->len != length) {
    result = -EINVAL;
  } else if (operation != nullptr) {
    Context context{*this, request, scratch};
    if (request.body_bytes < operation->least) {
      result = -EINVAL;
    } else {
      result = features_.writable ? run_writable(context, *operation) : operation->handler(context);
    }
  }
  if (result != kAnswered) reply(lane, header->unique, result, nullptr, 0);
}

int Session::reply(uint32_t lane, uint64_t unique, int error, const void* data, size_t bytes) {
  fuse_out_header header = {static_cast<uint32_t>(sizeof header + bytes), error, unique};
  iovec pieces[2] = {{&header, sizeof header}, {const_cast<void*>(data), bytes}};
  // An error here means that the caller is gone (ENOENT) or the mount (ENODEV): who holds something
  // for the reply lets it go, others have nothing to do.
  return transport_->reply(lane, pieces, bytes == 0 ? 1 : 2);
}

bool Session::end_opens() {
  if (handles_.open_mode() != OpenMode::kUnseen) return false;
  // An open that is seen drops what the kernel has cached of a lost content. Without them only the
  // notifier does so: they go on until it is through.
  bool owed = losses_.load(std::memory_order_acquire) > 0 || !notifier_.idle();
  if (owed && !handles_.unseen()) return false;
  if (!handles_.end_opens()) return false;
  counters_.opens_unseen.store(true, std::memory_order_relaxed);
  return true;
}

void Session::gave_content() {
  if (counters_.first_read_ms.load(std::memory_order_relaxed) != 0) return;
  auto now = std::chrono::system_clock::now().time_since_epoch();
  int64_t none = 0;
  counters_.first_read_ms.compare_exchange_strong(
      none, std::chrono::duration_cast<milliseconds>(now).count(), std::memory_order_relaxed);
}

ContentTable::Outcome Session::park(std::unique_ptr<Parked>& parked) {
  uint32_t content = parked->content;
  if (parked->whole) parked->last_part = toc().part_count(content) - 1;
  parked->since = Clock::now();
  parked->deadline =
      wait_bound_.count() == 0 ? Clock::time_point::max() : parked->since + wait_bound_;
  parked->owner = shared_from_this();
  uint32_t first = parked->first_part;
  uint32_t last = parked->last_part;
  if (!parked->whole) template_->table().missing(*parked, &first, &last);
  auto outcome = template_->table().park(parked);
  if (outcome != ContentTable::Outcome::kParked) return outcome;
  counters_.waits.fetch_add(1, std::memory_order_relaxed);
  events_->wanted(content, first, last);
  look();  // the housekeeper plans by the new deadline
  return outcome;
}

void Session::interrupted(uint64_t unique) {
  auto found = channel_ == nullptr ? UpcallChannel::Found::kNone : channel_->interrupt(unique);
  switch (found) {
    case UpcallChannel::Found::kBusy:
      return;  // noted; it is looked at should the request wait
    case UpcallChannel::Found::kHeld:
      return look();
    case UpcallChannel::Found::kNone:
    case UpcallChannel::Found::kParked:
      if (template_->table().interrupt(this, unique)) look();
  }
}

bool Session::was_interrupted(uint64_t unique) {
  return template_->table().take_early(this, unique);
}

void Session::look() {
  std::lock_guard lock(mutex_);
  look_ = true;
  wake_.notify_one();
}

int Session::upcall(std::shared_ptr<Upcall> upcall) {
  return channel_ != nullptr && channel_->submit(std::move(upcall)) ? kAnswered : -EIO;
}

void Session::thaw(uint64_t node) {
  divergence_.thaw(node);
  // Opens look at the bit when they are counted.
  handles_.drain();
}

void Session::adopt(uint64_t node, UniqueFd fd, uint64_t ino, uint32_t links, bool writable) {
  // Then all of it goes on to come to the tree.
  if (!is_affordable(fd)) return;
  auto file = std::make_shared<AdoptedFile>();
  file->fd = std::make_shared<const UniqueFd>(std::move(fd));
  file->ino = ino;
  file->links = links;
  file->writable = writable;
  adopted_.put(node, std::move(file));
}

void Session::disown(uint64_t node) {
  adopted_.drop(node);
  backing_.forget(node);
}

void Session::resume_upcall(const Parked& parked) {
  channel_->resumed(parked.call, parked.error, parked.interrupted);
}

void Session::resume(std::unique_ptr<Parked> parked) {
  std::lock_guard lock(mutex_);
  done_.push_back(std::move(parked));
  wake_.notify_one();
}

void Session::lost(uint32_t content) {
  // Also where opens are seen, the next of which drops what is cached: there may be none before
  // they are unseen.
  std::lock_guard lock(mutex_);
  lost_.push_back(content);
  losses_.fetch_add(1, std::memory_order_release);
  wake_.notify_one();
}

// The kernel forgets what it has cached of these: it may have come from the damaged file. A READ
// that is under way keeps its page locked, and the notification waits for it.
void Session::drop_pages(std::vector<uint32_t> contents) {
  if (!notifier_.started()) notifier_.start();
  // A disk that is lost is thousands of them, and requests wait for this thread.
  std::sort(contents.begin(), contents.end());
  const Toc& toc = template_->toc();
  for (uint32_t row = 0; row < toc.rows(); row++) {
    const TocRow& file = toc.row(row);
    if (file.inode != row || (file.mode & S_IFMT) != S_IFREG) continue;
    uint32_t content = toc.content_of(file);
    if (!std::binary_search(contents.begin(), contents.end(), content)) continue;
    notifier_.invalidate(uint64_t{row} + 1, "");
  }
  losses_.fetch_sub(contents.size(), std::memory_order_release);
}

void Session::housekeeper_main() {
  pthread_setname_np(pthread_self(), "fl-housekeeper");
  block_signals();
  Scratch scratch;
  Clock::time_point next = Clock::time_point::max();
  std::unique_lock lock(mutex_);
  for (;;) {
    auto due = [&] {
      return look_ || !done_.empty() || !lost_.empty() ||
             lanes_ended_.load() == transport_->lanes();
    };
    if (next == Clock::time_point::max()) {
      wake_.wait(lock, due);
    } else {
      wake_.wait_until(lock, next, due);
    }
    bool ended = lanes_ended_.load() == transport_->lanes();
    bool look = std::exchange(look_, false);
    ParkedList done = std::exchange(done_, {});
    std::vector<uint32_t> lost = std::exchange(lost_, {});
    lock.unlock();
    if (!lost.empty()) drop_pages(std::move(lost));
    for (auto& parked : done) finish(std::move(parked), scratch.get());
    if (ended) break;
    if (look || Clock::now() >= next) next = sweep(scratch.get());
    lock.lock();
  }
  end(scratch.get());
}

void Session::finish(std::unique_ptr<Parked> parked, uint8_t* scratch) {
  auto waited = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - parked->since);
  counters_.waited_us.fetch_add(static_cast<uint64_t>(waited.count()), std::memory_order_relaxed);
  complete(*this, *parked, scratch);
}

// Ends waits that lasted too long or whose caller is being killed; returns when to look again.
Clock::time_point Session::sweep(uint8_t* scratch) {
  ContentTable& table = template_->table();
  for (auto& parked : table.take_expired(this, Clock::now())) {
    counters_.timeouts.fetch_add(1, std::memory_order_relaxed);
    parked->error = EIO;
    std::chrono::duration<double, std::milli> waited = Clock::now() - parked->since;
    // Before the reply: who hears of the error can ask for the reason.
    events_->timed_out(parked->content, waited.count());
    finish(std::move(parked), scratch);
  }
  Clock::time_point next;
  bool watching = false;
  for (const auto& caller : table.interrupted(this, &next)) {
    // A program that handles its signal goes on waiting: many do not retry an open. The kernel does
    // not say it again when a second signal comes, so the caller is looked at until it is answered.
    if (!fatal_signal_pending(caller.tid)) {
      watching = true;
      continue;
    }
    auto parked = table.take(this, caller.unique);
    if (parked == nullptr) continue;  // completed meanwhile
    counters_.interrupted.fetch_add(1, std::memory_order_relaxed);
    parked->error = EINTR;
    finish(std::move(parked), scratch);
  }
  if (watching) next = std::min(next, Clock::now() + kInterruptPoll);
  return channel_ == nullptr ? next : sweep_upcalls(next);
}

// The same for requests that the tree lets wait; and what gathers for it. Of a layer that nobody
// has shown us (hold_root) we do not know how full it is: then, as where it is nearly full, nothing
// is put off.
Clock::time_point Session::sweep_upcalls(Clock::time_point next) {
  for (const auto& caller : channel_->interrupted()) {
    if (!fatal_signal_pending(caller.tid)) {
      next = std::min(next, Clock::now() + kInterruptPoll);
    } else {
      channel_->end_held(caller.call, EINTR, &counters_.interrupted);
    }
  }
  Clock::time_point gathers_until = channel_->gathers_until();
  if (gathers_until == Clock::time_point::max()) return next;
  auto root = adopted_.root();
  if (Clock::now() < gathers_until && root != nullptr && has_room(root->get())) {
    return std::min(next, gathers_until);
  }
  channel_->end_gathering();
  return next;
}

void Session::refuse_waits() {
  for (auto& parked : template_->table().close(this)) {
    parked->error = EIO;
    resume(std::move(parked));
  }
}

void Session::end(uint8_t* scratch) {
  for (std::thread& lane : lanes_) lane.join();
  refuse_waits();
  template_->table().unwatch(this);
  ParkedList rest;
  {
    std::lock_guard lock(mutex_);
    rest = std::exchange(done_, {});
  }
  for (auto& parked : rest) finish(std::move(parked), scratch);
  if (channel_ != nullptr) channel_->session_ended(EIO);
  pool_.stop();
  end_helpers();
  events_->closed(error());
  std::lock_guard lock(mutex_);
  closed_ = true;
  closed_signal_.notify_all();
}

// A notification waits for a lock that a program may hold while it waits for a request that nobody
// reads any more; so may who watches opens, or is about to. Requests are refused until all of them
// are through.
void Session::end_helpers() {
  notifier_.stop();
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
    if (watch_ != nullptr) watch_->stop();
  }
  if (helpers_ended()) return;
  Scratch buffer(kWritableRequestBytes);
  for (; !helpers_ended(); std::this_thread::sleep_for(kDrainPoll)) {
    ssize_t got;
    while ((got = transport_->receive_now(buffer.get(), kWritableRequestBytes)) > 0) {
      const auto* header = reinterpret_cast<const fuse_in_header*>(buffer.get());
      if (static_cast<size_t>(got) >= sizeof *header) reply(0, header->unique, -EIO, nullptr, 0);
    }
  }
}

void Session::abort() {
  refuse_waits();
  transport_->stop();
  // A signal that arrives between a lane's look at the flag and its read(2) is lost: say it again.
  while (!wait_closed(milliseconds(1))) {
    std::lock_guard lock(mutex_);
    if (lanes_ended_.load() == lanes_.size()) continue;
    for (std::thread& lane : lanes_) {
      if (lane.joinable()) pthread_kill(lane.native_handle(), wake_signal());
    }
  }
}

bool Session::wait_closed(milliseconds bound) {
  std::unique_lock lock(mutex_);
  return closed_signal_.wait_for(lock, bound, [&] { return closed_; });
}

std::string Session::error() {
  std::lock_guard lock(mutex_);
  return error_;
}

void Session::join() {
  if (housekeeper_.joinable()) housekeeper_.join();
}

}  // namespace firstlight
