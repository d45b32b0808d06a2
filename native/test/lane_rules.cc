// Which lane reads: one at a time, and never none for long, whatever the one that reads is at.
#include <stdio.h>
#include <unistd.h>

#include <latch>
#include <thread>

#include "../lane_reader.h"
#include "harness.h"

namespace firstlight::test {

namespace {

using std::chrono::milliseconds;

// Requests of one byte.
struct Device {
  int ends[2];
  Device() {
    if (pipe(ends) != 0) die("a pipe");
  }
  ~Device() { close(ends[0]); }
  void send() {
    if (write(ends[1], "r", 1) != 1) die("a request");
  }
  void end() { close(ends[1]); }
};

// The lane that reads waits for a disk: another one takes the next request, and all that come
// after.
void a_lane_that_blocks_keeps_no_request_waiting(milliseconds quiet) {
  Device device;
  LaneGate gate;
  std::latch first(1), disk(1), second(1);
  std::atomic<int> taken{0};
  auto lane = [&] {
    LaneReader reader(device.ends[0], &gate, false);
    uint8_t byte;
    while (reader.read(&byte, 1) > 0) {
      int number = taken.fetch_add(1);
      if (number > 1) continue;
      if (number == 1) {
        second.count_down();
        continue;
      }
      reader.may_block();
      first.count_down();
      disk.wait();
    }
  };
  std::thread one(lane), other(lane), another(lane);
  // As long as nothing happens, who patrols falls asleep.
  std::this_thread::sleep_for(quiet);
  device.send();
  first.wait();
  device.send();
  // For ever, should nobody take over.
  second.wait();
  disk.count_down();
  for (int i = 0; i < 10; i++) device.send();
  while (taken.load() < 12) std::this_thread::yield();
  device.end();
  for (std::thread* thread : {&one, &other, &another}) thread->join();
}

// Many lanes that come, go, wait and are replaced: no two read at once.
void one_lane_at_a_time(Random& random) {
  constexpr int kTurns = 3000;
  LaneGate gate;
  std::atomic<int> inside{0}, turns{0}, taken_over{0};
  auto lane = [&](uint64_t seed) {
    Random own(seed);
    uint64_t turn = 0;
    while (turns.fetch_add(1) < kTurns) {
      if (turn == 0) turn = gate.enter();
      if (inside.fetch_add(1) != 0) die("two lanes read at once");
      std::this_thread::yield();
      inside.fetch_sub(1);
      bool risks = own() % 4 == 0;
      if (risks) gate.risk(turn);
      if (risks && own() % 32 == 0) std::this_thread::sleep_for(milliseconds(5));
      if (risks && own() % 4 != 0) {
        turn = gate.safe(turn);
        if (turn == 0) taken_over++;
        continue;
      }
      if (!risks && own() % 2 != 0) continue;
      gate.leave(turn);
      turn = 0;
    }
    if (turn != 0) gate.leave(turn);
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++) threads.emplace_back(lane, random());
  for (std::thread& thread : threads) thread.join();
  if (taken_over.load() == 0) die("no lane was replaced");
}

}  // namespace

void lane_rules(Random& random) {
  for (milliseconds quiet : {milliseconds(0), milliseconds(200)}) {
    a_lane_that_blocks_keeps_no_request_waiting(quiet);
  }
  one_lane_at_a_time(random);
  printf("lane rules: passed\n");
}

}  // namespace firstlight::test
