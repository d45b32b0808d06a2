// One mount: threads that take requests from a transport and answer them from a template, and one
// housekeeper that completes what has waited. No policy: it says what is wanted, and waits.
//
// A writable session hands what the template cannot answer to a channel (upcalls.h), whose other
// end is the tree's thread.
//
// Threads. Lane threads run the operations (ops_*.cc). The housekeeper completes parked requests,
// ends those that waited too long or whose caller is being killed, and tidies up at the end. The
// owner's thread (JavaScript) only starts, stops and reads counters. Events are delivered on the
// lane threads and on the housekeeper; the receiver of events passes them on.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "access_trace.h"
#include "adopted.h"
#include "backing.h"
#include "blocking_pool.h"
#include "content_table.h"
#include "divergence.h"
#include "handles.h"
#include "negotiate.h"
#include "notifier.h"
#include "open_watch.h"
#include "request.h"
#include "template.h"
#include "transport.h"
#include "upcalls.h"
#include "upper_names.h"

namespace firstlight {

/** What a session tells its owner. Called on native threads; must not block. */
class SessionEvents {
 public:
  virtual ~SessionEvents() = default;
  virtual void wanted(uint32_t content, uint32_t first_part, uint32_t last_part) = 0;
  virtual void timed_out(uint32_t content, double waited_ms) = 0;
  /** The last event: every thread but the one that calls has ended. Empty: the kernel ended it. */
  virtual void closed(const std::string& error) = 0;
};

/** What SessionCounters counts at one moment; index.ts says what each is. */
struct SessionStats {
  uint64_t lookups = 0, opens = 0, passthrough_opens = 0, reads = 0, bytes_read = 0;
  uint64_t waits = 0, waited_us = 0, interrupted = 0, timeouts = 0;
  int64_t first_read_ms = 0;
  bool opens_unseen = false;
};

/** Counters of a running session: relaxed, nothing is ordered by them. */
struct SessionCounters {
  std::atomic<uint64_t> lookups{0}, opens{0}, passthrough_opens{0}, reads{0}, bytes_read{0};
  std::atomic<uint64_t> waits{0}, waited_us{0}, interrupted{0}, timeouts{0};
  std::atomic<int64_t> first_read_ms{0};
  std::atomic<bool> opens_unseen{false};

  SessionStats read() const {
    constexpr auto kRelaxed = std::memory_order_relaxed;
    return {
        lookups.load(kRelaxed),       opens.load(kRelaxed),       passthrough_opens.load(kRelaxed),
        reads.load(kRelaxed),         bytes_read.load(kRelaxed),  waits.load(kRelaxed),
        waited_us.load(kRelaxed),     interrupted.load(kRelaxed), timeouts.load(kRelaxed),
        first_read_ms.load(kRelaxed), opens_unseen.load(kRelaxed)};
  }
};

class Session : public WaitOwner, public std::enable_shared_from_this<Session> {
 public:
  Session(std::shared_ptr<Template> tree, std::unique_ptr<Transport> transport, Features features,
          uint32_t wait_timeout_ms, SessionEvents* events,
          size_t idle_backings = BackingTable::kIdleMax,
          std::shared_ptr<AccessTrace> trace = std::make_shared<AccessTrace>(),
          std::shared_ptr<UpcallChannel> channel = nullptr);
  ~Session() override;

  /** Starts the threads. Once. */
  void run();
  /** Ends what waits with EIO, and every later wait; requests that need not wait are still
   * answered. */
  void refuse_waits();
  /** Makes the threads end, whatever the kernel does. Blocks until they have (bounded by their file
   * I/O). */
  void abort();
  /** Waits until the session has closed, at most so long. True where it has. */
  bool wait_closed(std::chrono::milliseconds bound);
  /** Why the session ended; empty where the kernel ended it. After `closed`. */
  std::string error();
  /** Joins the housekeeper; after `closed`. */
  void join();

  const Features& features() const { return features_; }
  const SessionCounters& counters() const { return counters_; }

  // For the operations.
  const Toc& toc() const { return template_->toc(); }
  Template& tree() { return *template_; }
  BackingTable& backing() { return backing_; }
  HandleTable& handles() { return handles_; }
  SessionCounters& count() { return counters_; }
  AccessTrace& trace() { return *trace_; }
  bool passthrough() const { return features_.passthrough && backing_.usable(); }
  /** The same for files of the writable layer. */
  bool passthrough_upper() const { return features_.passthrough && backing_.usable_upper(); }
  Divergence& divergence() { return divergence_; }
  AdoptedFiles& adopted() { return adopted_; }
  LentDirectories& lent() { return lent_; }
  Notifier& notifier() { return notifier_; }
  BlockingPool& pool() { return pool_; }
  /** nullptr in a session that is not writable. */
  UpcallChannel* channel() { return channel_.get(); }
  /** UpcallChannel::still. */
  uint64_t still() { return channel_ == nullptr ? 1 : channel_->still(); }
  /** Sends a request to the tree: kAnswered, or -EIO where nobody is there. */
  int upcall(std::shared_ptr<Upcall> upcall);
  /** UpcallChannel::forget. */
  void forget(uint64_t node, uint64_t lookups) {
    if (channel_ != nullptr) channel_->forget(node, lookups);
  }

  /** Answers one request; every request gets exactly one reply, at once or after a wait. Lane
   * threads, tests. */
  void dispatch(const uint8_t* bytes, size_t length, uint32_t lane, uint8_t* scratch);
  /** The calling thread may wait for a disk from here on. */
  void about_to_block() { transport_->about_to_block(); }
  /** It may, but hardly ever does: until its next request. */
  void may_block() { transport_->may_block(); }
  /** Sends a reply. Returns 0 or a negative errno. */
  int reply(uint32_t lane, uint64_t unique, int error, const void* data, size_t bytes);
  /** Lets a request wait: kParked takes it, with its event sent; else it can be answered (or
   * refused) now. */
  ContentTable::Outcome park(std::unique_ptr<Parked>& parked);
  /** A signal has come to the caller of a request. */
  void interrupted(uint64_t unique);
  /** True where an INTERRUPT came for a request that did not wait then; once. */
  bool was_interrupted(uint64_t unique);
  /** The housekeeper looks at what waits. */
  void look();
  /** The tree answers for the node from now on; on return nobody else is. The tree's thread. */
  void thaw(uint64_t node);
  /** OPEN without O_TRUNC and attributes of the node are answered from this file; `links` 0, or
   * those of a directory, of which there is no OPEN. `writable`: OPEN to write too. */
  void adopt(uint64_t node, UniqueFd fd, uint64_t ino, uint32_t links, bool writable);
  void disown(uint64_t node);
  /** The wait of an upcall is over. Housekeeper. */
  void resume_upcall(const Parked& parked);
  /** What becomes of opens; HandleTable::set_open_mode. Of a read-only session. */
  bool set_open_mode(OpenMode mode) { return handles_.set_open_mode(mode); }
  /** HandleTable::end_opens, where that is wanted. */
  bool end_opens();
  /** Notes that bytes of a content, or a way to them, were given out. */
  void gave_content();

  // What the kernel keeps to itself while opens are unseen, for a trace. These three may wait for
  // requests that the lanes answer, or refuse at the end: neither on a lane nor on JavaScript's
  // thread.
  /** OpenWatch::start, once at a time (EALREADY). Its records are those of `trace`. */
  int watch_opens(const std::string& mount_point, std::string* what);
  /** Ends the watch when what has been opened before is recorded. */
  void unwatch_opens();
  /** The kernel forgets what it has cached of the files of several parts: it asks for it again. */
  void forget_reads();
  /** True from `watch_opens` until `unwatch_opens`. */
  bool watches_opens();

  // WaitOwner
  void resume(std::unique_ptr<Parked> parked) override;
  void lost(uint32_t content) override;

 private:
  void lane_main(uint32_t lane);
  void housekeeper_main();
  void finish(std::unique_ptr<Parked> parked, uint8_t* scratch);
  Clock::time_point sweep(uint8_t* scratch);
  Clock::time_point sweep_upcalls(Clock::time_point next);
  void end(uint8_t* scratch);
  void end_helpers();
  bool helpers_ended();
  void drop_pages(std::vector<uint32_t> contents);

  std::shared_ptr<Template> template_;
  std::unique_ptr<Transport> transport_;
  Features features_;
  std::chrono::milliseconds wait_bound_;
  SessionEvents* events_;
  BackingTable backing_;
  Divergence divergence_;
  HandleTable handles_;
  AdoptedFiles adopted_;
  LentDirectories lent_;
  std::shared_ptr<UpcallChannel> channel_;  // of a writable session
  Notifier notifier_;
  BlockingPool pool_;
  const std::shared_ptr<AccessTrace> trace_;
  SessionCounters counters_;

  std::vector<std::thread> lanes_;
  std::thread housekeeper_;
  std::atomic<uint32_t> lanes_ended_{0};

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable closed_signal_;
  ParkedList done_;                // waits that are over
  std::vector<uint32_t> lost_;     // contents whose pages the kernel is to forget
  std::atomic<size_t> losses_{0};  // of those that the notifier has not been given yet
  bool look_ = false;              // something to look at before the next planned moment
  std::shared_ptr<OpenWatch> watch_;
  uint32_t guests_ = 0;  // threads of others that may wait for requests
  bool ending_ = false;  // the lanes are gone: no more of those
  bool closed_ = false;
  std::string error_;  // first error of a lane
};

/** A buffer for replies or requests; touched, and so backed by memory, only as far as it is used.
 */
class Scratch {
 public:
  explicit Scratch(size_t bytes = kMaxReply);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  uint8_t* get() const { return bytes_; }

 private:
  uint8_t* bytes_;
  size_t size_;
};

}  // namespace firstlight
