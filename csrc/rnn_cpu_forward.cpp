// Forward on the CPU: walks layers, directions and time.
#include "regularise.h"
#include "rnn_cpu_tape.h"

namespace fastrnn {
namespace {

// The input projection of a block of steps is formed at once; a thread's part of it stays about this
// large, so that the steps find it in their own L2. But each block streams all input weights: where
// those are large, the block may be this fraction of them.
constexpr std::int64_t block_bytes = 384 * 1024;
constexpr std::int64_t block_share_of_weights = 4;

// Pieces of the workspace; the first index in a comment is the outermost.
template <class T>
struct Buffers {
  T* h[2];           // (L*D, B, h_stride) each: operand of even and of odd steps
  T* c;              // (L*D, B, c_stride)
  T* exchange;       // (D, B, c_stride): from a first to a second phase
  T* between[2];     // layer outputs that the next layer reads, even and odd layers
  T* reverse;        // (T, B, R): second direction, where it is merged into the first
  T* slots;          // (threads, block rows, slots_stride); in training the tape's
  const T** x_rows;  // (threads, block rows)
  T** slot_rows;     // (threads, block rows)
  T** y_rows;        // (threads, rows of a group)
  T* staged;     // (threads, block rows, width): rows of an x whose elements are not adjacent, masked rows
  T* masked[2];  // (L*D, B, h_stride) each: operand, where that is a masked h
  T* c_before;   // (D, B, c_stride): for zoneout
  T* mask;       // (threads, mask_stride): of dropout
  T* dropped;    // (L*D, G*H, R): W_hh with dropped weights
  SequenceMasks<T> masks;
  // Layer norm: products with h (D, B, raw_stride); c_t and o (D, B, c_stride); moments of rows (threads,
  // 2, block rows) of x's products and (threads, 4, group rows) of h's and of c; rows (threads, group rows).
  T *raw, *candidate, *gate_o, *moments_x, *moments;
  const T** operand_rows;
  T** raw_rows;
  std::int64_t h_stride, c_stride, mask_stride, raw_stride;
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
  CpuTape<T>* tape;  // null in inference
  const CpuWorkspace& workspace;
  std::size_t parameter_count;
};

// One thread's part of a forward call.
template <class T>
class ForwardWorker : Member {
 public:
  ForwardWorker(const Call<T>& call, int thread)
      : Member(call.config, call.kernels.lanes, call.forward.batch, call.workspace, thread),
        config_(call.config),
        plan_(call.plan),
        kernels_(call.kernels),
        weights_(call.weights),
        forward_(call.forward),
        buffers_(call.buffers),
        noise_(call.forward.noise),
        masks_{call.kernels, call.forward.noise, call.forward.seed},
        tape_(call.tape) {
    x_rows_ = buffers_.x_rows + thread * buffers_.block_rows;
    slot_rows_ = buffers_.slot_rows + thread * buffers_.block_rows;
    y_rows_ = buffers_.y_rows + thread * buffers_.group_rows;
    staged_ = buffers_.staged + thread * buffers_.staged_per_thread;
    slots_ = buffers_.slots + thread * buffers_.slots_per_thread;
    if (forward_.parameters) {
      parameters_.assign(forward_.parameters, forward_.parameters + call.parameter_count);
    }
    slots_per_unit_ = tape_ || config_.layer_norm ? plan_.slots : config_.gates();
    slots_stride_ = tape_ ? tape_->slots_stride : hidden_.panels * slots_per_unit_ * kernels_.lanes;
    if (config_.layer_norm) {
      moments_x_ = buffers_.moments_x + thread * 2 * buffers_.block_rows;
      moments_ = buffers_.moments + thread * 4 * buffers_.group_rows;
      operand_rows_ = buffers_.operand_rows + thread * buffers_.group_rows;
      raw_rows_ = buffers_.raw_rows + thread * buffers_.group_rows;
      if (!tape_) {  // a row's moments are those of all threads' units
        const std::int64_t group = row_group_ * direction_groups_ + direction_group_;
        slots_stride_ = round_up(config_.hidden_size, kernels_.lanes) * plan_.slots;
        slots_ =
            buffers_.slots + group * buffers_.block_rows * slots_stride_ + hidden_.first_unit * plan_.slots;
      }
    }
    second_phase_ = plan_.phases == 2 || config_.proj_size;
    merged_ = merges(config_);
  }

  void run() {
    if (forward_.parameters) {
      if (tape_ && forward_.guard) take_checksums();
      if (buffers_.dropped) drop_weights();
      pack(config_, plan_, kernels_, parameters_.data(), weights_, threads(), thread_);
      meet_all();
    }
    clear_padding();
    draw_masks();
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
  void take_checksums() {
    tape_->checksums.parameters += checksum_of(config_, kernels_, forward_.parameters, threads(), thread_);
    tape_->checksums.x +=
        checksum_of(kernels_, reinterpret_cast<const T*>(forward_.x.data),
                    forward_.steps * forward_.batch * config_.input_size, threads(), thread_);
  }

  void drop_weights() {
    const std::int64_t rows = config_.gates() * config_.hidden_size;
    const Range own = part_of(rows, threads(), thread_);
    T* dropped = buffers_.dropped;
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (int d = 0; d < config_.directions(); ++d, dropped += rows * config_.state_size()) {
        const T*& weight = parameters_[parameter_indices(config_, layer, d).weight_hh];
        masks_.drop_weights(layer, d, weight, config_.state_size(), own.first, own.count, dropped);
        weight = dropped;
      }
    }
    meet_all();
  }

  // Of whole sequences; the threads of a row group share its rows.
  void draw_masks() {
    if (!buffers_.masks.input && !buffers_.masks.recurrent) return;
    const Range own = part_of(rows_, slices_ * direction_groups_, place_in_group());
    for (std::int64_t b = own.first; b < own.first + own.count; ++b) {
      buffers_.masks.draw(config_, masks_, ids_[b]);
    }
    meet_group();
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
    if (tape_) return tape_->y[layer];
    if (layer == config_.num_layers - 1) return {forward_.y, forward_.y_step, forward_.y_row, false};
    T* base = buffers_.between[layer % 2];
    const std::int64_t width = config_.output_size();
    if (config_.bidirectional) return {base, forward_.batch * width, width, false};
    return {base + buffers_.block_steps * first_row_ * width, rows_ * width, width, true};
  }

  // Where h of a direction goes, at once or to be made an output of.
  Rows<T*> hidden_rows(std::int64_t layer, int d) const {
    const std::int64_t width = config_.state_size();
    if (tape_ && tape_->chain(layer, d).h)
      return {tape_->chain(layer, d).h, forward_.batch * width, width, false};
    if (merged_ && d == 1) return {buffers_.reverse, forward_.batch * width, width, false};
    Rows<T*> rows = output_rows(layer);
    rows.base += d * width;
    return rows;
  }

  // Between the elements of a row, in bytes.
  std::int64_t input_stride(std::int64_t layer) const {
    return layer == 0 ? forward_.x.stride[2] : std::int64_t{sizeof(T)};
  }

  template <class P>
  P address(const Rows<P>& rows, std::int64_t s, std::int64_t s0, std::int64_t b, bool reverse) const {
    if (rows.by_block) return rows.base + (s - s0) * rows.step + b * rows.row;
    return rows.base + time(s, b, reverse) * rows.step + ids_[b] * rows.row;
  }

  // ---- state ------------------------------------------------------------------------------------

  std::int64_t state_row(std::int64_t layer, int d, std::int64_t b) const {
    return (layer * config_.directions() + d) * forward_.batch + first_row_ + b;
  }

  T* h_row(std::int64_t layer, int d, std::int64_t b, std::int64_t s) const {
    return buffers_.h[s % 2] + state_row(layer, d, b) * buffers_.h_stride;
  }

  // What the products with W_hh read.
  T* operand_row(std::int64_t layer, int d, std::int64_t b, std::int64_t s) const {
    if (!buffers_.masked[0]) return h_row(layer, d, b, s);
    return buffers_.masked[s % 2] + state_row(layer, d, b) * buffers_.h_stride;
  }

  void mask_operand(std::int64_t layer, int d, std::int64_t b, std::int64_t s) const {
    if (!buffers_.masked[0]) return;
    T* const operand = operand_row(layer, d, b, s) + state_.first_unit;
    std::copy_n(h_row(layer, d, b, s) + state_.first_unit, state_.units, operand);
    multiply_by(buffers_.masks.recurrent_row(layer, d, ids_[b]) + state_.first_unit, operand, state_.units);
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
      T* h = h_row(layer, d, b, 0);
      if (tape_) std::fill_n(h + state_.first_unit, state_.panels * kernels_.lanes, T(0));
      read_state(forward_.h0, index, ids_[b], state_, h);
      if (config_.has_cell_state()) {
        // Lanes beyond H are computed too: give them a value.
        T* c = c_row(layer, d, b);
        std::fill_n(c + hidden_.first_unit, hidden_.panels * kernels_.lanes, T(0));
        read_state(forward_.c0, index, ids_[b], hidden_, c);
      }
      if (tape_) keep_start(layer, d, b);
      if (lengths_[b] == 0) finish_row(layer, d, b, 0);
      if (d == 0 && lengths_[b] > 0 && reset_at(0, b)) clear_state(layer, d, b, 0);
      mask_operand(layer, d, b, 0);
    }
  }

  void keep_start(std::int64_t layer, int d, std::int64_t b) {
    const std::int64_t lanes = kernels_.lanes;
    std::copy_n(h_row(layer, d, b, 0) + state_.first_unit, state_.panels * lanes,
                tape_->chain(layer, d).h0 + ids_[b] * tape_->h_stride + state_.first_unit);
    if (!config_.has_cell_state()) return;
    std::copy_n(c_row(layer, d, b) + hidden_.first_unit, hidden_.panels * lanes,
                tape_->chain(layer, d).c0 + ids_[b] * tape_->c_stride + hidden_.first_unit);
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
    if (config_.has_cell_state()) {  // of lanes beyond H, too, which a NaN may have reached
      std::fill_n(c_row(layer, d, b) + hidden_.first_unit, hidden_.panels * kernels_.lanes, T(0));
    }
    mask_operand(layer, d, b, s);
  }

  // ---- time -------------------------------------------------------------------------------------

  // Of the group's first row at step s in what the tape keeps; its next rows follow at row_groups_.
  std::int64_t kept_row(std::int64_t s) const { return tape_->order.offset[s] + row_group_; }

  // Steps [s0, s1) of one layer and direction.
  void run_block(std::int64_t layer, int d, std::int64_t s0, std::int64_t s1) {
    const DirectionWeights<T>& weights = weights_.directions[layer * config_.directions() + d];
    project_inputs(layer, d, s0, s1, weights);
    if (config_.layer_norm) take_input_moments(layer, d, s0, s1);

    const T* moments_x = moments_x_;
    StepArguments<T> first{}, second{};
    fill_arguments(layer, d, weights, first, second);
    const bool adjusted = !merged_ && !plain_output(config_, noise_.dropout, layer);
    const Rows<T*> out = output_rows(layer), hidden = hidden_rows(layer, d);
    const std::int64_t column = d * config_.state_size() + state_.first_unit;
    const bool regularised = noise_.zoneout_h > 0 || noise_.zoneout_c > 0 || buffers_.masked[0] ||
                             forward_.h_all || forward_.c_all;
    std::int64_t n = active_rows(s0);
    for (std::int64_t s = s0; s < s1; ++s) {
      for (std::int64_t b = 0; b < n; ++b) y_rows_[b] = address(hidden, s, s0, b, d == 1) + state_.first_unit;
      T* const operand = operand_row(layer, d, 0, s);
      T* const h = h_row(layer, d, 0, s) + hidden_.first_unit;
      T* const result = h_row(layer, d, 0, s + 1);
      if (noise_.zoneout_c > 0) keep_c(layer, d, n);
      if (tape_) keep_step(layer, d, s, first, second);
      first.rows = second.rows = n;
      first.operand = operand;
      // Of a cell with two phases the first makes of h what a product reads.
      first.h_previous = plan_.phases == 2 ? operand + hidden_.first_unit : h;
      second.h_previous = h;
      first.descending = second.descending = s % 2;
      StepArguments<T>& last = second_phase_ ? second : first;
      last.result = result + state_.first_unit;
      last.y = y_rows_;
      run_phase(layer, d, s, 0, first, weights, moments_x);
      if (second_phase_) {
        meet_slices();
        run_phase(layer, d, s, 1, second, weights, moments_x);
      }
      moments_x += n;
      if (!tape_) {
        first.slots += n * slots_stride_;
        second.slots = first.slots;
      }
      if (regularised) regularise_step(layer, d, s, n);
      if (adjusted) {
        const Rows<const char*> in = input_rows(layer);
        for (std::int64_t b = 0; b < n; ++b) {
          T* y = address(out, s, s0, b, d == 1) + column;
          if (y != y_rows_[b]) std::copy_n(y_rows_[b], state_.units, y);
          adjust_output(layer, time(s, b, d == 1), ids_[b], address(in, s, s0, b, d == 1), y, column,
                        state_.units);
        }
      }
      n = finish_step(layer, d, s, n);
      meet_slices();
    }
  }

  T* c_before_row(int d, std::int64_t b) const {
    return buffers_.c_before + (d * forward_.batch + first_row_ + b) * buffers_.c_stride;
  }

  void keep_c(std::int64_t layer, int d, std::int64_t n) const {
    for (std::int64_t b = 0; b < n; ++b) {
      std::copy_n(c_row(layer, d, b) + hidden_.first_unit, hidden_.units,
                  c_before_row(d, b) + hidden_.first_unit);
    }
  }

  // What happens to own units of the new state: zoneout, the mask of what the next products read, and copies
  // of every step's state.
  void regularise_step(std::int64_t layer, int d, std::int64_t s, std::int64_t n) const {
    for (std::int64_t b = 0; b < n; ++b) {
      const std::int64_t t = time(s, b, d == 1), id = ids_[b];
      T* const h = h_row(layer, d, b, s + 1) + state_.first_unit;
      if (noise_.zoneout_h > 0) {
        ZoneArguments<T> zone = masks_.zoneout(MaskKind::zoneout_h, noise_.zoneout_h, layer, d, t, id,
                                               state_.first_unit, state_.units);
        zone.before = h_row(layer, d, b, s) + state_.first_unit;
        zone.state = h;
        zone.copy = y_rows_[b];
        kernels_.zone(zone);
      }
      if (noise_.zoneout_c > 0) {
        T* const c = c_row(layer, d, b) + hidden_.first_unit;
        if (tape_ && tape_->chain(layer, d).candidate) {
          std::copy_n(c, hidden_.units, tape_->chain(layer, d).candidate + kept_c(s, b));
        }
        ZoneArguments<T> zone = masks_.zoneout(MaskKind::zoneout_c, noise_.zoneout_c, layer, d, t, id,
                                               hidden_.first_unit, hidden_.units);
        zone.before = c_before_row(d, b) + hidden_.first_unit;
        zone.state = c;
        zone.copy = tape_ ? tape_->chain(layer, d).c + kept_c(s, b) : nullptr;
        kernels_.zone(zone);
      }
      mask_operand(layer, d, b, s + 1);
      const std::int64_t row =
          ((layer * config_.directions() + d) * forward_.steps + t) * forward_.batch + id;
      if (forward_.h_all) {
        std::copy_n(h, state_.units, forward_.h_all + row * config_.state_size() + state_.first_unit);
      }
      if (forward_.c_all) {
        std::copy_n(c_row(layer, d, b) + hidden_.first_unit, hidden_.units,
                    forward_.c_all + row * config_.hidden_size + hidden_.first_unit);
      }
    }
  }

  // Of own units of row b at step s in a tape's c.
  std::int64_t kept_c(std::int64_t s, std::int64_t b) const {
    return (kept_row(s) + b * row_groups_) * tape_->c_stride + hidden_.first_unit;
  }

  // Where a step writes what the tape keeps of it.
  void keep_step(std::int64_t layer, int d, std::int64_t s, StepArguments<T>& first,
                 StepArguments<T>& second) const {
    const Chain<T>& kept = tape_->chain(layer, d);
    first.slots = kept.slots + kept_row(s) * tape_->slots_stride +
                  hidden_.first_panel * slots_per_unit_ * kernels_.lanes;
    second.slots = first.slots;
    if (config_.has_cell_state()) first.c_kept = kept.c + kept_row(s) * tape_->c_stride + hidden_.first_unit;
    if (second_phase_) {
      second.operand = kept.exchange + kept_row(s) * tape_->c_stride;
      first.result = kept.exchange + kept_row(s) * tape_->c_stride + hidden_.first_unit;
    }
  }

  void project_inputs(std::int64_t layer, int d, std::int64_t s0, std::int64_t s1,
                      const DirectionWeights<T>& weights) {
    const Rows<const char*> in = input_rows(layer);
    const std::int64_t columns = config_.layer_input_size(layer);
    const bool masked = buffers_.masks.input;
    const bool adjacent = (layer > 0 || usable_in_place<T>(forward_.x)) && !masked;
    const std::int64_t stride = input_stride(layer);
    T* const kept =
        tape_ ? tape_->chain(layer, d).slots + hidden_.first_panel * slots_per_unit_ * kernels_.lanes
              : nullptr;
    std::int64_t count = 0, n = rows_;
    for (std::int64_t s = s0; s < s1; ++s) {
      while (n > 0 && lengths_[n - 1] <= s) --n;
      for (std::int64_t b = 0; b < n; ++b, ++count) {
        const char* row = address(in, s, s0, b, d == 1);
        if (!adjacent) {
          T* copy = staged_ + count * columns;
          for (std::int64_t k = 0; k < columns; ++k) std::memcpy(copy + k, row + k * stride, sizeof(T));
          if (masked) multiply_by(buffers_.masks.input_row(layer, ids_[b]), copy, columns);
          row = reinterpret_cast<const char*>(copy);
        }
        x_rows_[count] = reinterpret_cast<const T*>(row);
        slot_rows_[count] =
            tape_ ? kept + (kept_row(s) + b * row_groups_) * slots_stride_ : slots_ + count * slots_stride_;
      }
    }
    InputArguments<T> input{};
    input.x = x_rows_;
    input.rows = count;
    input.panels = hidden_.panels;
    input.columns = columns;
    input.weight = weights.input + hidden_.first_unit * config_.gates() * columns;
    input.bias = weights.input_bias + hidden_.first_unit * config_.gates();
    input.slots = slot_rows_;
    input.slots_per_unit = slots_per_unit_;
    input.far = tape_ != nullptr;
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
    first.slots_stride = tape_ ? row_groups_ * slots_stride_ : slots_stride_;
    first.slots_per_unit = slots_per_unit_;
    first.keep_slots = tape_ != nullptr;
    first.recurrent_bias = weights.recurrent_bias + hidden_.first_unit;
    first.peephole = weights.peephole + 3 * hidden_.first_unit;
    first.c = config_.has_cell_state() ? c_row(layer, d, 0) + hidden_.first_unit : nullptr;
    first.c_stride = buffers_.c_stride;
    first.clip = static_cast<T>(config_.clip);
    first.c_kept_stride = tape_ ? row_groups_ * tape_->c_stride : 0;
    first.result_stride = buffers_.h_stride;
    if (!second_phase_) return;

    T* const exchange = buffers_.exchange + (d * forward_.batch + first_row_) * buffers_.c_stride;
    first.result = exchange + hidden_.first_unit;
    first.result_stride = tape_ ? row_groups_ * tape_->c_stride : buffers_.c_stride;
    second = first;
    second.panels = state_.panels;
    second.columns = config_.hidden_size;
    second.units = state_.units;
    second.operand = exchange;
    second.operand_stride = first.result_stride;
    second.result_stride = buffers_.h_stride;
    if (config_.proj_size) second.keep_slots = false;  // it has none
    second.weight = config_.proj_size ? weights.projection + state_.first_unit * config_.hidden_size
                                      : weights.recurrent[1] + hidden_.first_unit * config_.hidden_size;
  }

  void run_phase(std::int64_t layer, int d, std::int64_t s, int index, const StepArguments<T>& arguments,
                 const DirectionWeights<T>& weights, const T* moments_x) {
    if (index == 1 && config_.proj_size) {
      kernels_.step[static_cast<int>(StepPhase::projection)](arguments);
    } else if (config_.layer_norm) {
      run_normed_phase(layer, d, s, index, arguments, weights, moments_x);
    } else {
      kernels_.step[static_cast<int>(plan_.phase[index].phase)](arguments);
    }
  }

  // ---- layer norm -------------------------------------------------------------------------------

  // Moments of the rows of a block, of mean and scale side by side: `block rows` apart. Threads that own
  // other units form their products meanwhile, and normalise them in place later.
  void take_input_moments(std::int64_t layer, int d, std::int64_t s0, std::int64_t s1) {
    meet_slices();
    std::int64_t count = 0, n = rows_;
    for (std::int64_t s = s0; s < s1; ++s) {
      while (n > 0 && lengths_[n - 1] <= s) --n;
      count += n;
    }
    const std::int64_t offset = hidden_.first_unit * slots_per_unit_;
    for (std::int64_t i = 0; i < count; ++i) x_rows_[i] = slot_rows_[i] - offset;
    T* const scale = moments_x_ + buffers_.block_rows;
    kernels_.moments(
        {x_rows_, count, config_.hidden_size, slots_per_unit_, config_.gates(), moments_x_, scale});
    count = 0;
    n = rows_;
    for (std::int64_t s = s0; tape_ && slice_index_ == 0 && s < s1; ++s) {
      while (n > 0 && lengths_[n - 1] <= s) --n;
      for (std::int64_t b = 0; b < n; ++b, ++count) {
        kept_moments(layer, d, s, b)[NormBackwardArguments<T>::scale_x] = scale[count];
      }
    }
    meet_slices();
  }

  T* kept_moments(std::int64_t layer, int d, std::int64_t s, std::int64_t b) const {
    return tape_->chain(layer, d).moments +
           (kept_row(s) + b * row_groups_) * NormBackwardArguments<T>::moment_count;
  }

  void run_normed_phase(std::int64_t layer, int d, std::int64_t s, int index, const StepArguments<T>& step,
                        const DirectionWeights<T>& weights, const T* moments_x) {
    using Moment = NormBackwardArguments<T>;
    const PhasePlan& phase = plan_.phase[index];
    const std::int64_t gates = config_.gates(), lanes = kernels_.lanes, n = step.rows;
    T* const raw = buffers_.raw + (d * forward_.batch + first_row_) * buffers_.raw_stride;
    T* const own_raw = raw + hidden_.first_unit * gates;
    for (std::int64_t b = 0; b < n; ++b) {
      operand_rows_[b] = step.operand + b * step.operand_stride;
      raw_rows_[b] = own_raw + b * buffers_.raw_stride + phase.first_gate * lanes;
    }
    InputArguments<T> product{};
    product.x = operand_rows_;
    product.rows = n;
    product.panels = hidden_.panels;
    product.columns = step.columns;
    product.weight = step.weight;
    product.bias = weights.input_bias;  // zeros
    product.slots = raw_rows_;
    product.slots_per_unit = static_cast<int>(gates);
    kernels_.input[phase.gates](product);
    meet_slices();

    T* const mean_h = moments_;
    T* const scale_h = mean_h + buffers_.group_rows;
    for (std::int64_t b = 0; b < n; ++b)
      operand_rows_[b] = raw + b * buffers_.raw_stride + phase.first_gate * lanes;
    kernels_.moments(
        {operand_rows_, n, config_.hidden_size, static_cast<int>(gates), phase.gates, mean_h, scale_h});

    NormStepArguments<T> norm{};
    norm.rows = n;
    norm.panels = step.panels;
    norm.units = step.units;
    norm.slots = step.slots;
    norm.slots_stride = step.slots_stride;
    norm.raw = own_raw;
    norm.raw_stride = buffers_.raw_stride;
    norm.mean_x = moments_x;
    norm.scale_x = moments_x + buffers_.block_rows;
    norm.mean_h = mean_h;
    norm.scale_h = scale_h;
    norm.weights = from_unit(weights.norm, gates, hidden_.first_unit);
    norm.peephole = step.peephole;
    norm.clip = step.clip;
    norm.c = step.c;
    norm.c_stride = buffers_.c_stride;
    norm.c_kept = step.c_kept;
    norm.c_kept_stride = step.c_kept_stride;
    norm.h_previous = step.h_previous;
    norm.h_stride = step.h_stride;
    norm.result = step.result;
    norm.result_stride = step.result_stride;
    norm.y = step.y;
    const std::int64_t row = (d * forward_.batch + first_row_) * buffers_.c_stride;
    if (config_.has_cell_state()) {
      norm.candidate = buffers_.candidate + row + hidden_.first_unit;
      norm.o = buffers_.gate_o + row + hidden_.first_unit;
    }
    kernels_.norm_step[static_cast<int>(phase.phase)](norm);
    const bool keeps = tape_ && slice_index_ == 0;
    for (std::int64_t b = 0; keeps && b < n; ++b) {
      kept_moments(layer, d, s, b)[index ? Moment::scale_h2 : Moment::scale_h] = scale_h[b];
    }
    if (!config_.has_cell_state()) return;

    meet_slices();
    T* const mean_c = moments_ + 2 * buffers_.group_rows;
    T* const scale_c = mean_c + buffers_.group_rows;
    for (std::int64_t b = 0; b < n; ++b) operand_rows_[b] = buffers_.candidate + row + b * buffers_.c_stride;
    kernels_.moments({operand_rows_, n, config_.hidden_size, 1, 1, mean_c, scale_c});
    norm.mean_c = mean_c;
    norm.scale_c = scale_c;
    kernels_.norm_output(norm);
    for (std::int64_t b = 0; keeps && b < n; ++b) {
      kept_moments(layer, d, s, b)[Moment::mean_c] = mean_c[b];
      kept_moments(layer, d, s, b)[Moment::scale_c] = scale_c[b];
    }
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
  void adjust_output(std::int64_t layer, std::int64_t t, std::int64_t row, const char* x, T* y,
                     std::int64_t first, std::int64_t count) const {
    if (residual_at(config_, layer)) {
      const std::int64_t stride = input_stride(layer);
      const auto add = [&](std::int64_t bytes) {
        for (std::int64_t i = 0; i < count; ++i) {
          T value;
          std::memcpy(&value, x + (first + i) * bytes, sizeof(T));
          y[i] += value;
        }
      };
      stride == sizeof(T) ? add(sizeof(T)) : add(stride);
    }
    if (dropout_at(config_, noise_.dropout, layer)) {
      T* const mask = buffers_.mask + thread_ * buffers_.mask_stride;
      masks_.dropout(MaskKind::dropout, noise_.dropout, layer, 0, t, row, first, count, mask);
      multiply_by(mask, y, count);
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
    const Rows<T*> out = output_rows(layer), ahead = hidden_rows(layer, 0), back = hidden_rows(layer, 1);
    const Rows<const char*> in = input_rows(layer);
    const std::int64_t width = config_.state_size();
    const Range own = part_of(rows_, slices_ * direction_groups_, place_in_group());
    for (std::int64_t b = own.first; b < own.first + own.count; ++b) {
      for (std::int64_t t = 0; t < lengths_[b]; ++t) {
        T* y = out.base + t * out.step + ids_[b] * out.row;
        const T* forward = ahead.base + t * ahead.step + ids_[b] * ahead.row;
        const T* reverse = back.base + t * back.step + ids_[b] * back.row;
        for (std::int64_t i = 0; i < width; ++i) y[i] = merged(config_.merge, forward[i], reverse[i]);
        adjust_output(layer, t, ids_[b], in.base + t * in.step + ids_[b] * in.row, y, 0, width);
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
  const Noise& noise_;
  const Masks<T> masks_;
  CpuTape<T>* const tape_;
  std::vector<const T*> parameters_;  // of the call, with dropped weights
  T *slots_, *staged_, *moments_x_ = nullptr, *moments_ = nullptr;
  const T** operand_rows_ = nullptr;
  T** raw_rows_ = nullptr;
  const T** x_rows_;
  T **slot_rows_, **y_rows_;
  int slots_per_unit_;
  std::int64_t slots_stride_;
  bool second_phase_, merged_;
};

template <class T>
void lay_out(Arena& arena, const Driver<T>& driver, const Forward<T>& call, Buffers<T>& buffers) {
  const Config& config = driver.config;
  const Partition& partition = driver.workspace.partition;
  const std::int64_t lanes = driver.kernels.lanes;
  const std::int64_t chains = config.num_layers * config.directions();
  const std::int64_t all_panels = round_up(config.hidden_size, lanes) / lanes;
  const std::int64_t slice_units = (all_panels + partition.slices - 1) / partition.slices * lanes;
  const std::int64_t slots_stride = slice_units * (config.layer_norm ? driver.plan.slots : config.gates());
  buffers.group_rows = (call.batch + partition.row_groups - 1) / partition.row_groups;
  const std::int64_t step_bytes =
      std::max<std::int64_t>(1, buffers.group_rows * slots_stride * std::int64_t{sizeof(T)});
  const std::int64_t weight_bytes =
      slots_stride * std::max(config.input_size, config.output_size()) * std::int64_t{sizeof(T)};
  buffers.block_steps = std::max(block_bytes, weight_bytes / block_share_of_weights) / step_bytes;
  buffers.block_steps = std::max<std::int64_t>(1, std::min(call.steps, buffers.block_steps));
  buffers.block_rows = buffers.block_steps * buffers.group_rows;
  // One vector more than whole panels: rows at a power of two would share cache sets.
  buffers.h_stride = round_up(config.state_size(), lanes) + lanes;
  buffers.c_stride = round_up(config.hidden_size, lanes) + lanes;

  for (T*& h : buffers.h) h = arena.take<T>(chains * call.batch * buffers.h_stride);
  if (config.has_cell_state()) buffers.c = arena.take<T>(chains * call.batch * buffers.c_stride);
  const std::int64_t threads = partition.threads();
  buffers.x_rows = arena.take<const T*>(threads * buffers.block_rows);
  buffers.slot_rows = arena.take<T*>(threads * buffers.block_rows);
  buffers.y_rows = arena.take<T*>(threads * buffers.group_rows);

  const Noise& noise = call.noise;
  buffers.masks.lay_out(arena, config, noise, call.batch);
  if (noise.recurrent_dropout > 0) {
    for (T*& masked : buffers.masked) masked = arena.take<T>(chains * call.batch * buffers.h_stride);
  }
  if (noise.zoneout_c > 0) {
    buffers.c_before = arena.take<T>(config.directions() * call.batch * buffers.c_stride);
  }
  buffers.mask_stride = round_up(std::max(config.hidden_size, config.output_size()), lanes);
  buffers.mask = arena.take<T>(threads * buffers.mask_stride);
  if (noise.weight_drop > 0) {
    buffers.dropped = arena.take<T>(chains * config.gates() * config.hidden_size * config.state_size());
  }
  if (noise.input_dropout > 0 || !(call.tape || usable_in_place<T>(call.x))) {
    const std::int64_t width = std::max(
        config.input_size, noise.input_dropout > 0 && config.num_layers > 1 ? config.output_size() : 0);
    buffers.staged_per_thread = buffers.block_rows * width;
    buffers.staged = arena.take<T>(threads * buffers.staged_per_thread);
  }
  if (config.layer_norm) {
    buffers.raw_stride = all_panels * lanes * config.gates() + lanes;
    buffers.raw = arena.take<T>(config.directions() * call.batch * buffers.raw_stride);
    for (T** piece : {&buffers.candidate, &buffers.gate_o}) {
      *piece = arena.take<T>(config.directions() * call.batch * buffers.c_stride);
    }
    buffers.moments_x = arena.take<T>(threads * 2 * buffers.block_rows);
    buffers.moments = arena.take<T>(threads * 4 * buffers.group_rows);
    buffers.operand_rows = arena.take<const T*>(threads * buffers.group_rows);
    buffers.raw_rows = arena.take<T*>(threads * buffers.group_rows);
  }
  if (call.tape) return;

  buffers.slots_per_thread = buffers.block_rows * slots_stride;
  buffers.slots =
      arena.take<T>(threads * buffers.slots_per_thread);  // with layer norm, slices have a common one
  if (config.proj_size || driver.plan.phases == 2) {
    buffers.exchange = arena.take<T>(config.directions() * call.batch * buffers.c_stride);
  }
  const std::int64_t steps = config.bidirectional ? call.steps : buffers.block_steps;
  const std::int64_t between = steps * call.batch * config.output_size();
  for (std::int64_t i = 0; i < std::min<std::int64_t>(2, config.num_layers - 1); ++i) {
    buffers.between[i] = arena.take<T>(between);
  }
  if (merges(config)) buffers.reverse = arena.take<T>(call.steps * call.batch * config.state_size());
}

}  // namespace

template <class T>
void run_forward(const Driver<T>& driver, const CpuWeights<T>* weights, const Forward<T>& call) {
  CpuWorkspace& workspace = driver.workspace;
  Partition partition = driver.model.choose(call.steps, call.batch, num_threads(), barrier_slowness());
  Team team(partition.threads(), driver.model.seconds_alone(call.steps, call.batch));
  if (team.size() < partition.threads()) {
    partition = driver.model.choose(call.steps, call.batch, team.size(), 1);
  }
  bool deal = workspace.set_partition(partition);

  auto* const tape = static_cast<CpuTape<T>*>(call.tape);
  CpuWeights<T> packed;
  if (call.parameters) {
    Arena arena(call.scratch);
    lay_out(arena, driver.config, driver.plan, driver.kernels.lanes, packed);
    weights = &packed;
  }
  if (tape) {
    tape->begin(driver.config, driver.plan, driver.kernels.lanes, call);
    workspace.deal(tape->order);
    workspace.order.equal_steps = -1;
  } else {
    deal = workspace.order.sort(call.lengths, call.steps, call.batch) || deal;
    if (deal) workspace.deal(workspace.order);
  }

  Buffers<T> buffers{};
  Arena counting;
  lay_out(counting, driver, call, buffers);
  Arena arena(workspace.storage.reserve(counting.used()));
  lay_out(arena, driver, call, buffers);

  const Call<T> whole{driver.config, driver.plan, driver.kernels, *weights,           call,
                      buffers,       tape,        workspace,      driver.rooms.size()};
  const int threads = partition.threads();
  team.run([&](int thread) {
    if (thread < threads) ForwardWorker<T>(whole, thread).run();
  });
}

template void run_forward(const Driver<float>&, const CpuWeights<float>*, const Forward<float>&);
template void run_forward(const Driver<double>&, const CpuWeights<double>*, const Forward<double>&);

}  // namespace fastrnn
