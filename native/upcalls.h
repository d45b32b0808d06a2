// The way of a request to the writable tree and back: decoded requests in a queue, what they are
// while the tree works on them, and their replies. One channel for each writable session. It knows
// nothing of JavaScript; upcalls_napi.cc does.
//
// Threads. Lanes submit. One thread, the tree's, takes and replies. The session's housekeeper sends
// a request again whose wait is over, and ends one whose caller is being killed. A request is
// answered by whoever takes it out of the table, so it is answered once, whoever comes first.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "fuse_abi.h"
#include "tree_gate.h"
#include "unique_fd.h"

namespace firstlight {

class Session;

/** One request for the tree; the slots are those of IN in src/native/upcalls.ts. */
struct Upcall {
  static constexpr size_t kSlots = 24;
  /** First slot of the operation's own numbers. */
  static constexpr size_t kArg = 6;
  /** Nodes that one FORGET names, each with its lookups. */
  static constexpr size_t kForgets = (kSlots - kArg) / 2;
  /** What stands for the opcode in news of changes that lanes have made (UpcallChannel::tell). */
  static constexpr double kCreated = 200;
  static constexpr double kRemoved = 201;

  /** 0: a message without a reply. */
  uint64_t call = 0;
  double numbers[kSlots] = {};
  std::string name, name2;
  std::vector<uint8_t> value;
  bool has_value = false;
  /** Of news of a removal: the file. Goes to the tree with them. */
  UniqueFd fd;

  // The request itself.
  uint32_t opcode = 0;
  uint64_t unique = 0;
  uint64_t node = 0;
  uint32_t lane = 0;
  uint32_t tid = 0;
  /** Of an OPEN or CREATE: flags of open(2). */
  uint32_t flags = 0;
  /** Room for the reply of a listing or an xattr, in bytes. */
  uint32_t room = 0;

  // Under the channel's lock.
  enum class Stage : uint8_t {
    /** In the queue, or being worked on, or its answer is being made. */
    kBusy,
    /** The tree has looked at it and let it wait; nothing that can be seen has been done. */
    kHeld,
    /** The content table has it. */
    kParked,
  } stage = Stage::kBusy;
  bool interrupted = false;

  // The tree's thread only.
  std::vector<uint8_t> listing;
  bool listing_full = false;
};

class UpcallChannel {
 public:
  /** A channel with a number of its own; it can be found as long as somebody holds it. */
  static std::shared_ptr<UpcallChannel> make();
  static std::shared_ptr<UpcallChannel> find(double number);
  double number() const { return number_; }

  // The tree's side.
  /** `wake` is called by any thread when something can be taken; it must not block. False where
   * somebody is attached. */
  bool attach(std::function<void()> wake);
  /** Requests end with EIO from now on; those that the tree has not answered, too. */
  void detach();
  /**
   * The next request or message to be worked on; nullptr where there is none. Looks again for some
   * 30 us before it says so, as long as that pays: a program's next request follows a reply at
   * once, and to wake a sleeping thread costs more than the request itself.
   */
  std::shared_ptr<Upcall> take_next();
  /** News of what lanes have done; nullptr where there are none. When the tree is inside its gate,
   * and before it works on a request: what `take_next` gave may be older than they are. */
  std::shared_ptr<Upcall> take_news();
  /** News that there are now. */
  size_t news();
  /** Several nodes that the kernel has let go; nullptr where there are none. `take_next` gives them
   * too, after everything else: this is for who needs to know first what they held. Inside the
   * gate, when there are no news. */
  std::shared_ptr<Upcall> take_forgets();
  TreeGate& gate() { return gate_; }
  /** Node ids that lanes may give to files; those of the lease before are used up first. */
  void lease_nodes(uint64_t first, uint32_t count);
  /** The tree has looked at a request without answering it. */
  void hold(const std::shared_ptr<Upcall>& upcall);
  /** Takes a request out of the table, to answer it; nullptr where it was answered or ended. */
  std::shared_ptr<Upcall> claim(uint64_t call);
  /** A request that is not answered; it stays. */
  std::shared_ptr<Upcall> peek(uint64_t call);
  /** Sends the request again. */
  void again(uint64_t call);
  void wait_for_content(uint64_t call, uint32_t content);
  /** The same number, above 0, as long as the tree changes nothing; 0 while it may be doing so. */
  uint64_t still();
  /** Requests and messages so far. */
  uint64_t count() const { return count_.load(std::memory_order_relaxed); }
  /** Times that the tree's thread was woken. */
  uint64_t wakes() const { return wakes_.load(std::memory_order_relaxed); }
  /** Work of other threads that shall be seen by the tree's thread in order with the requests. */
  void post(uint64_t done);
  /** The session, as long as it runs. */
  std::shared_ptr<Session> session();
  /** As Session::thaw; before the session has begun, for when it does. */
  void thaw(uint64_t node);
  /** As AdoptedFiles::hold_root; before the session has begun, for when it does. */
  void hold_root(UniqueFd fd);

  // The session's side.
  /** Before the lanes start. Thaws what was thawed before. */
  void session_began(const std::shared_ptr<Session>& session);
  /** The lanes have ended: what the tree has not answered is answered with an errno. */
  void session_ended(int error);
  /** Sends a request to the tree. False: nobody is there, it is to be refused. */
  bool submit(std::shared_ptr<Upcall> upcall);
  /** The kernel has let go of a node. The tree hears of it when it has done all else for which it
   * was woken; it is not woken for it at once (`gathers_until`), unless there are many. Where
   * nobody is there, nobody counts. */
  void forget(uint64_t node, uint64_t lookups);
  /** When the tree is to be woken for what has gathered by then; `max`: nothing has. */
  std::chrono::steady_clock::time_point gathers_until();
  /** That time has come, or is not to be waited for. */
  void end_gathering();
  // A lane that makes a change in the tree's place, and keeps that out meanwhile.
  /** False: nobody is there to hear of it, or too much of what was done before has not been heard.
   * From here on the tree is not `still`. */
  bool begin_change();
  /** The next leased node id; 0: the lease is used up. */
  uint64_t next_node();
  /** What `next_node` said last was not used: the tree counts those that were. */
  void return_node(uint64_t node);
  /** The change is done; `news` nullptr: there was none. The tree hears of it before it begins with
   * any other request, and at some time where there is none: nothing that is to last lies in it. */
  void end_change(std::shared_ptr<Upcall> news);
  /** The wait of a parked request is over. */
  void resumed(uint64_t call, int error, bool interrupted);
  enum class Found { kNone, kBusy, kHeld, kParked };
  /** A signal has come to the caller of a request. */
  Found interrupt(uint64_t unique);
  struct Interrupted {
    uint64_t call;
    uint32_t tid;
  };
  /** Held requests whose caller got a signal. */
  std::vector<Interrupted> interrupted();
  /** Ends a request that is held still, and counts it before its caller can tell of that. */
  void end_held(uint64_t call, int error, std::atomic<uint64_t>* ended);

 private:
  explicit UpcallChannel(double number) : number_(number) {}
  void enqueue(std::shared_ptr<Upcall> upcall);
  void wake_tree();
  bool gather();
  std::shared_ptr<Upcall> pop_forgets();
  std::shared_ptr<Upcall> pop_news();
  std::shared_ptr<Upcall> pop();
  bool worth_looking();
  bool look();
  void refuse(const std::shared_ptr<Upcall>& upcall, int error);
  std::vector<std::shared_ptr<Upcall>> take_all();

  static constexpr auto kNever = std::chrono::steady_clock::time_point::max();
  struct Lease {
    uint64_t next;
    uint64_t end;
  };

  const double number_;
  TreeGate gate_;
  std::atomic<uint64_t> count_{0};
  std::atomic<uint64_t> wakes_{0};
  std::mutex mutex_;
  std::function<void()> wake_;
  bool attached_ = false;
  bool signalled_ = false;
  uint64_t next_call_ = 1;
  uint64_t turns_ = 0;  // times that something was given to the tree
  std::weak_ptr<Session> session_;
  std::vector<uint64_t> thawed_before_;
  UniqueFd root_before_;
  std::unordered_map<uint64_t, std::shared_ptr<Upcall>> calls_;
  std::deque<std::shared_ptr<Upcall>> queue_;
  std::atomic<size_t> queued_{0};
  struct Forget {
    uint64_t node;
    uint64_t lookups;
  };
  std::deque<Forget> forgets_;
  std::deque<std::shared_ptr<Upcall>> news_;
  std::chrono::steady_clock::time_point gathers_until_ = kNever;
  std::deque<Lease> leases_;
  uint32_t changing_ = 0;  // lanes between begin_change and end_change

  // The tree's thread only.
  int credit_ = 0;           // how well looking paid lately
  uint32_t since_look_ = 0;  // times it was not tried
};

}  // namespace firstlight
