// Opens whose outcome hangs on what another thread does at that moment, step by step.
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <functional>

#include "../ops.h"
#include "../upcall_reply.h"
#include "harness.h"

namespace {
/** What happens elsewhere while the calling thread lets others run; once. */
thread_local std::function<void()> meanwhile;
}  // namespace

// The C library's, with what the test wants to happen at that moment.
extern "C" int sched_yield() {
  if (meanwhile) std::exchange(meanwhile, nullptr)();
  return static_cast<int>(syscall(SYS_sched_yield));
}

namespace firstlight::test {

namespace {

struct Deaf : SessionEvents {
  void wanted(uint32_t, uint32_t, uint32_t) override {}
  void timed_out(uint32_t, double) override {}
  void closed(const std::string&) override {}
};

// A writable session, one file of the image, and this thread as lane and as tree.
class OneFile {
 public:
  explicit OneFile(uint32_t row) : store_(make_toc()), tree_(store_.open()), node_(row + 1) {
    auto made = std::make_unique<FakeTransport>(1);
    transport = made.get();
    Features features;
    features.passthrough = features.direct_io_allow_mmap = features.writable = true;
    session = std::make_shared<Session>(tree_, std::move(made), features, 0, &events_, 1,
                                        std::make_shared<AccessTrace>(), channel_);
    channel_->attach([] {});
    session->run();
  }
  ~OneFile() {
    channel_->detach();
    session->abort();
    session->join();
    if (transport->missing() != 0) die("requests without a reply");
  }

  uint32_t content() const { return toc().content_of(toc().row(static_cast<uint32_t>(node_ - 1))); }
  const Toc& toc() const { return tree_->toc(); }
  void arrive_in_part() {
    tree_->table().mark_parts(std::vector<uint32_t>{toc().content(content()).first_part});
  }
  void arrive() {
    store_.put(toc(), content());
    tree_->table().mark_ready(std::vector<uint32_t>{content()});
  }

  template <class T>
  void send(uint32_t opcode, const T& body) {
    struct {
      fuse_in_header header = {};
      T body;
    } message;
    message.body = body;
    message.header.opcode = opcode;
    message.header.nodeid = node_;
    message.header.unique = unique_ += 2;
    message.header.pid = static_cast<uint32_t>(getpid());
    message.header.len = sizeof message.header + sizeof body;
    transport->expect(unique_, opcode, node_);
    session->dispatch(reinterpret_cast<const uint8_t*>(&message), message.header.len, 0,
                      scratch_.get());
  }
  /** Name of the handle that an OPEN gives; 0 where it fails or goes to the tree. */
  uint64_t open() {
    send(FUSE_OPEN, fuse_open_in{0, 0});
    return opened();
  }
  /** The same of an open that the tree answers from the template. */
  uint64_t open_by_tree() {
    session->thaw(node_);
    if (open() != 0) die("an open of a thawed node was not the tree's");
    return answer_from_template();
  }
  /** Name of the handle that the tree gives to who waits for it. */
  uint64_t answer_from_template() {
    auto upcall = channel_->take_next();
    if (upcall == nullptr) die("no upcall");
    reply_from_template(*channel_, upcall->call);
    return opened();
  }
  /** The kernel has let go of the handle; its RELEASE has not been sent. */
  void forget(uint64_t fh) { transport->released(node_, fh); }
  uint64_t node() const { return node_; }
  const Store& store() const { return store_; }

  FakeTransport* transport;
  std::shared_ptr<Session> session;

 private:
  uint64_t opened() {
    Random random(1);
    uint64_t node = 0, fh = 0;
    return transport->pick_handle(random, &node, &fh) ? fh : 0;
  }

  Store store_;
  std::shared_ptr<Template> tree_;
  Deaf events_;
  std::shared_ptr<UpcallChannel> channel_ = UpcallChannel::make();
  const uint64_t node_;
  uint64_t unique_ = 0;
  Scratch scratch_;
};

// b-file, of one part; and the first of a-dir that has several.
constexpr uint32_t kSmall = 2;
constexpr uint32_t kLarge = 5 + 2;

UniqueFd make_upper_file(const Store& store) {
  UniqueFd fd(open((store.dir() + "/upper").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd) die("a file of the writable layer");
  return fd;
}

// A lane has counted the last handle out and lets its backing go next.
void an_open_waits_for_the_release_of_another_file() {
  OneFile file(kSmall);
  file.arrive();
  UniqueFd upper = make_upper_file(file.store());
  if (file.session->backing().acquire_file(file.node(), upper.get(), false) <= 0) die("no backing");
  meanwhile = [&] { file.session->backing().release(file.node()); };
  if (file.open() != kFhPassthrough) die("an open was refused because of a release under way");
}

// The tree takes a file back, and lets go of its room on the disk, while a lane opens it.
void an_adopted_open_that_comes_too_late_keeps_nothing() {
  OneFile file(kSmall);
  file.arrive();
  file.session->thaw(file.node());
  file.session->adopt(file.node(), make_upper_file(file.store()), 1, 0, true);
  file.transport->while_backing([&] { file.session->disown(file.node()); });
  if (file.open() != 0) die("an open of a file that the tree has taken back");
  if (file.transport->backings() != 0) die("a backing id of a file that the tree has taken back");
  file.answer_from_template();
}

// A handle that was closed but may be mapped: who looks finds that it is not; the tree does not
// look.
void the_tree_reads_nobodys_maps() {
  for (bool by_tree : {false, true}) {
    OneFile file(kLarge);
    file.arrive_in_part();
    uint64_t fh = file.open();
    if (fh < kFhTable) die("no handle on an arriving file");
    file.send(FUSE_FLUSH, fuse_flush_in{fh, 0, 0, 0});
    file.forget(fh);
    file.arrive();
    uint64_t second = by_tree ? file.open_by_tree() : file.open();
    if (by_tree ? second < kFhTable : second != kFhPassthrough) {
      die(by_tree ? "the tree's thread has looked at a program's maps" : "no passthrough");
    }
  }
}

}  // namespace

void open_rules() {
  an_open_waits_for_the_release_of_another_file();
  an_adopted_open_that_comes_too_late_keeps_nothing();
  the_tree_reads_nobodys_maps();
  printf("open rules: passed\n");
}

}  // namespace firstlight::test
