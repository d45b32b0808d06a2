// What the harness has instead of a kernel and an image: a transport that checks every reply, and
// an image with each kind of file, in a directory of its own.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "../session.h"

namespace firstlight::test {

/** Ends the program with a message; what is wrong is wrong for good. */
[[noreturn]] void die(const std::string& what);

/** Deterministic numbers: a failure is repeated by its seed. */
using Random = std::mt19937_64;

/** A flat TOC with directories, files of one and more parts, links, devices and xattrs. */
std::vector<uint8_t> make_toc();

/** A store directory on disk, removed at the end. */
class Store {
 public:
  explicit Store(const std::vector<uint8_t>& toc);
  ~Store();
  std::shared_ptr<Template> open() const;
  /** Puts a content's file where it belongs (whole, of the right size). */
  void put(const Toc& toc, uint32_t content) const;
  const std::string& dir() const { return dir_; }

 private:
  std::string dir_;
};

/**
 * A transport without a kernel. Holds the session to the protocol: one reply for each request that
 * has one, lengths that agree, errnos in range, and the kernel's rules for opens of one inode.
 */
class FakeTransport : public Transport {
 public:
  explicit FakeTransport(uint32_t lanes) : lanes_(lanes) {}
  ~FakeTransport() override;

  uint32_t lanes() const override { return lanes_; }
  ssize_t receive(uint32_t lane, uint8_t* buffer, size_t bytes) override;
  int reply(uint32_t lane, const iovec* pieces, int count) override;
  int notify(iovec* pieces, int count) override;
  int open_backing(int fd) override;
  void close_backing(int32_t id) override;
  void stop() override;

  /** Notes a request before it is dispatched. `opcode` decides whether it has a reply. */
  void expect(uint64_t unique, uint32_t opcode, uint64_t node);
  /** Fails every further open_backing with this errno; 0: none. */
  void refuse_backing(int error) { refuse_.store(error); }
  /** What happens elsewhere while the next open_backing is under way; once. */
  void while_backing(std::function<void()> meanwhile) { meanwhile_ = std::move(meanwhile); }
  /** Backing ids that are open. */
  size_t backings();
  /** Replies that are still missing. */
  size_t missing();
  /** A handle that is open, picked at random; false where there is none. */
  bool pick_handle(Random& random, uint64_t* node, uint64_t* fh);
  /** ENOSYS to an OPEN means the end of opens, as of a read-only session; a tree may say anything.
   */
  void watch_end_of_opens() { watches_end_ = true; }
  /** An OPEN was answered with ENOSYS: the kernel opens alone, and sends no RELEASE either. */
  bool unseen();
  /** The kernel releases a handle: its rules no longer count it. */
  bool released(uint64_t node, uint64_t fh);

 private:
  struct Pending {
    uint32_t opcode;
    uint64_t node;
  };
  struct Opened {
    uint64_t node;
    uint64_t fh;
    uint32_t flags;
    int32_t backing;
  };
  void check_open(uint64_t node, const uint8_t* body, size_t bytes);

  uint32_t lanes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false;
  bool watches_end_ = false;
  bool unseen_ = false;
  std::atomic<int> refuse_{0};
  std::function<void()> meanwhile_;
  std::unordered_map<uint64_t, Pending> pending_;
  std::vector<Opened> opened_;
  std::set<int32_t> backings_;
  int32_t next_backing_ = 1;
};

}  // namespace firstlight::test
