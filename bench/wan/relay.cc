// A wide-area link for benches and tests: two network namespaces, each with one TUN device, and
// this process as the wire between them. Each direction has a one-way delay, a rate that all its
// flows share, and a queue that drops at its tail. The two ends run the kernel's own TCP, so
// connection set-up, slow start and loss recovery are the real ones. What does not live here: who
// talks over the link (wan.ts), and whether it is as long and as fast as it should be
// (wanprobe.cc).
//
// The namespaces have no names: they are descriptors of this process, to be entered by
// `nsenter --net=/proc/PID/fd/N`, and gone when it and what runs in them have ended, however they
// ended. It ends when its standard input does.
//
// Commands, a line each on standard input, answered by one JSON line each:
//   set RTT_US BITS_PER_SECOND QUEUE_BYTES     for packets that come from now on
//   stats                                      counters since the start

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <string>

namespace {

constexpr size_t kMtu = 1500;
// Wake-ups come at most this often, a small part of the round trip: what arrived meanwhile is taken
// in one go (at 100 Mbit/s this halves the processor time). It is the most that a packet is late.
constexpr int64_t kBatchPart = 128, kBatchMinNs = 200'000, kBatchMaxNs = 1'000'000;
// Packets that the kernel may hold for this process to read.
constexpr int kTxQueue = 20'000;
constexpr char kClientAddress[] = "198.18.0.2";
constexpr char kServerAddress[] = "198.18.0.1";

[[noreturn]] void Die(const char* what) {
  fprintf(stderr, "relay: %s: %s\n", what, strerror(errno));
  exit(1);
}

int64_t Now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

struct Link {
  int64_t delay_ns = 0;
  double ns_per_byte = 0;
  int64_t queue_bytes = 0;
};

struct Packet {
  int64_t due_ns;
  uint16_t bytes;
  uint8_t data[kMtu];
};

struct Counters {
  uint64_t packets = 0, bytes = 0, dropped = 0, connects = 0, max_queue_bytes = 0, refused = 0;
};

// One direction of the wire: a transmitter of fixed rate with a bounded queue, then the delay.
class Direction {
 public:
  Direction(int from, int to) : from_(from), to_(to) {}

  // Takes every packet that the sending side has ready.
  void Take(const Link& link) {
    for (;;) {
      Packet packet;
      const ssize_t got = read(from_, packet.data, sizeof packet.data);
      if (got < 0) {
        if (errno == EAGAIN) return;
        if (errno == EINTR) continue;
        Die("reading a TUN device");
      }
      if (got == 0) return;
      packet.bytes = static_cast<uint16_t>(got);
      Queue(link, packet);
    }
  }

  // Gives the receiving side what is due.
  void Deliver(int64_t now) {
    while (!flying_.empty() && flying_.front().due_ns <= now) {
      const Packet& packet = flying_.front();
      // The kernel refuses malformed packets and, without memory, good ones: both are losses.
      if (write(to_, packet.data, packet.bytes) != packet.bytes) counters_.refused++;
      flying_.pop_front();
    }
  }

  // When the next packet is due, or INT64_MAX.
  int64_t NextDue() const { return flying_.empty() ? INT64_MAX : flying_.front().due_ns; }
  const Counters& counters() const { return counters_; }

 private:
  void Queue(const Link& link, Packet& packet) {
    const int64_t now = Now();
    const int64_t start = std::max(now, free_at_ns_);
    const auto waiting = static_cast<int64_t>(static_cast<double>(start - now) / link.ns_per_byte);
    if (waiting + packet.bytes > link.queue_bytes) {
      counters_.dropped++;
      return;
    }
    counters_.max_queue_bytes =
        std::max(counters_.max_queue_bytes, static_cast<uint64_t>(waiting + packet.bytes));
    counters_.packets++;
    counters_.bytes += packet.bytes;
    if (IsConnect(packet)) counters_.connects++;
    free_at_ns_ = start + static_cast<int64_t>(packet.bytes * link.ns_per_byte);
    // A shorter delay that was just set must not let packets overtake each other.
    last_due_ns_ = std::max(last_due_ns_, free_at_ns_ + link.delay_ns);
    packet.due_ns = last_due_ns_;
    flying_.push_back(packet);
  }

  // A TCP SYN without ACK over IPv4: somebody opens a connection.
  static bool IsConnect(const Packet& packet) {
    const size_t header = static_cast<size_t>(packet.data[0] & 15) * 4;
    if (packet.data[0] >> 4 != 4 || packet.data[9] != IPPROTO_TCP) return false;
    if (packet.bytes < header + 20) return false;
    return (packet.data[header + 13] & 0x12) == 0x02;
  }

  const int from_, to_;
  int64_t free_at_ns_ = 0, last_due_ns_ = 0;
  std::deque<Packet> flying_;
  Counters counters_;
};

void WriteSysctl(const char* name, const char* value) {
  const std::string path = std::string("/proc/sys/net/ipv4/") + name;
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) Die(path.c_str());
  if (write(fd, value, strlen(value)) < 0) Die(path.c_str());
  close(fd);
}

// A namespace may take only those congestion controls that the machine allows to everybody: lets it
// allow cubic, Linux' own default, until this object goes.
class AllowCubic {
 public:
  AllowCubic() {
    FILE* file = fopen(kPath, "re");
    if (file == nullptr || fgets(before_, sizeof before_, file) == nullptr) Die(kPath);
    fclose(file);
    before_[strcspn(before_, "\n")] = 0;
    changed_ = strstr(before_, "cubic") == nullptr;
    if (changed_) WriteSysctl(kName, (std::string(before_) + " cubic").c_str());
  }
  AllowCubic(const AllowCubic&) = delete;
  ~AllowCubic() {
    if (changed_) WriteSysctl(kName, before_);
  }

 private:
  static constexpr char kName[] = "tcp_allowed_congestion_control";
  static constexpr char kPath[] = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
  char before_[256] = {};
  bool changed_ = false;
};

// As a server and a worker of today have them: buffers that never bound the window on such links.
void TuneNamespace() {
  WriteSysctl("tcp_rmem", "4096 131072 67108864");
  WriteSysctl("tcp_wmem", "4096 131072 67108864");
  // Every connection starts from nothing, whatever the ones before it have learned.
  WriteSysctl("tcp_no_metrics_save", "1");
  WriteSysctl("tcp_slow_start_after_idle", "1");
}

void SetAddress(int sock, const char* name, const char* address, const char* mask) {
  ifreq request = {};
  snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
  sockaddr_in value = {};
  value.sin_family = AF_INET;
  inet_pton(AF_INET, address, &value.sin_addr);
  memcpy(&request.ifr_addr, &value, sizeof value);
  if (ioctl(sock, SIOCSIFADDR, &request) < 0) Die("setting an address");
  inet_pton(AF_INET, mask, &value.sin_addr);
  memcpy(&request.ifr_netmask, &value, sizeof value);
  if (ioctl(sock, SIOCSIFNETMASK, &request) < 0) Die("setting a netmask");
}

void BringUp(int sock, const char* name) {
  ifreq request = {};
  snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
  if (ioctl(sock, SIOCGIFFLAGS, &request) < 0) Die("reading an interface's flags");
  request.ifr_flags |= IFF_UP;
  if (ioctl(sock, SIOCSIFFLAGS, &request) < 0) Die("bringing an interface up");
}

struct End {
  int netns, tun;
};

void UseCubic(const End& end) {
  if (setns(end.netns, CLONE_NEWNET) < 0) Die("entering a namespace");
  WriteSysctl("tcp_congestion_control", "cubic");
}

// Moves this process into a new network namespace and gives it its end of the wire.
End MakeEnd(const char* address) {
  if (unshare(CLONE_NEWNET) < 0) Die("making a network namespace (run as root)");
  End end;
  end.netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  end.tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (end.netns < 0 || end.tun < 0) Die("opening /dev/net/tun");
  ifreq request = {};
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  snprintf(request.ifr_name, sizeof request.ifr_name, "wan0");
  if (ioctl(end.tun, TUNSETIFF, &request) < 0) Die("making a TUN device");
  const int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (sock < 0) Die("making a socket");
  request.ifr_qlen = kTxQueue;
  if (ioctl(sock, SIOCSIFTXQLEN, &request) < 0) Die("setting a queue length");
  request.ifr_mtu = kMtu;
  if (ioctl(sock, SIOCSIFMTU, &request) < 0) Die("setting an MTU");
  SetAddress(sock, "wan0", address, "255.255.255.252");
  BringUp(sock, "lo");
  BringUp(sock, "wan0");
  close(sock);
  TuneNamespace();
  return end;
}

std::string Json(const Counters& c) {
  char text[256];
  snprintf(text, sizeof text,
           "{\"packets\":%lu,\"bytes\":%lu,\"dropped\":%lu,\"connects\":%lu,"
           "\"max_queue_bytes\":%lu,\"refused\":%lu}",
           c.packets, c.bytes, c.dropped, c.connects, c.max_queue_bytes, c.refused);
  return text;
}

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

void Say(const std::string& line) {
  printf("%s\n", line.c_str());
  fflush(stdout);
}

class Relay {
 public:
  Relay(const End& client, const End& server)
      : client_(client),
        server_(server),
        up_(client.tun, server.tun),
        down_(server.tun, client.tun) {}

  void Run() {
    for (;;) {
      Wait();
      if (!TakeCommands()) return;
      up_.Take(link_);
      down_.Take(link_);
      const int64_t now = Now();
      up_.Deliver(now);
      down_.Deliver(now);
      last_ns_ = now;
    }
  }

 private:
  void Wait() {
    pollfd fds[] = {{client_.tun, POLLIN, 0}, {server_.tun, POLLIN, 0}, {0, POLLIN, 0}};
    const int64_t due = std::min(up_.NextDue(), down_.NextDue());
    timespec timeout;
    timespec* bound = nullptr;
    if (due != INT64_MAX) {
      const int64_t left = std::max<int64_t>(0, due - Now());
      timeout = {left / 1'000'000'000, left % 1'000'000'000};
      bound = &timeout;
    }
    if (ppoll(fds, 3, bound, nullptr) < 0 && errno != EINTR) Die("waiting");
    input_ready_ = (fds[2].revents & (POLLIN | POLLHUP | POLLERR)) != 0;
    const int64_t early = last_ns_ + batch_ns_ - Now();
    if (early > 0) {
      const timespec rest = {0, early};
      nanosleep(&rest, nullptr);
    }
  }

  // False at the end of standard input.
  bool TakeCommands() {
    if (!input_ready_) return true;
    char chunk[512];
    const ssize_t got = read(0, chunk, sizeof chunk);
    if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN)) return false;
    if (got > 0) input_.append(chunk, static_cast<size_t>(got));
    for (size_t end; (end = input_.find('\n')) != std::string::npos; input_.erase(0, end + 1)) {
      Command(input_.substr(0, end));
    }
    return true;
  }

  void Command(const std::string& line) {
    double rtt_us, bits_per_second;
    long queue_bytes;
    if (sscanf(line.c_str(), "set %lf %lf %ld", &rtt_us, &bits_per_second, &queue_bytes) == 3 &&
        rtt_us >= 0 && bits_per_second >= 1e4 && queue_bytes >= static_cast<long>(kMtu)) {
      link_ = {static_cast<int64_t>(rtt_us * 500), 8e9 / bits_per_second, queue_bytes};
      batch_ns_ = std::clamp(link_.delay_ns * 2 / kBatchPart, kBatchMinNs, kBatchMaxNs);
      Say("{\"ok\":true}");
    } else if (line == "stats") {
      rusage usage;
      getrusage(RUSAGE_SELF, &usage);
      char cpu[128];
      snprintf(cpu, sizeof cpu, "\"cpu_s\":%.4f,\"wall_s\":%.4f",
               Seconds(usage.ru_utime) + Seconds(usage.ru_stime),
               static_cast<double>(Now() - started_ns_) / 1e9);
      Say("{\"up\":" + Json(up_.counters()) + ",\"down\":" + Json(down_.counters()) + "," + cpu +
          "}");
    } else {
      Say("{\"error\":\"unknown command, or a value out of its bounds\"}");
    }
  }

  const End client_, server_;
  Link link_ = {0, 8e9 / 1e8, 1 << 20};
  Direction up_, down_;
  std::string input_;
  bool input_ready_ = false;
  int64_t last_ns_ = 0, batch_ns_ = kBatchMinNs;
  const int64_t started_ns_ = Now();
};

}  // namespace

int main() {
  const int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  if (home < 0) Die("/proc/self/ns/net");
  const End client = MakeEnd(kClientAddress);
  const End server = MakeEnd(kServerAddress);
  if (setns(home, CLONE_NEWNET) < 0) Die("going back to the first namespace");
  {
    const AllowCubic allowed;
    UseCubic(client);
    UseCubic(server);
    if (setns(home, CLONE_NEWNET) < 0) Die("going back to the first namespace");
  }
  close(home);
  // A wire does not wait for a processor: other work on the machine must not lengthen it. Where
  // this is not allowed it still works.
  sched_param priority = {};
  priority.sched_priority = 10;
  if (sched_setscheduler(0, SCHED_RR, &priority) < 0 && setpriority(PRIO_PROCESS, 0, -20) < 0) {
    fprintf(stderr, "relay: runs without priority\n");
  }
  char ready[256];
  snprintf(ready, sizeof ready,
           "{\"client\":{\"netns\":\"/proc/%d/fd/%d\",\"address\":\"%s\"},"
           "\"server\":{\"netns\":\"/proc/%d/fd/%d\",\"address\":\"%s\"}}",
           getpid(), client.netns, kClientAddress, getpid(), server.netns, kServerAddress);
  Say(ready);
  Relay(client, server).Run();
}
