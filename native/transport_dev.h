// /dev/fuse: one descriptor from the mount, and a clone of it for each further lane.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "lane_reader.h"
#include "negotiate.h"
#include "transport.h"
#include "unique_fd.h"

namespace firstlight {

struct MountOptions {
  std::string mount_point;
  std::string source;
  bool allow_other = true;
  uint32_t lanes = 1;
  Wanted wanted;
};

class DevTransport : public Transport {
 public:
  /**
   * Mounts and shakes hands; blocks for as long as the kernel takes (bounded). On an error returns
   * nullptr with a positive errno and the step that failed, and nothing stays mounted.
   */
  static std::unique_ptr<DevTransport> mount(const MountOptions& options, Features* features,
                                             int* error, std::string* what);

  uint32_t lanes() const override { return static_cast<uint32_t>(lanes_.size()); }
  ssize_t receive(uint32_t lane, uint8_t* buffer, size_t bytes) override;
  void about_to_block() override;
  void may_block() override;
  int reply(uint32_t lane, const iovec* pieces, int count) override;
  int notify(iovec* pieces, int count) override;
  ssize_t receive_now(uint8_t* buffer, size_t bytes) override;
  int open_backing(int fd) override;
  void close_backing(int32_t id) override;
  void stop() override;

 private:
  DevTransport() = default;
  int take_root(bool below, UniqueFd* mount, std::string* what);
  int handshake(const Wanted& wanted, Features* features, std::string* what);
  int clone_lanes(uint32_t lanes);

  std::vector<UniqueFd> lanes_;
  LaneGate gate_;
  std::vector<LaneReader> readers_;
  // root_below.h: requests may name the node; it is the root.
  bool node_below_ = false;
  bool root_below_ = false;
  std::atomic<bool> stopped_{false};
};

/** Signal that wakes a thread out of a blocking read of /dev/fuse; its handler does nothing. */
int wake_signal();

}  // namespace firstlight
