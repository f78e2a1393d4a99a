#include "roof.h"

#include <chrono>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <vector>

#include "dispatch.h"
#include "parallel.h"
#include "storage.h"

namespace fastrnn {
namespace {

using Clock = std::chrono::steady_clock;

// Runs work(thread), which returns an amount, on every thread again and again for `seconds`.
template <class Work>
double rate(int threads, double seconds, const Work& work) {
  std::optional<Team> team;
  for (int tries = 0; !team || team->size() < threads; ++tries) {
    if (tries == 1000) throw std::runtime_error("the cores are busy: fewer threads than asked for");
    team.emplace(threads, 1.0);
  }
  struct alignas(cache_line) Amount {
    double value = 0;
  };
  std::vector<Amount> done(static_cast<std::size_t>(team->size()));
  const auto start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  team->run([&](int thread) {
    double amount = 0;
    do {
      amount += work(thread);
    } while (elapsed() < seconds);
    done[static_cast<std::size_t>(thread)].value = amount;
  });
  const double took = elapsed();
  double total = 0;
  for (const Amount& amount : done) total += amount.value;
  return total / took;
}

}  // namespace

template <class T>
double fma_peak(int threads, double seconds) {
  const Kernels<T>& kernels = kernel_table().of<T>();
  return rate(threads, seconds, [&](int) {
    T sink = T(0.5);
    return static_cast<double>(kernels.fma_chains(20000, &sink));
  });
}

template double fma_peak<float>(int, double);
template double fma_peak<double>(int, double);

double read_bandwidth(std::size_t bytes, int threads, double seconds) {
  const Kernels<float>& kernels = kernel_table().of<float>();
  std::vector<Storage> buffers(static_cast<std::size_t>(threads));
  for (Storage& buffer : buffers) std::memset(buffer.reserve(bytes), 0, bytes);
  const auto count = static_cast<std::int64_t>(bytes / sizeof(float));
  // Enough passes between two looks at the clock that the look costs nothing.
  const std::size_t passes = 1 + (std::size_t{1} << 22) / bytes;
  return rate(threads, seconds, [&](int thread) {
    const auto* data = static_cast<const float*>(buffers[static_cast<std::size_t>(thread)].reserve(bytes));
    volatile float sink = 0;
    for (std::size_t pass = 0; pass < passes; ++pass) sink = kernels.sum(data, count);
    (void)sink;
    return static_cast<double>(passes * bytes);
  });
}

}  // namespace fastrnn
