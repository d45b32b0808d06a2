// The pool's threads.
#include "blocking_pool.h"

#include <pthread.h>
#include <signal.h>

#include <utility>

namespace firstlight {

void BlockingPool::run(std::function<void()> job) {
  {
    std::lock_guard lock(mutex_);
    if (!stopping_) {
      jobs_.push_back(std::move(job));
      if (idle_ >= jobs_.size() || threads_.size() >= kThreadsMax) {
        wake_.notify_one();
      } else {
        threads_.emplace_back([this] { work(); });
      }
      return;
    }
  }
  job();
}

void BlockingPool::work() {
  pthread_setname_np(pthread_self(), "fl-blocking");
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
  std::unique_lock lock(mutex_);
  for (;;) {
    idle_++;
    wake_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
    idle_--;
    if (jobs_.empty()) return;
    std::function<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job();
    job = nullptr;
    lock.lock();
  }
}

void BlockingPool::stop() {
  std::vector<std::thread> threads;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    threads.swap(threads_);
    wake_.notify_all();
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace firstlight
