// Threads: how many, the team that works on one call, and the barrier between its steps.
// The only room for threading; see docs/design.md for why it is a pool of its own, not OpenMP.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace fastrnn {

// Threads that a call may use. Starts at FASTRNN_NUM_THREADS, else the physical cores that this
// process may run on.
int num_threads();
void set_num_threads(int threads);

// Functions of an OpenMP runtime (libgomp or one with its interface) that another library of this process
// uses.
struct OpenMp {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  int (*in_parallel)();
  int (*dynamic)();
  int (*thread_limit)();
  int (*max_threads)();
};

// Names the runtime for teams that a thread makes while it has a Borrowing: they consist of the runtime's
// threads, and are no larger than it would make them. Its workers spin for milliseconds after the other
// library's work, on the cores that ours would need.
void borrow_threads(const OpenMp& runtime);

class Borrowing {
 public:
  explicit Borrowing(bool wanted);
  ~Borrowing();
  Borrowing(const Borrowing&) = delete;
  Borrowing& operator=(const Borrowing&) = delete;

 private:
  bool before_;
};

// Meeting point of a fixed group of threads, cheap enough for every time step (about 50 ns between
// two cores that share a cache). Spins for a bounded time, then yields the core.
class Barrier {
 public:
  explicit Barrier(int threads);
  void wait(int thread);  // thread in [0, threads); all must call
 private:
  struct alignas(64) Flag {
    std::atomic<std::uint32_t> epoch{0};
  };
  int threads_;
  std::unique_ptr<Flag[]> flags_;
};

// How many times as long as usual barriers take just now, at least 1. A virtual machine may find its cores
// far apart from one second to the next, and a large machine has such cores. Teams measure it once a second;
// 1 if none did.
double barrier_slowness();

// Threads lent to one call that would take `alone` seconds by itself. A worker that does not report in time
// (its core is busy with something else, or another call holds the workers) is left out: a smaller team
// takes longer and never changes a bit of the result, where waiting at every step for a thread without a
// core would take forever. A sleeping worker needs 20 to 100 us to report.
class Team {
 public:
  Team(int wanted, double alone);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // The one parallel region of this team: work(thread) for every thread in [0, size()); returns when
  // all are done. To be called at most once.
  template <class Work>
  void run(const Work& work) {
    run_erased([](const void* w, int thread) { (*static_cast<const Work*>(w))(thread); }, &work);
  }

 private:
  void run_erased(void (*call)(const void*, int), const void* work);
  void share(void (*call)(const void*, int), const void* work);
  void dismiss();

  int size_ = 1;
  bool borrowed_ = false;
  struct Pool* pool_ = nullptr;
};

}  // namespace fastrnn
