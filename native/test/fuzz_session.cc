// Requests without a kernel: mostly sound, some damaged, from one thread or many, while contents
// arrive, fail and recover. The fake transport holds the session to the protocol.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <thread>

#include "harness.h"

namespace firstlight::test {

namespace {

struct Quiet : SessionEvents {
  std::atomic<uint64_t> events{0};
  std::atomic<int> closes{0};
  void wanted(uint32_t, uint32_t first, uint32_t last) override {
    if (first > last) die("wanted the wrong way round");
    events++;
  }
  void timed_out(uint32_t, double) override { events++; }
  void closed(const std::string&) override { closes++; }
};

// Few, so that they are closed and opened again all the time.
constexpr size_t kIdleBackings = 3;

// One session over the fake kernel.
struct World {
  Store store;
  std::shared_ptr<Template> tree;
  Quiet events;
  FakeTransport* transport;
  std::shared_ptr<Session> session;
  std::atomic<uint64_t> unique{1};

  World(const std::vector<uint8_t>& toc, bool passthrough, uint32_t timeout_ms)
      : store(toc), tree(store.open()) {
    if (tree == nullptr) die("the template does not open");
    auto made = std::make_unique<FakeTransport>(2);
    transport = made.get();
    Features features;
    features.passthrough = passthrough;
    session = std::make_shared<Session>(tree, std::move(made), features, timeout_ms, &events,
                                        kIdleBackings);
    session->run();
  }
  ~World() {
    session->abort();
    session->join();
    if (transport->missing() != 0) die("requests without a reply");
    if (tree->table().waiting() != 0) die("waits that outlive their session");
    if (events.closes != 1) die("closed not once");
  }
};

struct Message {
  fuse_in_header header = {};
  uint8_t body[512] = {};
};

// A request that is mostly sound, then perhaps damaged.
size_t make_request(World& world, Random& random, Message* m) {
  static const uint32_t kUsual[] = {
      FUSE_LOOKUP,   FUSE_GETATTR,   FUSE_READLINK, FUSE_OPEN,         FUSE_OPEN,    FUSE_OPEN,
      FUSE_READ,     FUSE_READ,      FUSE_RELEASE,  FUSE_RELEASE,      FUSE_RELEASE, FUSE_FLUSH,
      FUSE_GETXATTR, FUSE_LISTXATTR, FUSE_READDIR,  FUSE_READDIRPLUS,  FUSE_STATFS,  FUSE_INTERRUPT,
      FUSE_FORGET,   FUSE_OPENDIR,   FUSE_SETATTR,  FUSE_BATCH_FORGET, FUSE_LSEEK};
  *m = {};
  uint32_t rows = world.tree->toc().rows();
  m->header.opcode = random() % 20 == 0 ? static_cast<uint32_t>(random() % 80)
                                        : kUsual[random() % std::size(kUsual)];
  m->header.nodeid = random() % 50 == 0 ? random() : 1 + random() % rows;
  m->header.pid = random() % 3 == 0 ? static_cast<uint32_t>(gettid()) : 0;
  m->header.unique = world.unique.fetch_add(2);
  size_t bytes = random() % 64;
  uint64_t node = 0, fh = 0;
  bool handle = world.transport->pick_handle(random, &node, &fh);
  switch (m->header.opcode) {
    case FUSE_LOOKUP: {
      static const char* kNames[] = {"a-dir", "f07", "f01", "nothing", "", ".", ".."};
      const char* name = kNames[random() % std::size(kNames)];
      bytes = strlen(name) + 1;
      memcpy(m->body, name, bytes);
      break;
    }
    case FUSE_OPEN:
      bytes = sizeof(fuse_open_in);
      if (random() % 30 == 0) m->body[0] = static_cast<uint8_t>(random());
      break;
    case FUSE_READ: {
      fuse_read_in in = {};
      in.fh = handle ? fh : random() % 10;
      if (handle) m->header.nodeid = node;
      in.offset = random() % (4 * kPartBytes);
      in.size = static_cast<uint32_t>(random() % (kMaxReply + 100));
      if (random() % 40 == 0) in.offset = random();
      bytes = sizeof in;
      memcpy(m->body, &in, bytes);
      break;
    }
    case FUSE_RELEASE:
    case FUSE_FLUSH: {
      // The kernel releases only what is open, once: another thread may have picked the same.
      fuse_release_in in = {};
      if (m->header.opcode == FUSE_RELEASE && handle) {
        handle = world.transport->released(node, fh);
      }
      in.fh = handle ? fh : 0;
      if (handle) m->header.nodeid = node;
      bytes = sizeof in;
      memcpy(m->body, &in, bytes);
      break;
    }
    case FUSE_READDIR:
    case FUSE_READDIRPLUS: {
      fuse_read_in in = {};
      in.offset = random() % 2 == 0 ? 0 : random() % 60;
      if (random() % 40 == 0) in.offset = random();
      in.size = static_cast<uint32_t>(random() % 8192);
      if (random() % 40 == 0) in.size = static_cast<uint32_t>(random());
      m->header.nodeid = 1 + random() % 3;
      bytes = sizeof in;
      memcpy(m->body, &in, bytes);
      break;
    }
    case FUSE_GETXATTR: {
      fuse_getxattr_in in = {};
      in.size = static_cast<uint32_t>(random() % 4096);
      memcpy(m->body, &in, sizeof in);
      const char* name = random() % 2 == 0 ? "user.big" : "security.capability";
      memcpy(m->body + sizeof in, name, strlen(name) + 1);
      bytes = sizeof in + strlen(name) + 1;
      break;
    }
    case FUSE_INTERRUPT: {
      fuse_interrupt_in in = {};
      in.unique = world.unique.load() - 2 * (random() % 100);
      bytes = sizeof in;
      memcpy(m->body, &in, bytes);
      break;
    }
    default:
      for (size_t i = 0; i < bytes; i++) m->body[i] = static_cast<uint8_t>(random());
  }
  // What is damaged never names a handle: a kernel that lies about handles is not the enemy.
  bool harmless = m->header.opcode != FUSE_RELEASE && m->header.opcode != FUSE_OPEN;
  if (harmless && random() % 10 == 0) {
    for (int i = 0; i < 3; i++) m->body[random() % 128] = static_cast<uint8_t>(random());
    bytes = random() % 130;
  }
  m->header.len = static_cast<uint32_t>(sizeof m->header + bytes);
  if (harmless && random() % 50 == 0) m->header.len = static_cast<uint32_t>(random());
  return sizeof m->header + bytes;
}

void mark_something(World& world, Random& random) {
  const Toc& toc = world.tree->toc();
  ContentTable& table = world.tree->table();
  std::vector<uint32_t> list(1 + random() % 6);
  switch (random() % 9) {
    case 0:
    case 1:
    case 2:
      for (uint32_t& c : list) {
        c = static_cast<uint32_t>(random() % toc.contents());
        if (random() % 20 != 0) world.store.put(toc, c);
      }
      table.mark_ready(list);
      break;
    case 3:
    case 4:
    case 5:
      for (uint32_t& part : list) part = static_cast<uint32_t>(random() % toc.parts());
      table.mark_parts(list);
      break;
    case 6:
      for (uint32_t& c : list) c = static_cast<uint32_t>(random() % toc.contents());
      table.mark_failed(list, 1 + static_cast<int>(random() % 120));
      break;
    case 7:
      for (uint32_t& c : list) c = static_cast<uint32_t>(random() % toc.contents());
      table.clear_failed(list);
      break;
    case 8:
      for (uint32_t& c : list) c = static_cast<uint32_t>(random() % toc.contents());
      table.forget(list);
      break;
  }
}

void one_request(World& world, Random& random, uint8_t* scratch) {
  Message m;
  size_t bytes = make_request(world, random, &m);
  world.transport->expect(m.header.unique, m.header.opcode, m.header.nodeid);
  // Exactly as many bytes as came, so that a read past them is seen.
  std::unique_ptr<uint8_t[]> exact(new uint8_t[bytes]);
  memcpy(exact.get(), &m.header, sizeof m.header);
  memcpy(exact.get() + sizeof m.header, m.body, bytes - sizeof m.header);
  world.session->dispatch(exact.get(), bytes, static_cast<uint32_t>(random() % 2), scratch);
}

}  // namespace

void fuzz_requests(const Deadline& deadline, Random& random) {
  const std::vector<uint8_t> toc = make_toc();
  Scratch scratch;
  uint64_t rounds_done = 0;
  while (!deadline.passed()) {
    World world(toc, random() % 3 != 0, random() % 2 == 0 ? 5 : 0);
    uint64_t length = 1 + random() % 3000;
    for (uint64_t i = 0; i < length && !deadline.passed(); i++) {
      if (random() % 30 == 0) mark_something(world, random);
      if (random() % 500 == 0) world.transport->refuse_backing(random() % 2 == 0 ? ENOMEM : 0);
      if (random() % 2000 == 0) world.transport->refuse_backing(EPERM);
      one_request(world, random, scratch.get());
      rounds_done++;
    }
  }
  printf("requests: %llu\n", static_cast<unsigned long long>(rounds_done));
}

// The kernel's rules for opens hold whatever thread decides what while contents arrive.
void fuzz_threads(const Deadline& deadline, Random& random) {
  const std::vector<uint8_t> toc = make_toc();
  std::atomic<uint64_t> requests{0};
  while (!deadline.passed()) {
    bool passthrough = random() % 2 == 0;
    World world(toc, passthrough, random() % 2 == 0 ? 3 : 1000);
    if (random() % 3 == 0) {
      std::vector<uint32_t> all;
      for (uint32_t c = 0; c < world.tree->toc().contents(); c++) {
        world.store.put(world.tree->toc(), c);
        all.push_back(c);
      }
      world.tree->table().mark_ready(all);
    }
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; i++) {
      threads.emplace_back([&, seed = random()] {
        Random own(seed);
        Scratch scratch;
        for (int n = 0; n < 2000 && !deadline.passed(); n++) {
          one_request(world, own, scratch.get());
          requests++;
        }
      });
    }
    threads.emplace_back([&, seed = random()] {
      Random own(seed);
      for (int n = 0; n < 300 && !deadline.passed(); n++) {
        mark_something(world, own);
        world.session->counters().read();
        std::this_thread::yield();
      }
    });
    for (std::thread& thread : threads) thread.join();
  }
  printf("threads: %llu requests\n", static_cast<unsigned long long>(requests.load()));
}

}  // namespace firstlight::test
