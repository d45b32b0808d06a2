// How requests come in and replies go out. A session knows no more of the kernel than this, so that
// FUSE over io_uring can take the place of /dev/fuse, and a test that of both.
#pragma once

#include <errno.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <string>

namespace firstlight {

class Transport {
 public:
  virtual ~Transport() = default;

  /** Number of lanes: each is read by one thread, and a reply goes out on the lane its request came
   * in. */
  virtual uint32_t lanes() const = 0;

  /**
   * Waits for the next request on a lane and puts it into `buffer` (at least abi::kMinReadBuffer
   * bytes). Returns its size, 0 when the kernel has ended the session or `stop` was called, or a
   * negative errno that ends the session.
   */
  virtual ssize_t receive(uint32_t lane, uint8_t* buffer, size_t bytes) = 0;

  /** The calling thread is about to wait for a disk or the like: another lane shall take the
   * requests. */
  virtual void about_to_block() {}
  /** What it does until the next `receive` hardly ever waits for a disk, but may: then another lane
   * shall take the requests. */
  virtual void may_block() {}

  /** Sends one reply (fuse_out_header first). Any thread. Returns 0 or a negative errno. */
  virtual int reply(uint32_t lane, const iovec* pieces, int count) = 0;

  /**
   * Sends a notification (fuse_out_header first, its `unique` 0 and its `error` the code). Waits
   * for locks that requests hold. May change `pieces`. Returns 0 or a negative errno.
   */
  virtual int notify(iovec*, int) { return -ENOSYS; }
  /** As `receive`, at once: -EAGAIN where there is no request. Only after the lanes have ended. */
  virtual ssize_t receive_now(uint8_t*, size_t) { return 0; }

  /** Registers a file for passthrough: its backing id (above 0) or a negative errno. */
  virtual int open_backing(int fd) = 0;
  virtual void close_backing(int32_t id) = 0;

  /** Makes `receive` return 0 on all lanes, from now on. Any thread; returns at once. */
  virtual void stop() = 0;
};

}  // namespace firstlight
