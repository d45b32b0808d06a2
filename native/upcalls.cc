// The table of requests that the tree has, and their queue; the rules stand in upcalls.h.
#include "upcalls.h"

#include <errno.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <utility>

#include "session.h"

namespace firstlight {

namespace {

// As lane_reader.cc has them, for the same reason: looks that paid raise the credit by one step,
// those that did not lower it by four.
constexpr std::chrono::microseconds kLook{30};
constexpr int kCreditMax = 64;
constexpr int kHit = 1;
constexpr int kMiss = 4;
constexpr uint32_t kRetry = 16;
// What nobody waits for, forgets and what lanes have done, gathers for so long from the first
// forget on. A program that makes and removes files one after the other sends one with each: to
// wake the tree's thread for it costs more than the file, and takes a CPU from the program. What is
// put off with it is the space of removed files, so the housekeeper sees to it that there is enough
// without (Session::sweep_upcalls).
constexpr std::chrono::milliseconds kGather{20};
// So much of it the tree is woken for at once: more would delay the next request by what it takes,
// some 10 us each.
constexpr size_t kForgetsMax = 128;
constexpr size_t kNewsMax = 128;
// News that wait at most, where the tree is busy elsewhere: each may hold a descriptor.
constexpr size_t kNewsFull = 256;

// Channels by number, so that another JavaScript thread finds its session's.
struct Registry {
  std::mutex mutex;
  double next = 1;
  std::map<double, std::weak_ptr<UpcallChannel>> channels;
};

// Never destroyed: threads may end after destructors have run.
Registry& registry() {
  static auto* made = new Registry();
  return *made;
}

}  // namespace

std::shared_ptr<UpcallChannel> UpcallChannel::make() {
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  std::erase_if(all.channels, [](const auto& entry) { return entry.second.expired(); });
  std::shared_ptr<UpcallChannel> channel(new UpcallChannel(all.next++));
  all.channels[channel->number()] = channel;
  return channel;
}

std::shared_ptr<UpcallChannel> UpcallChannel::find(double number) {
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  auto found = all.channels.find(number);
  return found == all.channels.end() ? nullptr : found->second.lock();
}

bool UpcallChannel::attach(std::function<void()> wake) {
  std::lock_guard lock(mutex_);
  if (attached_) return false;
  attached_ = true;
  signalled_ = false;
  wake_ = std::move(wake);
  return true;
}

void UpcallChannel::detach() {
  {
    std::lock_guard lock(mutex_);
    attached_ = false;
    wake_ = nullptr;
  }
  for (const auto& upcall : take_all()) refuse(upcall, EIO);
}

std::vector<std::shared_ptr<Upcall>> UpcallChannel::take_all() {
  std::vector<std::shared_ptr<Upcall>> all;
  std::lock_guard lock(mutex_);
  queue_.clear();
  forgets_.clear();
  news_.clear();
  gathers_until_ = kNever;
  leases_.clear();
  queued_.store(0, std::memory_order_relaxed);
  for (auto& [call, upcall] : calls_) all.push_back(std::move(upcall));
  calls_.clear();
  return all;
}

// Under the lock.
void UpcallChannel::enqueue(std::shared_ptr<Upcall> upcall) {
  queue_.push_back(std::move(upcall));
  turns_++;
  queued_.fetch_add(1, std::memory_order_relaxed);
  wake_tree();
}

// Under the lock.
void UpcallChannel::wake_tree() {
  if (std::exchange(signalled_, true)) return;
  wakes_.fetch_add(1, std::memory_order_relaxed);
  wake_();
}

void UpcallChannel::forget(uint64_t node, uint64_t lookups) {
  {
    std::lock_guard lock(mutex_);
    if (!attached_) return;
    forgets_.push_back({node, lookups});
    if (!gather()) return;
  }
  if (auto running = session()) running->look();
}

// True where the housekeeper is to plan by it. Under the lock.
bool UpcallChannel::gather() {
  // It is awake, and takes them before it sleeps.
  if (signalled_) return false;
  // Without a session there is no housekeeper that would wake it.
  if (forgets_.size() >= kForgetsMax || session_.expired()) {
    wake_tree();
    return false;
  }
  if (gathers_until_ != kNever) return false;
  gathers_until_ = std::chrono::steady_clock::now() + kGather;
  return true;
}

std::chrono::steady_clock::time_point UpcallChannel::gathers_until() {
  std::lock_guard lock(mutex_);
  return gathers_until_;
}

void UpcallChannel::end_gathering() {
  std::lock_guard lock(mutex_);
  gathers_until_ = kNever;
  // Else it has taken them meanwhile.
  if (attached_ && !(forgets_.empty() && news_.empty())) wake_tree();
}

std::shared_ptr<Upcall> UpcallChannel::take_forgets() {
  std::lock_guard lock(mutex_);
  return pop_forgets();
}

// One message of as many as go into it; nullptr where there are none. Under the lock.
std::shared_ptr<Upcall> UpcallChannel::pop_forgets() {
  if (forgets_.empty()) return nullptr;
  auto message = std::make_shared<Upcall>();
  message->numbers[0] = FUSE_FORGET;
  double* slot = message->numbers + Upcall::kArg;
  for (size_t i = 0; i < Upcall::kForgets && !forgets_.empty(); i++) {
    *slot++ = static_cast<double>(forgets_.front().node);
    *slot++ = static_cast<double>(forgets_.front().lookups);
    forgets_.pop_front();
  }
  count_.fetch_add(1, std::memory_order_relaxed);
  return message;
}

bool UpcallChannel::submit(std::shared_ptr<Upcall> upcall) {
  std::lock_guard lock(mutex_);
  if (!attached_) return false;
  count_.fetch_add(1, std::memory_order_relaxed);
  if (upcall->unique != 0) {
    upcall->call = next_call_++;
    calls_[upcall->call] = upcall;
  }
  enqueue(std::move(upcall));
  return true;
}

bool UpcallChannel::worth_looking() {
  if (credit_ > 0) return true;
  if (++since_look_ < kRetry) return false;
  since_look_ = 0;
  return true;
}

bool UpcallChannel::look() {
  auto end = std::chrono::steady_clock::now() + kLook;
  do {
    // The caller, or the lane that has its request, may be waiting for this CPU.
    sched_yield();
    if (queued_.load(std::memory_order_relaxed) > 0) {
      credit_ = std::min(credit_ + kHit, kCreditMax);
      return true;
    }
  } while (std::chrono::steady_clock::now() < end);
  credit_ = std::max(credit_ - kMiss, 0);
  return false;
}

std::shared_ptr<Upcall> UpcallChannel::take_next() {
  // As long as this thread looks, nobody wakes it.
  if (queued_.load(std::memory_order_relaxed) == 0 && worth_looking()) look();
  std::lock_guard lock(mutex_);
  std::shared_ptr<Upcall> next = pop_news();
  if (next == nullptr) next = pop();
  if (next == nullptr) next = pop_forgets();
  if (next == nullptr) signalled_ = false;
  return next;
}

std::shared_ptr<Upcall> UpcallChannel::take_news() {
  std::lock_guard lock(mutex_);
  return pop_news();
}

size_t UpcallChannel::news() {
  std::lock_guard lock(mutex_);
  return news_.size();
}

// Under the lock.
std::shared_ptr<Upcall> UpcallChannel::pop_news() {
  if (news_.empty()) return nullptr;
  std::shared_ptr<Upcall> next = std::move(news_.front());
  news_.pop_front();
  return next;
}

void UpcallChannel::lease_nodes(uint64_t first, uint32_t count) {
  std::lock_guard lock(mutex_);
  leases_.push_back({first, first + count});
}

bool UpcallChannel::begin_change() {
  std::lock_guard lock(mutex_);
  if (!attached_ || news_.size() >= kNewsFull) return false;
  changing_++;
  return true;
}

uint64_t UpcallChannel::next_node() {
  std::lock_guard lock(mutex_);
  while (!leases_.empty() && leases_.front().next == leases_.front().end) leases_.pop_front();
  return leases_.empty() ? 0 : leases_.front().next++;
}

void UpcallChannel::return_node(uint64_t node) {
  std::lock_guard lock(mutex_);
  // No other lane makes a change meanwhile; but the tree may have detached.
  if (!leases_.empty() && leases_.front().next == node + 1) leases_.front().next = node;
}

void UpcallChannel::end_change(std::shared_ptr<Upcall> news) {
  std::lock_guard lock(mutex_);
  changing_--;
  if (news == nullptr || !attached_) return;
  turns_++;
  news_.push_back(std::move(news));
  if (news_.size() >= kNewsMax) wake_tree();
}

// Under the lock.
std::shared_ptr<Upcall> UpcallChannel::pop() {
  while (!queue_.empty()) {
    std::shared_ptr<Upcall> next = std::move(queue_.front());
    queue_.pop_front();
    queued_.fetch_sub(1, std::memory_order_relaxed);
    // One that was ended while it stood in the queue is in the table no more.
    if (next->call != 0 && !calls_.contains(next->call)) continue;
    next->stage = Upcall::Stage::kBusy;
    return next;
  }
  return nullptr;
}

void UpcallChannel::hold(const std::shared_ptr<Upcall>& upcall) {
  std::shared_ptr<Session> running;
  {
    std::lock_guard lock(mutex_);
    if (!calls_.contains(upcall->call) || upcall->stage != Upcall::Stage::kBusy) return;
    upcall->stage = Upcall::Stage::kHeld;
    running = session_.lock();
  }
  if (running == nullptr) return;
  bool early = running->was_interrupted(upcall->unique);
  std::lock_guard lock(mutex_);
  upcall->interrupted |= early;
  if (upcall->interrupted) running->look();
}

std::shared_ptr<Upcall> UpcallChannel::claim(uint64_t call) {
  std::lock_guard lock(mutex_);
  auto found = calls_.find(call);
  if (found == calls_.end()) return nullptr;
  std::shared_ptr<Upcall> upcall = std::move(found->second);
  calls_.erase(found);
  return upcall;
}

std::shared_ptr<Upcall> UpcallChannel::peek(uint64_t call) {
  std::lock_guard lock(mutex_);
  auto found = calls_.find(call);
  return found == calls_.end() ? nullptr : found->second;
}

void UpcallChannel::again(uint64_t call) {
  std::lock_guard lock(mutex_);
  auto found = calls_.find(call);
  // Parked: the content table sends it.
  if (found == calls_.end() || found->second->stage == Upcall::Stage::kParked) return;
  found->second->stage = Upcall::Stage::kBusy;
  found->second->listing.clear();
  found->second->listing_full = false;
  if (attached_) enqueue(found->second);
}

void UpcallChannel::wait_for_content(uint64_t call, uint32_t content) {
  auto running = session();
  std::shared_ptr<Upcall> upcall = peek(call);
  if (running == nullptr || upcall == nullptr) return;
  auto parked = std::make_unique<Parked>();
  {
    std::lock_guard lock(mutex_);
    if (upcall->stage == Upcall::Stage::kParked) return;
    // Before it is parked: it may be resumed at once.
    upcall->stage = Upcall::Stage::kParked;
    parked->interrupted = upcall->interrupted;
  }
  parked->unique = upcall->unique;
  parked->lane = upcall->lane;
  parked->opcode = upcall->opcode;
  parked->tid = upcall->tid;
  parked->content = content;
  parked->whole = true;
  parked->call = call;
  switch (running->park(parked)) {
    case ContentTable::Outcome::kParked:
      break;
    case ContentTable::Outcome::kReady:
      return resumed(call, 0, parked->interrupted);
    case ContentTable::Outcome::kFailed:
      return resumed(call, parked->error, false);
    case ContentTable::Outcome::kClosed:
      return resumed(call, EIO, false);
  }
}

void UpcallChannel::resumed(uint64_t call, int error, bool interrupted) {
  if (error != 0) {
    if (auto upcall = claim(call)) refuse(upcall, error);
    return;
  }
  std::lock_guard lock(mutex_);
  auto found = calls_.find(call);
  if (found == calls_.end()) return;
  found->second->stage = Upcall::Stage::kBusy;
  found->second->interrupted |= interrupted;
  if (attached_) enqueue(found->second);
}

void UpcallChannel::refuse(const std::shared_ptr<Upcall>& upcall, int error) {
  if (auto running = session()) running->reply(upcall->lane, upcall->unique, -error, nullptr, 0);
}

void UpcallChannel::post(uint64_t done) {
  auto message = std::make_shared<Upcall>();
  message->numbers[1] = static_cast<double>(done);
  std::lock_guard lock(mutex_);
  if (attached_) enqueue(std::move(message));
}

uint64_t UpcallChannel::still() {
  std::lock_guard lock(mutex_);
  if (changing_ > 0) return 0;
  for (const auto& [call, upcall] : calls_) {
    if (upcall->stage == Upcall::Stage::kBusy) return 0;
  }
  return turns_ + 1;
}

std::shared_ptr<Session> UpcallChannel::session() {
  std::lock_guard lock(mutex_);
  return session_.lock();
}

void UpcallChannel::session_began(const std::shared_ptr<Session>& session) {
  std::vector<uint64_t> thawed;
  UniqueFd root;
  {
    std::lock_guard lock(mutex_);
    session_ = session;
    thawed.swap(thawed_before_);
    root = std::move(root_before_);
  }
  if (root) session->adopted().hold_root(std::move(root));
  for (uint64_t node : thawed) session->thaw(node);
}

void UpcallChannel::thaw(uint64_t node) {
  std::shared_ptr<Session> running;
  {
    std::lock_guard lock(mutex_);
    running = session_.lock();
    if (running == nullptr) return thawed_before_.push_back(node);
  }
  running->thaw(node);
}

void UpcallChannel::hold_root(UniqueFd fd) {
  std::lock_guard lock(mutex_);
  auto running = session_.lock();
  if (running == nullptr) {
    root_before_ = std::move(fd);
  } else {
    running->adopted().hold_root(std::move(fd));
  }
}

void UpcallChannel::session_ended(int error) {
  for (const auto& upcall : take_all()) refuse(upcall, error);
  std::lock_guard lock(mutex_);
  session_.reset();
}

UpcallChannel::Found UpcallChannel::interrupt(uint64_t unique) {
  std::lock_guard lock(mutex_);
  for (auto& [call, upcall] : calls_) {
    if (upcall->unique != unique) continue;
    upcall->interrupted = true;
    return upcall->stage == Upcall::Stage::kParked ? Found::kParked
           : upcall->stage == Upcall::Stage::kHeld ? Found::kHeld
                                                   : Found::kBusy;
  }
  return Found::kNone;
}

std::vector<UpcallChannel::Interrupted> UpcallChannel::interrupted() {
  std::vector<Interrupted> found;
  std::lock_guard lock(mutex_);
  for (const auto& [call, upcall] : calls_) {
    if (upcall->interrupted && upcall->stage == Upcall::Stage::kHeld) {
      found.push_back({call, upcall->tid});
    }
  }
  return found;
}

void UpcallChannel::end_held(uint64_t call, int error, std::atomic<uint64_t>* ended) {
  std::shared_ptr<Upcall> upcall;
  {
    std::lock_guard lock(mutex_);
    auto found = calls_.find(call);
    if (found == calls_.end() || found->second->stage != Upcall::Stage::kHeld) return;
    upcall = std::move(found->second);
    calls_.erase(found);
  }
  ended->fetch_add(1, std::memory_order_relaxed);
  refuse(upcall, error);
}

}  // namespace firstlight
