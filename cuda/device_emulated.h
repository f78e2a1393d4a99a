// A device of plain loops on host memory, to test the CUDA driver where there is none. It is as unhelpful as
// a real one: memory comes filled with NaN, products spoil their room, launches run in changing orders, and
// the threads of a team are real ones, if asked for, so that a sanitizer sees what they do to each other.
#pragma once

#include <algorithm>
#include <barrier>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <thread>
#include <type_traits>
#include <vector>

#include "device.h"
#include "persistent_emulated.h"

namespace fastrnn {

// The threads that share a row. Sums run in the order of the threads.
template <class Meet>
struct EmulatedTeam {
  int thread, threads;
  double* partial;  // (threads,)
  Meet* meet;

  template <class M>
  M sum(M value) const {
    if (threads == 1) return value;
    partial[thread] = static_cast<double>(value);
    meet->arrive_and_wait();
    M total = 0;
    for (int i = 0; i < threads; ++i) total += static_cast<M>(partial[i]);
    meet->arrive_and_wait();
    return total;
  }
};

class EmulatedDevice {
 public:
  static constexpr std::int64_t block_bytes = 4096;  // few steps, so that tests see several blocks
  static std::size_t room_bytes() { return 512; }

  explicit EmulatedDevice(int team_threads = 1) : team_threads_(team_threads) {}

  static int count() { return 1; }
  // What the planner is told: of the device that FASTRNN_EMULATED_DEVICE names.
  static DeviceProperties& properties(int) {
    static DeviceProperties properties = [] {
      const char* const name = std::getenv("FASTRNN_EMULATED_DEVICE");
      return device_named(name ? name : "H200");
    }();
    return properties;
  }
  int number() const { return 0; }

  EmulatedDevice on(const CudaStream& stream) const {
    if (stream.device != 0) {
      throw std::invalid_argument("device: expected 0, the one that is emulated, got " +
                                  std::to_string(stream.device));
    }
    return *this;
  }
  void* allocate(std::size_t bytes) {
    constexpr std::size_t alignment = 256;
    const std::size_t size = (bytes + alignment - 1) / alignment * alignment;
    void* const memory = std::aligned_alloc(alignment, std::max(size, alignment));
    if (!memory) throw std::bad_alloc();
    std::memset(memory, 0xFF, std::max(size, alignment));
    return memory;
  }
  void release(void* memory) { std::free(memory); }
  void copy(void* to, const void* from, std::size_t bytes) {
    if (bytes) std::memcpy(to, from, bytes);
  }
  void zero(void* to, std::size_t bytes) {
    if (bytes) std::memset(to, 0, bytes);
  }
  void wait() {}

  class Turn;

 private:
  int team_threads_;
};

class EmulatedDevice::Turn : public EmulatedDevice {
 public:
  explicit Turn(const EmulatedDevice& device) : EmulatedDevice(device) {}
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  void use_room(void* memory) { room_ = memory; }

  template <class Functor>
  void launch(std::int64_t rows, std::int64_t columns, const Functor& functor) {
    static_assert(std::is_trivially_copyable_v<Functor>);
    static thread_local bool backwards = false;
    backwards = !backwards;
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t row = backwards ? rows - 1 - i : i;
      for (std::int64_t j = 0; j < columns; ++j) functor(row, backwards ? columns - 1 - j : j);
    }
  }

  template <class Functor>
  void launch_rows(std::int64_t rows, std::int64_t, const Functor& functor) {
    static_assert(std::is_trivially_copyable_v<Functor>);
    std::vector<double> partial(static_cast<std::size_t>(team_threads_));
    std::barrier meet(team_threads_);
    const auto work = [&](int thread) {
      const EmulatedTeam<std::barrier<>> team{thread, team_threads_, partial.data(), &meet};
      for (std::int64_t row = 0; row < rows; ++row) functor(row, team);
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < team_threads_; ++thread) others.emplace_back(work, thread);
    work(0);
    for (std::thread& other : others) other.join();
  }

  template <class In, class Out>
  void multiply(const Product<In, Out>& p) {
    if (!room_) throw std::logic_error("product: no room");
    std::memset(room_, 0xFF, room_bytes());
    as_column_major(p, [&](const ColumnMajorProduct<In, Out>& product) {
      expect_valid(product);
      for (int i = 0; i < product.count; ++i) multiply_one(product, i);
    });
  }

  template <class T>
  bool fits(const Plan& plan, CellKind, StorageKind, int) {
    return FASTRNN_TARGET::is_emulated(plan);
  }
  // Spoils the memory of the exchange, of which the emulated blocks have their own.
  template <class Call>
  void run_persistent(const Plan& plan, CellKind cell, StorageKind kind, const Call& call, int directions,
                      void* exchange) {
    if (const std::size_t bytes = exchange_bytes(plan, directions)) std::memset(exchange, 0xFF, bytes);
    FASTRNN_TARGET::emulate_persistent(plan, cell, kind, call, directions);
  }

 private:
  // What cuBLAS asks of leading dimensions.
  template <class In, class Out>
  static void expect_valid(const ColumnMajorProduct<In, Out>& p) {
    const auto at_least = [](std::int64_t leading, std::int64_t rows) {
      if (leading < std::max<std::int64_t>(1, rows)) throw std::logic_error("product: leading dimension");
    };
    if (p.m == 0 || p.n == 0 || p.k == 0) return;  // never reaches it
    at_least(p.a_leading, p.transpose_a ? p.k : p.m);
    at_least(p.b_leading, p.transpose_b ? p.n : p.k);
    at_least(p.c_leading, p.m);
  }

  template <class In, class Out>
  static void multiply_one(const ColumnMajorProduct<In, Out>& p, int i) {
    using Sum = MathOf<Out>;
    const auto operand = [&](const In& x) {
      if constexpr (std::is_same_v<In, float>) {
        return p.tf32 ? bits_as<float>(tf32_bits(x)) : x;
      } else {
        return static_cast<Sum>(x);
      }
    };
    const In *const a = p.a + i * p.a_step, *const b = p.b + i * p.b_step;
    const std::int64_t a_row = p.transpose_a ? p.a_leading : 1, a_depth = p.transpose_a ? 1 : p.a_leading;
    std::vector<Sum> column(static_cast<std::size_t>(p.k));
    for (std::int64_t n = 0; n < p.n; ++n) {
      for (std::int64_t k = 0; k < p.k; ++k) {
        column[static_cast<std::size_t>(k)] =
            operand(b[p.transpose_b ? k * p.b_leading + n : n * p.b_leading + k]);
      }
      for (std::int64_t m = 0; m < p.m; ++m) {
        Sum sum = 0;
        for (std::int64_t k = 0; k < p.k; ++k) {
          sum += operand(a[m * a_row + k * a_depth]) * column[static_cast<std::size_t>(k)];
        }
        Out& c = p.c[i * p.c_step + n * p.c_leading + m];
        c = static_cast<Out>(p.beta == Sum(0) ? sum : sum + p.beta * static_cast<Sum>(c));
      }
    }
  }

  void* room_ = nullptr;
};

}  // namespace fastrnn
