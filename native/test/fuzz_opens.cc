// Opens of one file from several threads while its content arrives, is lost and comes again: of two
// opens that are decided at the same moment, the kernel would refuse one that has not seen the
// other. Where opens come to an end (OpenMode), none may be left to collide with those that the
// kernel makes alone.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <thread>

#include "harness.h"

namespace firstlight::test {

namespace {

constexpr uint32_t kLanes = 3;
// The first file of several parts that make_toc puts into a-dir.
constexpr uint32_t kRow = 5 + 2;

struct Deaf : SessionEvents {
  void wanted(uint32_t, uint32_t, uint32_t) override {}
  void timed_out(uint32_t, double) override {}
  void closed(const std::string&) override {}
};

struct Opener {
  Session& session;
  FakeTransport& transport;
  std::atomic<uint64_t>& unique;
  uint32_t lane;
  Random random;
  Scratch scratch;

  template <class T>
  void send(uint32_t opcode, uint64_t node, const T& body) {
    struct {
      fuse_in_header header = {};
      T body;
    } message;
    message.body = body;
    message.header.opcode = opcode;
    message.header.nodeid = node;
    message.header.unique = unique.fetch_add(2);
    message.header.len = sizeof message.header + sizeof body;
    transport.expect(message.header.unique, opcode, node);
    session.dispatch(reinterpret_cast<const uint8_t*>(&message), message.header.len, lane,
                     scratch.get());
  }

  void step() {
    uint64_t node = 0, fh = 0;
    if (transport.unseen()) {
      uint64_t offset = random() % (4 * kPartBytes);
      return send(FUSE_READ, kRow + 1, fuse_read_in{0, offset, 4096, 0, 0, 0, 0});
    }
    if (random() % 2 == 0 && transport.pick_handle(random, &node, &fh)) {
      if (transport.released(node, fh)) send(FUSE_RELEASE, node, fuse_release_in{fh, 0, 0, 0});
    } else {
      send(FUSE_OPEN, kRow + 1, fuse_open_in{0, 0});
    }
  }
};

// Every state that a content of several parts can be in, again and again.
void change_state(ContentTable& table, const Toc& toc, uint32_t content, Random& random) {
  std::vector<uint32_t> one = {content};
  std::vector<uint32_t> part = {toc.content(content).first_part};
  switch (random() % 3) {
    case 0:
      table.mark_failed(one, EIO);
      table.clear_failed(one);
      break;
    case 1:
      table.mark_parts(part);
      break;
    case 2:
      table.mark_ready(one);
  }
}

// Where opens are to be seen or not, again and again; until they are not.
void change_opens(Session& session, FakeTransport& transport, Random& random) {
  auto mode = static_cast<OpenMode>(random() % 3);
  // What was unseen before the call stays so.
  bool before = transport.unseen();
  if (session.set_open_mode(mode) && before) die("opens came back");
}

}  // namespace

void fuzz_opens(const Deadline& deadline, Random& random) {
  Store store(make_toc());
  auto tree = store.open();
  if (tree == nullptr) die("the template does not open");
  const Toc& toc = tree->toc();
  uint32_t content = toc.content_of(toc.row(kRow));
  if (content == kNone || toc.part_count(content) < 2) die("not a file of several parts");
  store.put(toc, content);
  Deaf events;
  std::atomic<uint64_t> unique{1};
  uint32_t ended = 0;
  while (!deadline.passed()) {
    auto made = std::make_unique<FakeTransport>(kLanes);
    FakeTransport& transport = *made;
    Features features;
    features.passthrough = features.direct_io_allow_mmap = true;
    features.writable = random() % 2 == 0;
    if (!features.writable) transport.watch_end_of_opens();
    auto session =
        std::make_shared<Session>(tree, std::move(made), features, 0, &events, 1,
                                  std::make_shared<AccessTrace>(), UpcallChannel::make());
    session->run();
    std::atomic<uint32_t> running{kLanes};
    std::vector<std::thread> threads;
    for (uint32_t lane = 0; lane < kLanes; lane++) {
      threads.emplace_back([&, lane, seed = random()] {
        Opener opener{*session, transport, unique, lane, Random(seed), Scratch()};
        for (int i = 0; i < 3000 && !deadline.passed(); i++) opener.step();
        running--;
      });
    }
    bool ends = !features.writable && random() % 2 == 0;
    while (running > 0) {
      change_state(tree->table(), toc, content, random);
      if (ends && random() % 16 == 0) change_opens(*session, transport, random);
    }
    ended += session->counters().read().opens_unseen ? 1 : 0;
    for (std::thread& thread : threads) thread.join();
    session->abort();
    session->join();
    if (transport.missing() != 0) die("requests without a reply");
  }
  printf("opens: %llu requests, %u sessions left to the kernel\n",
         static_cast<unsigned long long>(unique.load() / 2), ended);
}

}  // namespace firstlight::test
