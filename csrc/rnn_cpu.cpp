// The CPU driver: packs weights, lays out the workspace, and walks layers, directions and time.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "dispatch.h"
#include "parallel.h"
#include "partition.h"
#include "random.h"
#include "rnn.h"

namespace fastrnn {
namespace {

// The input projection of a block of steps is formed at once; a thread's part of it stays about this
// large, so that the steps find it in their own L2. But each block streams all input weights: where
// those are large, the block may be this fraction of them.
constexpr std::int64_t block_bytes = 384 * 1024;
constexpr std::int64_t block_share_of_weights = 4;

// What the driver must know of a cell: its phases and where their weights are (cells.h has the math).
struct PhasePlan {
  StepPhase phase;
  int first_gate, gates;  // rows of weight_hh that the phase multiplies with
};

struct CellPlan {
  int phases;
  PhasePlan phase[2];
  int separate_gate;  // gate whose recurrent bias cannot join the input bias; -1: none
};

CellPlan plan_of(const Config& config) {
  switch (config.cell) {
    case CellKind::rnn_tanh:
      return {1, {{StepPhase::rnn_tanh, 0, 1}, {}}, -1};
    case CellKind::rnn_relu:
      return {1, {{StepPhase::rnn_relu, 0, 1}, {}}, -1};
    case CellKind::rnn_sigmoid:
      return {1, {{StepPhase::rnn_sigmoid, 0, 1}, {}}, -1};
    case CellKind::lstm:
      return {1, {{StepPhase::lstm, 0, 4}, {}}, -1};
    case CellKind::lstm_peephole:
      return {1, {{StepPhase::lstm_peephole, 0, 4}, {}}, -1};
    case CellKind::gru:
      return {1, {{StepPhase::gru, 0, 3}, {}}, 2};
    default:
      return {
          2, {{StepPhase::gru_reset_before_gates, 0, 2}, {StepPhase::gru_reset_before_candidate, 2, 1}}, -1};
  }
}

std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Whether rows of x can be read where they lie: adjacent, aligned elements.
template <class T>
bool usable_in_place(const View& x) {
  constexpr std::int64_t size = sizeof(T);
  return x.stride[2] == size && x.stride[0] % size == 0 && x.stride[1] % size == 0 &&
         reinterpret_cast<std::uintptr_t>(x.data) % size == 0;
}

// Packed weights of one layer and direction; layouts in kernels.h.
template <class T>
struct DirectionWeights {
  T* input;
  T* input_bias;
  T* recurrent[2];
  T* recurrent_bias;
  T* peephole;
  T* projection;
};

template <class T>
struct CpuWeights : Weights<T> {
  Storage storage;
  std::vector<DirectionWeights<T>> directions;  // [layer * D + direction]
};

struct CpuWorkspace : Workspace {
  Storage storage;
  std::vector<std::int64_t> ids;      // rows in working order, row group after row group
  std::vector<std::int64_t> lengths;  // of those rows, descending within a group
  Partition partition;
  std::vector<std::unique_ptr<Barrier>> slice_barriers;  // [row group * directions + direction group]
  std::vector<std::unique_ptr<Barrier>> group_barriers;  // [row group]

  void set_partition(const Partition& p) {
    if (p == partition && !group_barriers.empty()) return;
    partition = p;
    slice_barriers.clear();
    group_barriers.clear();
    for (int i = 0; i < p.row_groups * p.directions; ++i) {
      slice_barriers.push_back(std::make_unique<Barrier>(p.slices));
    }
    for (int i = 0; i < p.row_groups; ++i) {
      group_barriers.push_back(std::make_unique<Barrier>(p.slices * p.directions));
    }
  }
};

// A thread's own units of a matrix with `width` columns.
struct Slice {
  std::int64_t first_panel, panels, first_unit, units;

  Slice(std::int64_t width, int lanes, int slices, int slice) {
    const Range range = part_of((width + lanes - 1) / lanes, slices, slice);
    first_panel = range.first;
    panels = range.count;
    first_unit = first_panel * lanes;
    units = std::max<std::int64_t>(0, std::min(width - first_unit, panels * lanes));
  }
};

// Where the rows of a layer's input or output are: by (t, batch row) in a whole sequence, or by
// (step within the block, place in the working order) in a block that passes between two layers.
template <class P>
struct Rows {
  P base{};
  std::int64_t step = 0, row = 0;
  bool by_block = false;
};

// Pieces of the workspace; the first index in a comment is the outermost.
template <class T>
struct Buffers {
  T* h[2];           // (L*D, B, h_stride) each: operand of even and of odd steps
  T* c;              // (L*D, B, c_stride)
  T* exchange;       // (D, B, c_stride): from a first to a second phase
  T* between[2];     // layer outputs that the next layer reads, even and odd layers
  T* reverse;        // (T, B, R): second direction, where it is merged into the first
  T* slots;          // (threads, block rows, slots_stride)
  const T** x_rows;  // (threads, block rows)
  T** y_rows;        // (threads, rows of a group)
  T* staged;         // (threads, block rows, I): rows of an x whose elements are not adjacent
  std::int64_t h_stride, c_stride;
  std::int64_t block_steps, block_rows, group_rows, slots_per_thread, staged_per_thread;
};

template <class T>
struct Call {
  const Config& config;
  const CellPlan& plan;
  const Kernels<T>& kernels;
  const CpuWeights<T>& weights;
  const Forward<T>& forward;
  const Buffers<T>& buffers;
  CpuWorkspace& workspace;
};

// One thread's part of a forward call.
template <class T>
class Worker {
 public:
  Worker(const Call<T>& call, int thread)
      : Worker(call, thread, call.workspace.partition.slices, call.workspace.partition.directions) {}

  void run() {
    clear_padding();
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (int d = 0; d < config_.directions(); ++d) {
        if (mine(d)) start(layer, d);
      }
    }
    if (config_.bidirectional) {
      run_bidirectional();
    } else {
      meet_slices();
      for (std::int64_t s0 = 0; s0 < max_steps_; s0 += buffers_.block_steps) {
        for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
          run_block(layer, 0, s0, std::min(s0 + buffers_.block_steps, max_steps_));
        }
      }
    }
  }

 private:
  Worker(const Call<T>& call, int thread, int slices, int directions)
      : config_(call.config),
        plan_(call.plan),
        kernels_(call.kernels),
        weights_(call.weights),
        forward_(call.forward),
        buffers_(call.buffers),
        slice_index_(thread % slices),
        direction_group_(thread / slices % directions),
        row_group_(thread / slices / directions),
        hidden_(config_.hidden_size, kernels_.lanes, slices, slice_index_),
        state_(config_.state_size(), kernels_.lanes, slices, slice_index_) {
    CpuWorkspace& workspace = call.workspace;
    slices_ = slices;
    direction_groups_ = directions;
    const Range rows = part_of(forward_.batch, workspace.partition.row_groups, row_group_);
    first_row_ = rows.first;
    rows_ = rows.count;
    ids_ = workspace.ids.data() + first_row_;
    lengths_ = workspace.lengths.data() + first_row_;
    max_steps_ = rows_ ? lengths_[0] : 0;
    slice_barrier_ = workspace.slice_barriers[row_group_ * directions + direction_group_].get();
    group_barrier_ = workspace.group_barriers[row_group_].get();
    slots_ = buffers_.slots + thread * buffers_.slots_per_thread;
    x_rows_ = buffers_.x_rows + thread * buffers_.block_rows;
    y_rows_ = buffers_.y_rows + thread * buffers_.group_rows;
    staged_ = buffers_.staged + thread * buffers_.staged_per_thread;
    slots_per_unit_ = config_.gates();
    slots_stride_ = hidden_.panels * slots_per_unit_ * kernels_.lanes;
    second_phase_ = plan_.phases == 2 || config_.proj_size;
    merged_ = config_.bidirectional && config_.merge != Merge::concat;
  }

  bool mine(int direction) const { return direction % direction_groups_ == direction_group_; }

  void meet_slices() {
    if (slices_ > 1) slice_barrier_->wait(slice_index_);
  }

  int place_in_group() const { return direction_group_ * slices_ + slice_index_; }

  void meet_group() {
    if (slices_ * direction_groups_ > 1) group_barrier_->wait(place_in_group());
  }

  // ---- layers -----------------------------------------------------------------------------------

  void run_bidirectional() {
    meet_group();
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (int d = 0; d < 2; ++d) {
        if (!mine(d)) continue;
        for (std::int64_t s0 = 0; s0 < max_steps_; s0 += buffers_.block_steps) {
          run_block(layer, d, s0, std::min(s0 + buffers_.block_steps, max_steps_));
        }
      }
      meet_group();
      if (merged_) {
        merge_directions(layer);
        meet_group();
      }
    }
  }

  Rows<const char*> input_rows(std::int64_t layer) const {
    if (layer == 0) return {forward_.x.data, forward_.x.stride[0], forward_.x.stride[1], false};
    const Rows<T*> rows = output_rows(layer - 1);
    const std::int64_t size = sizeof(T);
    return {reinterpret_cast<const char*>(rows.base), rows.step * size, rows.row * size, rows.by_block};
  }

  Rows<T*> output_rows(std::int64_t layer) const {
    if (layer == config_.num_layers - 1) return {forward_.y, forward_.y_step, forward_.y_row, false};
    T* base = buffers_.between[layer % 2];
    const std::int64_t width = config_.output_size();
    if (config_.bidirectional) return {base, forward_.batch * width, width, false};
    return {base + buffers_.block_steps * first_row_ * width, rows_ * width, width, true};
  }

  template <class P>
  P address(const Rows<P>& rows, std::int64_t s, std::int64_t s0, std::int64_t b, bool reverse) const {
    if (rows.by_block) return rows.base + (s - s0) * rows.step + b * rows.row;
    return rows.base + time(s, b, reverse) * rows.step + ids_[b] * rows.row;
  }

  // The reverse direction starts at each row's own last step.
  std::int64_t time(std::int64_t s, std::int64_t b, bool reverse) const {
    return reverse ? lengths_[b] - 1 - s : s;
  }

  bool residual_at(std::int64_t layer) const {
    return config_.residual && config_.layer_input_size(layer) == config_.output_size();
  }

  bool dropout_at(std::int64_t layer) const { return forward_.dropout > 0 && layer + 1 < config_.num_layers; }

  // ---- state ------------------------------------------------------------------------------------

  std::int64_t state_row(std::int64_t layer, int d, std::int64_t b) const {
    return (layer * config_.directions() + d) * forward_.batch + first_row_ + b;
  }

  T* h_row(std::int64_t layer, int d, std::int64_t b, std::int64_t s) const {
    return buffers_.h[s % 2] + state_row(layer, d, b) * buffers_.h_stride;
  }

  T* c_row(std::int64_t layer, int d, std::int64_t b) const {
    return buffers_.c + state_row(layer, d, b) * buffers_.c_stride;
  }

  static void read_state(const View& view, std::int64_t index, std::int64_t row, const Slice& slice, T* out) {
    if (!view.data) {
      std::fill_n(out + slice.first_unit, slice.units, T(0));
      return;
    }
    const char* in = view.data + index * view.stride[0] + row * view.stride[1];
    if (view.stride[2] == sizeof(T)) {
      std::memcpy(out + slice.first_unit, in + slice.first_unit * sizeof(T),
                  static_cast<std::size_t>(slice.units) * sizeof(T));
      return;
    }
    for (std::int64_t u = slice.first_unit; u < slice.first_unit + slice.units; ++u) {
      std::memcpy(out + u, in + u * view.stride[2], sizeof(T));
    }
  }

  // Own units of the initial state, into the operand of step 0.
  void start(std::int64_t layer, int d) {
    const std::int64_t index = layer * config_.directions() + d;
    for (std::int64_t b = 0; b < rows_; ++b) {
      read_state(forward_.h0, index, ids_[b], state_, h_row(layer, d, b, 0));
      if (config_.has_cell_state()) {
        // Lanes beyond H are computed too: give them a value.
        T* c = c_row(layer, d, b);
        std::fill_n(c + hidden_.first_unit, hidden_.panels * kernels_.lanes, T(0));
        read_state(forward_.c0, index, ids_[b], hidden_, c);
      }
      if (lengths_[b] == 0) finish_row(layer, d, b, 0);
      if (d == 0 && lengths_[b] > 0 && reset_at(0, b)) clear_state(layer, d, b, 0);
    }
  }

  // The state of a row that took its last step, from the operand of step s.
  void finish_row(std::int64_t layer, int d, std::int64_t b, std::int64_t s) {
    const std::int64_t row = (layer * config_.directions() + d) * forward_.batch + ids_[b];
    std::copy_n(h_row(layer, d, b, s) + state_.first_unit, state_.units,
                forward_.hn + row * config_.state_size() + state_.first_unit);
    if (config_.has_cell_state()) {
      std::copy_n(c_row(layer, d, b) + hidden_.first_unit, hidden_.units,
                  forward_.cn + row * config_.hidden_size + hidden_.first_unit);
    }
  }

  bool reset_at(std::int64_t t, std::int64_t b) const {
    const View& resets = forward_.resets;
    return resets.data && resets.data[t * resets.stride[0] + ids_[b] * resets.stride[1]];
  }

  void clear_state(std::int64_t layer, int d, std::int64_t b, std::int64_t s) {
    std::fill_n(h_row(layer, d, b, s) + state_.first_unit, state_.units, T(0));
    if (config_.has_cell_state()) {
      std::fill_n(c_row(layer, d, b) + hidden_.first_unit, hidden_.units, T(0));
    }
  }

  // ---- time -------------------------------------------------------------------------------------

  std::int64_t active_rows(std::int64_t s) const {
    std::int64_t n = rows_;
    while (n > 0 && lengths_[n - 1] <= s) --n;
    return n;
  }

  // Steps [s0, s1) of one layer and direction.
  void run_block(std::int64_t layer, int d, std::int64_t s0, std::int64_t s1) {
    const DirectionWeights<T>& weights = weights_.directions[layer * config_.directions() + d];
    project_inputs(layer, d, s0, s1, weights);

    StepArguments<T> first{}, second{};
    fill_arguments(layer, d, weights, first, second);
    Rows<T*> out = output_rows(layer);
    if (merged_ && d == 1) {
      const std::int64_t width = config_.state_size();
      out = {buffers_.reverse, forward_.batch * width, width, false};
    }
    const std::int64_t column = merged_ ? 0 : d * config_.state_size();
    const T* const* x = x_rows_;
    std::int64_t n = active_rows(s0);
    for (std::int64_t s = s0; s < s1; ++s) {
      for (std::int64_t b = 0; b < n; ++b) {
        y_rows_[b] = address(out, s, s0, b, d == 1) + column + state_.first_unit;
      }
      T* const operand = h_row(layer, d, 0, s);
      T* const result = h_row(layer, d, 0, s + 1);
      first.rows = second.rows = n;
      first.operand = operand;
      first.h_previous = second.h_previous = operand + hidden_.first_unit;
      first.descending = second.descending = s % 2;
      StepArguments<T>& last = second_phase_ ? second : first;
      last.result = result + state_.first_unit;
      last.y = y_rows_;
      run_phase(0, first);
      if (second_phase_) {
        meet_slices();
        run_phase(1, second);
      }
      first.slots += n * slots_stride_;
      second.slots = first.slots;
      if (!merged_ && (residual_at(layer) || dropout_at(layer))) {
        for (std::int64_t b = 0; b < n; ++b) {
          adjust_output(layer, time(s, b, d == 1), ids_[b], x[b], y_rows_[b], column + state_.first_unit,
                        state_.units);
        }
      }
      x += n;
      n = finish_step(layer, d, s, n);
      meet_slices();
    }
  }

  void project_inputs(std::int64_t layer, int d, std::int64_t s0, std::int64_t s1,
                      const DirectionWeights<T>& weights) {
    const Rows<const char*> in = input_rows(layer);
    const std::int64_t columns = config_.layer_input_size(layer);
    const bool adjacent = layer > 0 || usable_in_place<T>(forward_.x);
    std::int64_t count = 0, n = rows_;
    for (std::int64_t s = s0; s < s1; ++s) {
      while (n > 0 && lengths_[n - 1] <= s) --n;
      for (std::int64_t b = 0; b < n; ++b, ++count) {
        const char* row = address(in, s, s0, b, d == 1);
        if (!adjacent) {
          T* copy = staged_ + count * columns;
          for (std::int64_t k = 0; k < columns; ++k) {
            std::memcpy(copy + k, row + k * forward_.x.stride[2], sizeof(T));
          }
          row = reinterpret_cast<const char*>(copy);
        }
        x_rows_[count] = reinterpret_cast<const T*>(row);
      }
    }
    InputArguments<T> input{};
    input.x = x_rows_;
    input.rows = count;
    input.panels = hidden_.panels;
    input.columns = columns;
    input.weight = weights.input + hidden_.first_unit * config_.gates() * columns;
    input.bias = weights.input_bias + hidden_.first_unit * config_.gates();
    input.slots = slots_;
    input.slots_stride = slots_stride_;
    input.slots_per_unit = slots_per_unit_;
    kernels_.input[config_.gates()](input);
  }

  // What stays the same for all steps of a block.
  void fill_arguments(std::int64_t layer, int d, const DirectionWeights<T>& weights, StepArguments<T>& first,
                      StepArguments<T>& second) const {
    const int gates = plan_.phase[0].gates;
    first.panels = hidden_.panels;
    first.columns = config_.state_size();
    first.units = hidden_.units;
    first.operand_stride = first.h_stride = buffers_.h_stride;
    first.weight = weights.recurrent[0] + hidden_.first_unit * gates * config_.state_size();
    first.slots = slots_;
    first.slots_stride = slots_stride_;
    first.slots_per_unit = slots_per_unit_;
    first.recurrent_bias = weights.recurrent_bias + hidden_.first_unit;
    first.peephole = weights.peephole + 3 * hidden_.first_unit;
    first.c = config_.has_cell_state() ? c_row(layer, d, 0) + hidden_.first_unit : nullptr;
    first.c_previous = first.c;
    first.c_stride = buffers_.c_stride;
    first.result_stride = second_phase_ ? buffers_.c_stride : buffers_.h_stride;
    if (!second_phase_) return;

    T* const exchange = buffers_.exchange + (d * forward_.batch + first_row_) * buffers_.c_stride;
    first.result = exchange + hidden_.first_unit;
    second = first;
    second.panels = state_.panels;
    second.columns = config_.hidden_size;
    second.units = state_.units;
    second.operand = exchange;
    second.operand_stride = buffers_.c_stride;
    second.result_stride = buffers_.h_stride;
    second.weight = config_.proj_size ? weights.projection + state_.first_unit * config_.hidden_size
                                      : weights.recurrent[1] + hidden_.first_unit * config_.hidden_size;
  }

  void run_phase(int index, const StepArguments<T>& arguments) const {
    const StepPhase phase =
        index == 1 && config_.proj_size ? StepPhase::projection : plan_.phase[index].phase;
    kernels_.step[static_cast<int>(phase)](arguments);
  }

  // Hands out the states of rows that end with step s, clears those that a reset cuts before the next
  // step; returns how many rows go on.
  std::int64_t finish_step(std::int64_t layer, int d, std::int64_t s, std::int64_t n) {
    while (n > 0 && lengths_[n - 1] == s + 1) finish_row(layer, d, --n, s + 1);
    if (forward_.resets.data) {
      for (std::int64_t b = 0; b < n; ++b) {
        // The cut lies between two time steps: before the later of them, whichever comes first here.
        const std::int64_t later = d == 1 ? time(s, b, true) : s + 1;
        if (reset_at(later, b)) clear_state(layer, d, b, s + 1);
      }
    }
    return n;
  }

  // ---- outputs ----------------------------------------------------------------------------------

  // Columns [first, first + count) of one output row; `y` points at the first of them, `x` at the
  // row of the layer's input.
  void adjust_output(std::int64_t layer, std::int64_t t, std::int64_t row, const T* x, T* y,
                     std::int64_t first, std::int64_t count) const {
    if (residual_at(layer)) {
      for (std::int64_t i = 0; i < count; ++i) y[i] += x[first + i];
    }
    if (dropout_at(layer)) {
      apply_dropout(y, first, count, forward_.dropout, forward_.seed, layer, t, row);
    }
  }

  static T merged(Merge merge, T forward, T reverse) {
    switch (merge) {
      case Merge::sum:
        return forward + reverse;
      case Merge::mean:
        return (forward + reverse) / 2;
      case Merge::max:
        // NaN of either side propagates.
        return forward > reverse || forward != forward ? forward : reverse;
      default:
        return forward * reverse;
    }
  }

  // The threads of a row group share its rows.
  void merge_directions(std::int64_t layer) {
    const Rows<T*> out = output_rows(layer);
    const Rows<const char*> in = input_rows(layer);
    const std::int64_t width = config_.state_size();
    const std::int64_t column = layer == 0 ? forward_.x.stride[2] : std::int64_t{sizeof(T)};
    const Range own = part_of(rows_, slices_ * direction_groups_, place_in_group());
    for (std::int64_t b = own.first; b < own.first + own.count; ++b) {
      for (std::int64_t t = 0; t < lengths_[b]; ++t) {
        T* y = out.base + t * out.step + ids_[b] * out.row;
        const T* reverse = buffers_.reverse + (t * forward_.batch + ids_[b]) * width;
        for (std::int64_t i = 0; i < width; ++i) y[i] = merged(config_.merge, y[i], reverse[i]);
        if (!residual_at(layer) && !dropout_at(layer)) continue;
        const char* x = in.base + t * in.step + ids_[b] * in.row;
        if (residual_at(layer)) {
          for (std::int64_t i = 0; i < width; ++i) {
            T value;
            std::memcpy(&value, x + i * column, sizeof(T));
            y[i] += value;
          }
        }
        if (dropout_at(layer)) {
          apply_dropout(y, 0, width, forward_.dropout, forward_.seed, layer, t, ids_[b]);
        }
      }
    }
  }

  // Outputs past a row's length are 0; the threads of a row group share its rows.
  void clear_padding() {
    const Range own = part_of(rows_, slices_ * direction_groups_, place_in_group());
    for (std::int64_t b = own.first; b < own.first + own.count; ++b) {
      for (std::int64_t t = lengths_[b]; t < forward_.steps; ++t) {
        std::fill_n(forward_.y + t * forward_.y_step + ids_[b] * forward_.y_row, config_.output_size(), T(0));
      }
    }
  }

  const Config& config_;
  const CellPlan& plan_;
  const Kernels<T>& kernels_;
  const CpuWeights<T>& weights_;
  const Forward<T>& forward_;
  const Buffers<T>& buffers_;
  const int slice_index_, direction_group_, row_group_;
  const Slice hidden_, state_;  // own units of H and of R
  int slices_, direction_groups_;
  std::int64_t first_row_, rows_, max_steps_;
  const std::int64_t *ids_, *lengths_;
  Barrier *slice_barrier_, *group_barrier_;
  T *slots_, *staged_;
  const T** x_rows_;
  T** y_rows_;
  int slots_per_unit_;
  std::int64_t slots_stride_;
  bool second_phase_, merged_;
};

template <class T>
class CpuNetwork : public Network<T> {
 public:
  explicit CpuNetwork(const Config& config)
      : config_(config),
        plan_(plan_of(config)),
        kernels_(kernel_table().of<T>()),
        model_(config_, kernels_.lanes, sizeof(T)) {}

  std::unique_ptr<Weights<T>> pack(const T* const* parameters) const override {
    auto weights = std::make_unique<CpuWeights<T>>();
    weights->directions.resize(static_cast<std::size_t>(config_.num_layers * config_.directions()));
    Arena counting;
    lay_out(counting, *weights);
    Arena arena(weights->storage.reserve(counting.used()));
    lay_out(arena, *weights);

    constexpr std::size_t worth_a_team = 1 << 18;  // bytes
    constexpr double seconds_per_byte = 0.25e-9;   // of packing on one thread
    Team team(counting.used() > worth_a_team ? num_threads() : 1,
              static_cast<double>(counting.used()) * seconds_per_byte);
    team.run([&](int thread) {
      const T* const* next = parameters;
      for (std::size_t i = 0; i < weights->directions.size(); ++i) {
        const auto layer = static_cast<std::int64_t>(i) / config_.directions();
        next = pack_direction(next, layer, weights->directions[i], thread, team.size());
      }
    });
    return weights;
  }

  std::unique_ptr<Workspace> make_workspace() const override { return std::make_unique<CpuWorkspace>(); }

  void forward(const Weights<T>& weights, Workspace& scratch, const Forward<T>& call) const override {
    auto& workspace = static_cast<CpuWorkspace&>(scratch);
    Partition partition = model_.choose(call.steps, call.batch, num_threads());
    Team team(partition.threads(), model_.patience(call.steps, call.batch));
    if (team.size() < partition.threads()) {
      partition = model_.choose(call.steps, call.batch, team.size());
    }
    workspace.set_partition(partition);
    order_rows(call, partition, workspace);

    Buffers<T> buffers{};
    Arena counting;
    lay_out(counting, call, partition, buffers);
    Arena arena(workspace.storage.reserve(counting.used()));
    lay_out(arena, call, partition, buffers);

    const Call<T> whole{config_, plan_,   kernels_, static_cast<const CpuWeights<T>&>(weights),
                        call,    buffers, workspace};
    const int threads = partition.threads();
    team.run([&](int thread) {
      if (thread < threads) Worker<T>(whole, thread).run();
    });
  }

  double multiply_adds(std::int64_t steps, std::int64_t batch) const override {
    double total = 0;
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      total += static_cast<double>(config_.layer_input_size(layer) + config_.state_size()) *
               static_cast<double>(config_.gates() * config_.hidden_size * config_.directions());
    }
    return total * static_cast<double>(steps) * static_cast<double>(batch);
  }

 private:
  std::int64_t panels(std::int64_t units) const { return round_up(units, kernels_.lanes) / kernels_.lanes; }

  void lay_out(Arena& arena, CpuWeights<T>& weights) const {
    const std::int64_t padded = round_up(config_.hidden_size, kernels_.lanes);
    const std::int64_t gates = config_.gates();
    for (std::size_t i = 0; i < weights.directions.size(); ++i) {
      const auto layer = static_cast<std::int64_t>(i) / config_.directions();
      DirectionWeights<T>& w = weights.directions[i];
      w.input = arena.take<T>(padded * gates * config_.layer_input_size(layer));
      w.input_bias = arena.take<T>(padded * gates);
      for (int phase = 0; phase < plan_.phases; ++phase) {
        w.recurrent[phase] = arena.take<T>(padded * plan_.phase[phase].gates * config_.state_size());
      }
      w.recurrent_bias = arena.take<T>(padded);
      w.peephole = arena.take<T>(config_.cell == CellKind::lstm_peephole ? 3 * padded : 0);
      w.projection = arena.take<T>(round_up(config_.proj_size, kernels_.lanes) * config_.hidden_size);
    }
  }

  // One thread's share of the panels. Returns where the parameters of the next direction begin.
  const T* const* pack_direction(const T* const* parameters, std::int64_t layer, DirectionWeights<T>& w,
                                 int thread, int threads) const {
    const std::int64_t hidden = config_.hidden_size;
    const Range own = part_of(panels(hidden), threads, thread);
    const int gates = config_.gates();
    kernels_.pack(
        {*parameters++, hidden, config_.layer_input_size(layer), 0, gates, own.first, own.count, w.input});
    for (int i = 0; i < plan_.phases; ++i) {
      const PhasePlan& phase = plan_.phase[i];
      kernels_.pack({*parameters, hidden, config_.state_size(), phase.first_gate, phase.gates, own.first,
                     own.count, w.recurrent[i]});
    }
    ++parameters;
    const T* input_bias = config_.bias ? *parameters++ : nullptr;
    const T* hidden_bias = config_.bias ? *parameters++ : nullptr;
    const T* projection = config_.proj_size ? *parameters++ : nullptr;
    const T* peephole = config_.cell == CellKind::lstm_peephole ? *parameters++ : nullptr;
    const int lanes = kernels_.lanes;
    for (std::int64_t unit = own.first * lanes; unit < (own.first + own.count) * lanes; ++unit) {
      const std::int64_t panel = unit / lanes, lane = unit % lanes;
      const bool exists = unit < hidden;
      for (int gate = 0; gate < gates; ++gate) {
        const bool has_bias = exists && config_.bias;
        const T from_input = has_bias ? input_bias[gate * hidden + unit] : T(0);
        const T from_hidden = has_bias ? hidden_bias[gate * hidden + unit] : T(0);
        const bool separate = gate == plan_.separate_gate;
        w.input_bias[(panel * gates + gate) * lanes + lane] =
            separate ? from_input : from_input + from_hidden;
        if (separate) w.recurrent_bias[unit] = from_hidden;
      }
      for (int row = 0; peephole && row < 3; ++row) {
        w.peephole[(panel * 3 + row) * lanes + lane] = exists ? peephole[row * hidden + unit] : T(0);
      }
    }
    if (projection) {
      const Range share = part_of(panels(config_.proj_size), threads, thread);
      kernels_.pack({projection, config_.proj_size, hidden, 0, 1, share.first, share.count, w.projection});
    }
    return parameters;
  }

  // Longest rows first, so that the rows still running are always a prefix. Dealt out in turn, so
  // that row groups get equal work.
  void order_rows(const Forward<T>& call, const Partition& partition, CpuWorkspace& workspace) const {
    const auto batch = static_cast<std::size_t>(call.batch);
    workspace.ids.resize(batch);
    workspace.lengths.assign(batch, call.steps);
    std::iota(workspace.ids.begin(), workspace.ids.end(), std::int64_t{0});
    if (!call.lengths) return;
    const std::int64_t* lengths = call.lengths;
    std::vector<std::int64_t> sorted(workspace.ids);
    std::stable_sort(sorted.begin(), sorted.end(),
                     [=](std::int64_t a, std::int64_t b) { return lengths[a] > lengths[b]; });
    std::size_t place = 0;
    for (int group = 0; group < partition.row_groups; ++group) {
      const Range rows = part_of(call.batch, partition.row_groups, group);
      for (std::int64_t i = 0; i < rows.count; ++i, ++place) {
        const std::int64_t row = sorted[static_cast<std::size_t>(group + i * partition.row_groups)];
        workspace.ids[place] = row;
        workspace.lengths[place] = lengths[row];
      }
    }
  }

  void lay_out(Arena& arena, const Forward<T>& call, const Partition& partition, Buffers<T>& buffers) const {
    const std::int64_t lanes = kernels_.lanes;
    const std::int64_t chains = config_.num_layers * config_.directions();
    const std::int64_t slice_units =
        (panels(config_.hidden_size) + partition.slices - 1) / partition.slices * lanes;
    const std::int64_t slots_stride = slice_units * config_.gates();
    buffers.group_rows = (call.batch + partition.row_groups - 1) / partition.row_groups;
    const std::int64_t step_bytes =
        std::max<std::int64_t>(1, buffers.group_rows * slots_stride * std::int64_t{sizeof(T)});
    const std::int64_t weight_bytes =
        slots_stride * std::max(config_.input_size, config_.output_size()) * std::int64_t{sizeof(T)};
    buffers.block_steps = std::max(block_bytes, weight_bytes / block_share_of_weights) / step_bytes;
    buffers.block_steps = std::max<std::int64_t>(1, std::min(call.steps, buffers.block_steps));
    buffers.block_rows = buffers.block_steps * buffers.group_rows;
    buffers.slots_per_thread = buffers.block_rows * slots_stride;
    // One vector more than whole panels: rows at a power of two would share cache sets.
    buffers.h_stride = round_up(config_.state_size(), lanes) + lanes;
    buffers.c_stride = round_up(config_.hidden_size, lanes) + lanes;

    for (T*& h : buffers.h) h = arena.take<T>(chains * call.batch * buffers.h_stride);
    if (config_.has_cell_state()) buffers.c = arena.take<T>(chains * call.batch * buffers.c_stride);
    if (config_.proj_size || plan_.phases == 2) {
      buffers.exchange = arena.take<T>(config_.directions() * call.batch * buffers.c_stride);
    }
    const std::int64_t steps = config_.bidirectional ? call.steps : buffers.block_steps;
    const std::int64_t between = steps * call.batch * config_.output_size();
    for (std::int64_t i = 0; i < std::min<std::int64_t>(2, config_.num_layers - 1); ++i) {
      buffers.between[i] = arena.take<T>(between);
    }
    if (config_.bidirectional && config_.merge != Merge::concat) {
      buffers.reverse = arena.take<T>(call.steps * call.batch * config_.state_size());
    }
    const std::int64_t threads = partition.threads();
    buffers.slots = arena.take<T>(threads * buffers.slots_per_thread);
    buffers.x_rows = arena.take<const T*>(threads * buffers.block_rows);
    buffers.y_rows = arena.take<T*>(threads * buffers.group_rows);
    if (!usable_in_place<T>(call.x)) {
      buffers.staged_per_thread = buffers.block_rows * config_.input_size;
      buffers.staged = arena.take<T>(threads * buffers.staged_per_thread);
    }
  }

  const Config config_;
  const CellPlan plan_;
  const Kernels<T>& kernels_;
  const CostModel model_;
};

}  // namespace

template <class T>
std::unique_ptr<Network<T>> make_cpu_network(const Config& config) {
  return std::make_unique<CpuNetwork<T>>(config);
}

template std::unique_ptr<Network<float>> make_cpu_network(const Config&);
template std::unique_ptr<Network<double>> make_cpu_network(const Config&);

}  // namespace fastrnn
