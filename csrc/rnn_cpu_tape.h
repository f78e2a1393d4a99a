// The tape of the CPU driver: what one forward call leaves for backward, and where it lies.
//
// Row n of a kept array is step s of place p among the sorted rows, n = RowOrder::offset[s] + p: steps that
// are not run take no memory, and the order does not depend on how threads share the work.
#pragma once

#include <atomic>

#include "rnn_cpu.h"

namespace fastrnn {

// One thread's share of a checksum over an array or all parameters, to be added to those of the others. The
// tape refers to x and backward to the parameters where they lie: what changed since forward must not pass
// unseen. Any change of a single value shows, and others but for one in 2^32.
template <class T>
std::uint64_t checksum_of(const Kernels<T>& kernels, const T* values, std::int64_t count, int threads,
                          int thread);
template <class T>
std::uint64_t checksum_of(const Config& config, const Kernels<T>& kernels, const T* const* parameters,
                          int threads, int thread);

struct Checksums {
  std::atomic<std::uint64_t> parameters{0}, x{0};
};

// What one layer and direction leaves.
template <class T>
struct Chain {
  T* slots;      // (rows, slots_stride): [panel][slot][lane]
  T* c;          // (rows, c_stride)
  T* candidate;  // (rows, c_stride): c before zoneout, where peepholes saw it; else null
  T* exchange;   // (rows, c_stride): what a first phase left for the second
  T* h;          // (T, B, R), where the layer's output is not just h; else null
  T* moments;    // (rows, moment_count) of layer norm; else null
  T* h0;         // (B, h_stride), by batch row
  T* c0;         // (B, c_stride)
};

// A row of the tape: n, and the step and place that it belongs to.
struct Place {
  std::int64_t s, place, n;
};

template <class T>
struct CpuTape : Tape<T> {
  Storage storage;
  std::size_t used = 0;
  std::int64_t steps = 0, batch = 0, directions = 1, state_size = 0;
  RowOrder order;
  View x;
  std::vector<char> resets;  // (T, B), empty: none
  Noise noise;
  std::uint64_t seed = 0;
  std::vector<Chain<T>> chains;  // [layer * D + direction]
  std::vector<Rows<T*>> y;       // of every layer
  std::int64_t slots_stride = 0, c_stride = 0, h_stride = 0;
  T* zeros = nullptr;  // a state that a reset left behind
  bool guarded = true;
  Checksums checksums;

  // Takes down what is known before the call, and makes room for the rest.
  void begin(const Config& config, const CellPlan& plan, int lanes, const Forward<T>& call);

  std::size_t bytes() const override { return used; }
  std::int64_t rows() const { return order.total_rows(); }
  const Chain<T>& chain(std::int64_t layer, int d) const { return chains[layer * directions + d]; }

  Place place_of(std::int64_t n) const;
  void advance(Place& at) const;
  std::int64_t time_of(const Place& at, int d) const {
    return d == 1 ? order.lengths[at.place] - 1 - at.s : at.s;
  }

  // Whether a reset lies between steps s-1 and s of a row.
  bool cut_before(int d, std::int64_t s, std::int64_t place) const;
  // The state that step s of a row started from: R and H values.
  const T* h_before(std::int64_t layer, int d, std::int64_t s, std::int64_t place) const;
  const T* c_before(std::int64_t layer, int d, std::int64_t s, std::int64_t place) const;
  // What a layer read: its width of values.
  const T* input(std::int64_t layer, std::int64_t t, std::int64_t id) const;

 private:
  void lay_out(Arena& arena, const Config& config, const CellPlan& plan, int lanes, const Forward<T>& call);
};

}  // namespace fastrnn
