// What the forward and the backward pass of the CPU driver share: what a cell is made of, the order of the
// rows, and a thread's place in the team. Internal to the rnn_cpu*.cpp files.
//
// Working order. Rows are sorted by length, longest first, so that the rows that still run are always the
// first ones; step s of a row is the s-th that its direction takes. Place p of the sorted rows belongs to
// row group p % row_groups, so that the groups get equal work.
#pragma once

#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "parallel.h"
#include "partition.h"
#include "rnn.h"

namespace fastrnn {

// What the driver must know of a cell: its phases and where their weights are (cells.h has the math).
struct PhasePlan {
  StepPhase phase;
  int first_gate, gates;  // rows of weight_hh that the phase multiplies with
};

struct CellPlan {
  int phases;
  PhasePlan phase[2];
  int separate_gate;  // gate whose recurrent bias cannot join the input bias; -1: none
  int slots;          // per unit, in training
  // The gate of whose product with x (with h) a slot holds the gradient after backward; -1: of none. Those
  // of one product are adjacent.
  int input_gate[8], recurrent_gate[8];
  bool passes_h;  // h_{t-1} acts on h_t lane by lane, too

  // The slots of a phase's product with h.
  int first_slot(int index) const {
    int slot = 0;
    while (recurrent_gate[slot] != phase[index].first_gate) ++slot;
    return slot;
  }
};

CellPlan plan_of(const Config& config);

inline std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
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
  T* peephole;  // rows i, f, o; of coupled gates f is 0
  T* projection;
  NormWeights<T> norm;
};

// The row of weight_peep that acts as row i, f or o; -1: none.
inline int peephole_row(const Config& config, int row) {
  return !config.coupled() || row == 0 ? row : row == 2 ? 1 : -1;
}

template <class T>
struct CpuWeights : Weights<T> {
  Storage storage;                              // or memory of the caller
  std::vector<DirectionWeights<T>> directions;  // [layer * D + direction]
};

template <class T>
void lay_out(Arena& arena, const Config& config, const CellPlan& plan, int lanes, CpuWeights<T>& weights);

// Layer norm's gains and shifts; `norm` has room for whole panels, of which `own` are written.
template <class T>
void lay_out_norm(Arena& arena, const Config& config, int lanes, NormWeights<T>& norm);
template <class T>
void pack_norm(const Config& config, int lanes, const T* const* parameters, const ParameterIndices& index,
               const NormWeights<T>& norm, const Range& own);

// Those from a panel on.
template <class T>
NormWeights<const T> from_unit(const NormWeights<T>& norm, std::int64_t gates, std::int64_t unit) {
  return {norm.gain_x + gates * unit,  norm.shift_x + gates * unit, norm.gain_h + gates * unit,
          norm.shift_h + gates * unit, norm.gain_c + unit,          norm.shift_c + unit};
}

// One thread's share of the packing.
template <class T>
void pack(const Config& config, const CellPlan& plan, const Kernels<T>& kernels, const T* const* parameters,
          const CpuWeights<T>& weights, int threads, int thread);

// Elements for each gradient: backward packs every weight matrix, padded to whole panels both ways, into
// what becomes its gradient.
std::vector<std::int64_t> gradient_rooms(const Config& config, int lanes);

// The working order of a call. `offset[s]` counts the rows of all steps before s: what a tape keeps of step s
// and place p lies at offset[s] + p, whatever the partition.
struct RowOrder {
  std::vector<std::int64_t> ids, lengths, offset;
  std::int64_t equal_steps = -1;  // of all rows, where no lengths were given

  // Returns whether anything changed.
  bool sort(const std::int64_t* row_lengths, std::int64_t steps, std::int64_t batch);
  std::int64_t max_steps() const { return static_cast<std::int64_t>(offset.size()) - 1; }
  std::int64_t total_rows() const { return offset.back(); }
};

struct CpuWorkspace : Workspace {
  Storage storage;
  RowOrder order;                          // of an inference call
  std::vector<std::int64_t> ids, lengths;  // in working order, row group after row group
  Partition partition;
  std::vector<std::unique_ptr<Barrier>> slice_barriers;  // [row group * directions + direction group]
  std::vector<std::unique_ptr<Barrier>> group_barriers;  // [row group]
  std::unique_ptr<Barrier> barrier;                      // of all

  // Returns whether it is another one.
  bool set_partition(const Partition& p);
  void deal(const RowOrder& order);
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

// Layers whose output is not the plain h of their directions, side by side.
inline bool residual_at(const Config& config, std::int64_t layer) {
  return config.residual && config.layer_input_size(layer) == config.output_size();
}
inline bool dropout_at(const Config& config, double dropout, std::int64_t layer) {
  return dropout > 0 && layer + 1 < config.num_layers;
}
inline bool merges(const Config& config) { return config.bidirectional && config.merge != Merge::concat; }
inline bool plain_output(const Config& config, double dropout, std::int64_t layer) {
  return !merges(config) && !residual_at(config, layer) && !dropout_at(config, dropout, layer);
}

// One thread's place in a call.
class Member {
 public:
  Member(const Config& config, int lanes, std::int64_t batch, const CpuWorkspace& workspace, int thread)
      : slices_(workspace.partition.slices),
        direction_groups_(workspace.partition.directions),
        row_groups_(workspace.partition.row_groups),
        thread_(thread),
        slice_index_(thread % slices_),
        direction_group_(thread / slices_ % direction_groups_),
        row_group_(thread / slices_ / direction_groups_),
        hidden_(config.hidden_size, lanes, slices_, slice_index_),
        state_(config.state_size(), lanes, slices_, slice_index_) {
    const Range rows = part_of(batch, row_groups_, row_group_);
    first_row_ = rows.first;
    rows_ = rows.count;
    ids_ = workspace.ids.data() + first_row_;
    lengths_ = workspace.lengths.data() + first_row_;
    max_steps_ = rows_ ? lengths_[0] : 0;
    slice_barrier_ = workspace.slice_barriers[row_group_ * direction_groups_ + direction_group_].get();
    group_barrier_ = workspace.group_barriers[row_group_].get();
    barrier_ = workspace.barrier.get();
  }

 protected:
  int threads() const { return slices_ * direction_groups_ * row_groups_; }
  bool mine(int direction) const { return direction % direction_groups_ == direction_group_; }

  // With the threads that have other units of the same rows, and the same direction.
  void meet_slices() {
    if (slices_ > 1) slice_barrier_->wait(slice_index_);
  }
  // With all that have the same rows.
  void meet_group() {
    if (slices_ * direction_groups_ > 1) group_barrier_->wait(place_in_group());
  }
  void meet_all() {
    if (threads() > 1) barrier_->wait(thread_);
  }
  int place_in_group() const { return direction_group_ * slices_ + slice_index_; }

  std::int64_t active_rows(std::int64_t s) const {
    std::int64_t n = rows_;
    while (n > 0 && lengths_[n - 1] <= s) --n;
    return n;
  }
  // The reverse direction starts at each row's own last step.
  std::int64_t time(std::int64_t s, std::int64_t b, bool reverse) const {
    return reverse ? lengths_[b] - 1 - s : s;
  }

  const int slices_, direction_groups_, row_groups_, thread_;
  const int slice_index_, direction_group_, row_group_;
  const Slice hidden_, state_;  // own units of H and of R
  std::int64_t first_row_, rows_, max_steps_;
  const std::int64_t *ids_, *lengths_;
  Barrier *slice_barrier_, *group_barrier_, *barrier_;
};

template <class T>
struct CpuTape;

// The two passes: lay out their workspace and run on the team.
template <class T>
struct Driver {
  const Config& config;
  const CellPlan& plan;
  const Kernels<T>& kernels;
  const CostModel& model;
  const std::vector<std::int64_t>& rooms;  // gradient_rooms()
  CpuWorkspace& workspace;
};

template <class T>
void run_forward(const Driver<T>& driver, const CpuWeights<T>* weights, const Forward<T>& call);

template <class T>
void run_backward(const Driver<T>& driver, CpuTape<T>& tape, const Backward<T>& call);

template <class T>
std::unique_ptr<StepGradients<T>> make_step_gradients();

template <class T>
void add_up(const Driver<T>& driver, StepGradients<T>& steps, T* const* gradients);

}  // namespace fastrnn
