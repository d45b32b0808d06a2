// Small TCP programs for the wide-area bench, run inside the relay's namespaces. What does not live
// here: the link itself (relay.cc), and what the figures mean (wan.ts).
//
//   wanprobe serve PORT [CONGESTION]
//       for each 8-byte count (big-endian) that a connection sends, sends that many bytes
//   wanprobe fetch HOST PORT BYTES CONNECTIONS cold|open|warm WARM_BYTES IDLE_MS
//       BYTES over some connections at once, and how long that took; connect included where `cold`.
//       `open`: the connections are there and have carried nothing; `warm`: they have carried
//       WARM_BYTES together before, and then rested
//   wanprobe ready PORT SEND EXPECT TIMEOUT_MS
//       asks on the loopback until an answer matches EXPECT (a POSIX extended regular expression),
//       and says when that was

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <regex.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

namespace {

[[noreturn]] void Die(const char* what) {
  fprintf(stderr, "wanprobe: %s: %s\n", what, strerror(errno));
  exit(1);
}

double Seconds(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

void SleepMs(long ms) {
  const timespec time = {ms / 1000, ms % 1000 * 1'000'000};
  nanosleep(&time, nullptr);
}

sockaddr_in Address(const char* host, int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  if (inet_pton(AF_INET, host, &address.sin_addr) != 1) Die("bad address");
  return address;
}

void Answer(int sock) {
  static const std::vector<char> data(1 << 18, 'x');
  uint64_t count;
  while (recv(sock, &count, sizeof count, MSG_WAITALL) == sizeof count) {
    for (uint64_t left = be64toh(count); left > 0;) {
      const ssize_t sent = send(sock, data.data(), std::min<uint64_t>(left, data.size()), 0);
      if (sent <= 0) return;
      left -= static_cast<uint64_t>(sent);
    }
  }
}

int Serve(int port, const char* congestion) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  const int one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (congestion != nullptr && setsockopt(listener, IPPROTO_TCP, TCP_CONGESTION, congestion,
                                          static_cast<socklen_t>(strlen(congestion))) < 0) {
    Die("this kernel does not have that congestion control");
  }
  const sockaddr_in address = Address("0.0.0.0", port);
  if (bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) Die("bind");
  if (listen(listener, 128) < 0) Die("listen");
  printf("ready\n");
  fflush(stdout);
  for (;;) {
    const int sock = accept(listener, nullptr, nullptr);
    if (sock < 0) continue;
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    std::thread([sock] {
      Answer(sock);
      close(sock);
    }).detach();
  }
}

int Connect(const char* host, int port) {
  const sockaddr_in address = Address(host, port);
  const int sock = socket(AF_INET, SOCK_STREAM, 0);
  const int one = 1;
  setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(sock, reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0)
    Die("connect");
  return sock;
}

// Asks for `bytes` and reads them; calls `progress` for each piece.
template <typename F>
void Fetch(int sock, uint64_t bytes, F&& progress) {
  const uint64_t count = htobe64(bytes);
  if (send(sock, &count, sizeof count, 0) != sizeof count) Die("send");
  std::vector<char> buffer(1 << 18);
  for (uint64_t left = bytes; left > 0;) {
    const ssize_t got = recv(sock, buffer.data(), std::min<uint64_t>(left, buffer.size()), 0);
    if (got <= 0) Die("the server ended the connection");
    left -= static_cast<uint64_t>(got);
    progress(bytes - left);
  }
}

struct Plan {
  const char* host;
  int port;
  uint64_t bytes;
  int connections;
  std::string kind;
  uint64_t warm_bytes;
  long idle_ms;
};

int RunFetch(const Plan& plan) {
  const auto share = [&](uint64_t all) { return all / static_cast<uint64_t>(plan.connections); };
  const auto each = [&](auto&& work) {
    std::vector<std::thread> threads;
    for (int i = 0; i < plan.connections; i++) threads.emplace_back([&, i] { work(i); });
    for (auto& thread : threads) thread.join();
  };
  std::vector<int> socks(static_cast<size_t>(plan.connections), -1);
  const bool cold = plan.kind == "cold";
  if (!cold) {
    each([&](int i) { socks[static_cast<size_t>(i)] = Connect(plan.host, plan.port); });
    if (plan.kind == "warm") {
      each([&](int i) {
        Fetch(socks[static_cast<size_t>(i)], share(plan.warm_bytes), [](uint64_t) {});
      });
    }
    SleepMs(plan.idle_ms);
  }
  double connect_s = 0, late_s = 0;
  const double start = Seconds(CLOCK_MONOTONIC);
  const uint64_t late = share(plan.bytes) / 10 * 3;
  uint64_t late_at = 0;
  each([&](int i) {
    int& sock = socks[static_cast<size_t>(i)];
    if (cold) sock = Connect(plan.host, plan.port);
    if (i == 0) connect_s = Seconds(CLOCK_MONOTONIC) - start;
    Fetch(sock, share(plan.bytes), [&](uint64_t done) {
      if (i != 0 || late_at != 0 || done < late) return;
      late_at = done;
      late_s = Seconds(CLOCK_MONOTONIC);
    });
  });
  const double end = Seconds(CLOCK_MONOTONIC);
  const double rest = static_cast<double>(share(plan.bytes) - late_at);
  printf("{\"connect_ms\":%.3f,\"ms\":%.3f,\"late_bytes_per_s\":%.0f}\n", connect_s * 1e3,
         (end - start) * 1e3, late_at == 0 || end <= late_s ? 0 : rest / (end - late_s));
  return 0;
}

// How long an answer may take: the service may be up and its code still on the way.
constexpr timeval kPatience = {60, 0};

// True where one exchange brought what is expected.
bool Ask(int port, const std::string& text, const regex_t& expected) {
  const sockaddr_in address = Address("127.0.0.1", port);
  const int sock = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
  bool found = false;
  if (connect(sock, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 &&
      send(sock, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size())) {
    std::string seen;
    char piece[4096];
    while (!found) {
      const ssize_t got = recv(sock, piece, sizeof piece, 0);
      if (got <= 0) break;
      seen.append(piece, static_cast<size_t>(got));
      found = regexec(&expected, seen.c_str(), 0, nullptr, 0) == 0;
    }
  }
  close(sock);
  return found;
}

int RunReady(int port, const char* text, const char* pattern, long timeout_ms) {
  regex_t expected;
  if (regcomp(&expected, pattern, REG_EXTENDED | REG_NOSUB) != 0) Die("bad regular expression");
  const double end = Seconds(CLOCK_MONOTONIC) + static_cast<double>(timeout_ms) / 1e3;
  printf("looking\n");
  fflush(stdout);
  while (!Ask(port, text, expected)) {
    if (Seconds(CLOCK_MONOTONIC) > end) {
      fprintf(stderr, "wanprobe: nobody gave the expected answer on port %d in time\n", port);
      return 1;
    }
    SleepMs(2);
  }
  printf("{\"ready_at_ms\":%.3f}\n", Seconds(CLOCK_REALTIME) * 1e3);
  return 0;
}

int Usage() {
  fprintf(stderr, "usage: wanprobe serve|fetch|ready ... (see wanprobe.cc)\n");
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  const std::string command = argc > 1 ? argv[1] : "";
  if (command == "serve" && argc >= 3) return Serve(atoi(argv[2]), argc > 3 ? argv[3] : nullptr);
  if (command == "fetch" && argc == 9) {
    const Plan plan = {argv[2],       atoi(argv[3]), strtoull(argv[4], nullptr, 10),
                       atoi(argv[5]), argv[6],       strtoull(argv[7], nullptr, 10),
                       atol(argv[8])};
    if (plan.connections < 1 || plan.connections > 256) return Usage();
    return RunFetch(plan);
  }
  if (command == "ready" && argc == 6)
    return RunReady(atoi(argv[2]), argv[3], argv[4], atol(argv[5]));
  return Usage();
}
