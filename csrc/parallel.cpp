#include "parallel.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace fastrnn {
namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Longest busy wait before the core is given away. A pause takes some 10 to 40 ns: at most 40 us,
// several times the longest step that barriers are worth having in.
constexpr int spins_before_yield = 1000;

// A worker looks for the next call this long (about 25 us) before it sleeps: waking it costs
// 20 us on a virtual machine, as much as a whole short sequence.
constexpr int spins_before_sleep = 1000;

// After an offer that it missed by being asleep a worker looks longer (some 200 us): calls are coming.
constexpr int spins_after_miss = 8000;

// How long a call waits for workers, in seconds, but never longer than it would take alone: several times
// what a sleeping one needs to wake, or of a long call a small part, as a busy core may be free only after a
// time slice.
constexpr double usual_patience = 500e-6, patience_share = 1.0 / 32;
// After a miss the next call waits less, but where it pays no less than a wake-up takes.
constexpr double patience_after_miss = 100e-6;

template <class Condition>
void wait_until(const Condition& holds) {
  for (int spins = 0; !holds();) {
    if (++spins < spins_before_yield) {
      pause();
    } else {
      sched_yield();
    }
  }
}

// Physical cores among those that this process may run on, so that two threads never share one.
int physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
    return std::max(1u, std::thread::hardware_concurrency());
  }
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string path =
        "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list";
    char siblings[256] = {};
    if (std::FILE* file = std::fopen(path.c_str(), "r")) {
      if (!std::fgets(siblings, sizeof siblings, file)) siblings[0] = 0;
      std::fclose(file);
    }
    cores.insert(siblings[0] ? siblings : std::to_string(cpu));
  }
  return std::max<int>(1, static_cast<int>(cores.size()));
}

int initial_threads() {
  const char* text = std::getenv("FASTRNN_NUM_THREADS");
  if (text && *text) {
    char* end = nullptr;
    const long threads = std::strtol(text, &end, 10);
    if (end == text || *end || threads < 1 || threads > 4096) {
      throw std::runtime_error(std::string("FASTRNN_NUM_THREADS: expected an integer in 1..4096, got '") +
                               text + "'");
    }
    return static_cast<int>(threads);
  }
  return physical_cores();
}

std::atomic<int>& thread_setting() {
  static std::atomic<int> threads{initial_threads()};
  return threads;
}

}  // namespace

// Workers live until the process ends; the pool is never destroyed, so a call that runs while the
// interpreter shuts down finds it whole.
struct Pool {
  enum State : std::uint32_t { starting, idle, offered, joined, running, released };
  static constexpr int awake = -1;

  struct alignas(64) Worker {
    std::atomic<std::uint32_t> offers{0};  // what the worker sleeps on
    std::atomic<std::uint32_t> state{idle};
    std::atomic<int> core{awake};  // that it sleeps on
    pid_t id = 0;
    int thread = 0;  // its number in the team
  };

  std::mutex in_use;
  std::vector<std::unique_ptr<Worker>> workers;
  void (*call)(const void*, int) = nullptr;
  const void* work = nullptr;
  bool missed = false;  // the last offer was not taken by all: do not wait as long for the next

  void grow(int count) {
    while (static_cast<int>(workers.size()) < count) {
      workers.push_back(std::make_unique<Worker>());
      Worker* const worker = workers.back().get();
      worker->state = starting;
      try {
        std::thread(&Pool::serve, this, worker).detach();
      } catch (const std::system_error&) {
        workers.pop_back();
        return;  // no more threads to be had: a smaller team does the same work
      }
      wait_until([&] { return worker->state.load(std::memory_order_acquire) == idle; });
    }
  }

  // Many kernels wake a thread on the core where it fell asleep and leave it there for milliseconds, though
  // another thread of the team runs on it and other cores are idle: such a worker may use only the others.
  void spread(std::size_t count) {
    cpu_set_t taken;
    CPU_ZERO(&taken);
    CPU_SET(sched_getcpu(), &taken);
    for (std::size_t i = 0; i < count; ++i) {
      const int core = workers[i]->core.load(std::memory_order_relaxed);
      if (core == awake) continue;
      if (CPU_ISSET(core, &taken)) keep_off(taken, *workers[i], count);
      CPU_SET(core, &taken);
    }
  }

  void keep_off(const cpu_set_t& taken, const Worker& worker, std::size_t count) const {
    cpu_set_t free;
    if (sched_getaffinity(0, sizeof free, &free) != 0) return;
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &taken)) CPU_CLR(core, &free);
    }
    for (std::size_t i = 0; i < count; ++i) {
      const int core = workers[i]->core.load(std::memory_order_relaxed);
      if (core != awake) CPU_CLR(core, &free);
    }
    if (CPU_COUNT(&free) > 0) sched_setaffinity(worker.id, sizeof free, &free);
  }

  // An offer is taken by offered -> joined, withdrawn by offered -> idle: whoever exchanges first.
  void serve(Worker* worker) {
    worker->id = static_cast<pid_t>(syscall(SYS_gettid));  // no gettid() before glibc 2.30
    worker->state.store(idle, std::memory_order_release);
    int spins = spins_before_sleep;
    for (std::uint32_t seen = 0;;) {
      for (int i = 0; i < spins; ++i) {
        if (worker->offers.load(std::memory_order_acquire) != seen) break;
        pause();
      }
      worker->core.store(sched_getcpu(), std::memory_order_relaxed);
      worker->offers.wait(seen, std::memory_order_acquire);
      worker->core.store(awake, std::memory_order_relaxed);
      seen = worker->offers.load(std::memory_order_acquire);
      std::uint32_t state = offered;
      const bool missed = !worker->state.compare_exchange_strong(state, joined);
      spins = missed ? spins_after_miss : spins_before_sleep;
      if (missed) continue;
      wait_until([&] { return worker->state.load(std::memory_order_acquire) != joined; });
      if (worker->state.load(std::memory_order_relaxed) == running) call(work, worker->thread);
      worker->state.store(idle, std::memory_order_release);
    }
  }
};

namespace {

// After fork the child has no workers: it starts with a pool of its own, and borrows from none, because
// OpenMP runtimes do not survive it.
std::atomic<Pool*> current_pool{nullptr};
std::atomic<const OpenMp*> lender{nullptr};

Pool& pool() {
  static const bool registered = [] {
    current_pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] {
      current_pool = new Pool;
      lender = nullptr;
    });
    return true;
  }();
  (void)registered;
  return *current_pool.load();
}

}  // namespace

int num_threads() { return thread_setting(); }

void set_num_threads(int threads) {
  if (threads < 1) {
    throw std::invalid_argument("n: expected at least 1 thread, got " + std::to_string(threads));
  }
  thread_setting() = threads;
}

namespace {

thread_local bool borrowing = false;

}  // namespace

Borrowing::Borrowing(bool wanted) : before_(borrowing) { borrowing = wanted; }

Borrowing::~Borrowing() { borrowing = before_; }

void borrow_threads(const OpenMp& runtime) {
  pool();  // registers what fork needs
  lender = new OpenMp(runtime);
}

Barrier::Barrier(int threads) : threads_(threads), flags_(new Flag[threads]) {}

void Barrier::wait(int thread) {
  const std::uint32_t epoch = flags_[thread].epoch.load(std::memory_order_relaxed) + 1;
  flags_[thread].epoch.store(epoch, std::memory_order_release);
  for (int other = 0; other < threads_; ++other) {
    // Signed distance: another thread may already be one epoch ahead.
    wait_until([&] {
      const std::uint32_t theirs = flags_[other].epoch.load(std::memory_order_acquire);
      return static_cast<std::int32_t>(theirs - epoch) >= 0;
    });
  }
}

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The last measurement of a barrier.
std::atomic<double> measured_slowness{1};
std::atomic<Clock::rep> measured_at{0};
constexpr double measurement_lasts = 1;  // seconds

bool measurement_due() {
  const Clock::time_point last{Clock::duration(measured_at.load(std::memory_order_relaxed))};
  return seconds_since(last) > measurement_lasts;
}

// The best of a few rounds, a few microseconds in all; the usual time is that of cores that share a cache.
void measure(Barrier& barrier, int thread, int threads) {
  constexpr int rounds = 3, waits = 10;
  const double usual = 60e-9 + 20e-9 * threads;
  double best = 1;
  for (int round = 0; round < rounds; ++round) {
    barrier.wait(thread);
    const auto start = Clock::now();
    for (int i = 0; i < waits; ++i) barrier.wait(thread);
    best = std::min(best, seconds_since(start) / waits);
  }
  if (thread != 0) return;
  measured_slowness.store(std::max(1.0, best / usual), std::memory_order_relaxed);
  measured_at.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
}

}  // namespace

double barrier_slowness() {
  return measurement_due() ? 1 : measured_slowness.load(std::memory_order_relaxed);
}

Team::Team(int wanted, double alone) {
  if (wanted <= 1) return;
  Pool& candidate = pool();
  if (!candidate.in_use.try_lock()) return;
  pool_ = &candidate;
  if (const OpenMp* const runtime = borrowing ? lender.load() : nullptr) {
    // A region inside another one, or one whose size the runtime may change, would have a single thread.
    const int most = std::min(runtime->thread_limit(), runtime->max_threads());
    if (!runtime->in_parallel() && !runtime->dynamic()) size_ = std::max(1, std::min(wanted, most));
    borrowed_ = true;
    return;
  }
  pool_->grow(wanted - 1);
  const auto offers = std::min(pool_->workers.size(), static_cast<std::size_t>(wanted - 1));
  pool_->spread(offers);
  for (std::size_t i = 0; i < offers; ++i) {
    Pool::Worker& worker = *pool_->workers[i];
    worker.state.store(Pool::offered, std::memory_order_relaxed);
    worker.offers.fetch_add(1, std::memory_order_release);
    worker.offers.notify_one();
  }
  double limit = std::min(alone, std::max(usual_patience, alone * patience_share));
  if (pool_->missed) limit = std::max(limit / 16, std::min(limit, patience_after_miss));
  pool_->missed = false;
  const auto start = Clock::now();
  for (std::size_t i = 0; i < offers; ++i) {
    Pool::Worker& worker = *pool_->workers[i];
    for (double waited = 0; waited < limit; waited = seconds_since(start)) {
      if (worker.state.load(std::memory_order_acquire) != Pool::offered) break;
      if (waited < usual_patience) {
        pause();
      } else {
        sched_yield();  // it may have woken on this core
      }
    }
    std::uint32_t state = Pool::offered;
    if (worker.state.compare_exchange_strong(state, Pool::idle)) {
      pool_->missed = true;
    } else {
      worker.thread = size_++;
    }
  }
}

Team::~Team() {
  if (!pool_) return;
  if (!borrowed_ && size_ > 1) dismiss();
  pool_->in_use.unlock();
}

void Team::run_erased(void (*call)(const void*, int), const void* work) {
  if (size_ > 1 && measurement_due()) {
    Barrier barrier(size_);
    const auto measured = [&](int thread) {
      measure(barrier, thread, size_);
      call(work, thread);
    };
    share([](const void* both, int thread) { (*static_cast<decltype(&measured)>(both))(thread); }, &measured);
  } else {
    share(call, work);
  }
}

void Team::share(void (*call)(const void*, int), const void* work) {
  const OpenMp* const runtime = lender.load();
  if (borrowed_ && runtime && size_ > 1) {
    struct Region {
      void (*call)(const void*, int);
      const void* work;
      std::atomic<int> members{0};
    } region{call, work};
    runtime->parallel(
        [](void* shared) {
          auto* const own = static_cast<Region*>(shared);
          own->call(own->work, own->members.fetch_add(1));
        },
        &region, static_cast<unsigned>(size_), 0);
    return;
  }
  if (size_ > 1) {
    pool_->call = call;
    pool_->work = work;
    for (const auto& worker : pool_->workers) {
      if (worker->state.load(std::memory_order_relaxed) == Pool::joined) {
        worker->state.store(Pool::running, std::memory_order_release);
      }
    }
  }
  call(work, 0);
  if (size_ > 1) dismiss();
}

// Releases members that were never given work; waits for those that were.
void Team::dismiss() {
  for (const auto& worker : pool_->workers) {
    std::uint32_t state = Pool::joined;
    worker->state.compare_exchange_strong(state, Pool::released);
    wait_until([&] { return worker->state.load(std::memory_order_acquire) == Pool::idle; });
  }
}

}  // namespace fastrnn
