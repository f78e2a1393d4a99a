// Backward through time on the CPU. Per layer, from the last:
//
//   1. recur       steps from the last to the first: the gradient of h_t is what later steps pass on, formed
//                  by one product with the gate gradients of step t+1, plus that of the output; the cell's
//                  math then turns the gates of step t into gate gradients, in place.
//   2. grad_input  dX = dA W_ih, one product over all rows.
//   3. grad_weights  dW = sum over all rows of dA times what the product read, for every product at once.
//
// A thread owns units (1), rows or columns of dX (2), and gate units (3). All sums run in an order that is
// that of the tape, so that no bit depends on the partition.
#include <stdexcept>
#include <utility>

#include "random.h"
#include "rnn_cpu.h"

namespace fastrnn {
namespace {

// Rows of (2) whose addresses are gathered at a time.
std::int64_t gathered_rows(std::int64_t rows) {
  return std::clamp(rows / 4, std::min<std::int64_t>(rows, 16), std::int64_t{256});
}

// Rows of (3) that are packed at a time: as many as stay in L1 beside a tile, so that sums rarely move
// between registers and memory, but their copy is not to be more than this part of what a call holds
// anyway. Never by the number of threads: the bits depend on it.
constexpr std::int64_t most_chunk_rows = 256, least_chunk_rows = 32, chunk_share = 32;

// Vectors of units in (3) that are packed at a time.
constexpr std::int64_t unit_vectors = 4;

constexpr int only_gate = 0;  // of a projection

// Pieces of the workspace; the first index in a comment is the outermost.
template <class T>
struct Buffers {
  T* slots;           // as the tape's, where that is retained; else null
  T* dh;              // (D, B, h_stride): gradient of h as far as later steps tell
  T* dc;              // (D, B, c_stride)
  T* dexchange;       // (D, B, c_stride): of what a first phase leaves for the second
  T* projected;       // (D, rows, h_stride): gradients of all h, cells with a projection
  T* between;         // (T, B, width): of the output of the layer at work, but for the last layer
  T* merged[2];       // (T, B, R): of the outputs of the two directions, where they are merged
  T* right;           // (columns of all products, chunk rows)
  T* left;            // (threads, unit_vectors, chunk rows)
  T* sums;            // (slots of all units): gradients of biases
  T* sums_projected;  // (P): none wants it
  T* sums_peephole;   // [panel][3][lane]
  T* peephole;        // (L*D), packed as in DirectionWeights
  Checksums* checksums;
  const T** rows;  // (threads, 5, rows per thread)
  T** out_rows;    // (threads, 2, rows per thread)
  std::int64_t h_stride, c_stride, chunk, rows_per_thread;
};

template <class T>
struct Call {
  const Driver<T>& driver;
  const CpuTape<T>& tape;
  const Backward<T>& backward;
  const Buffers<T>& buffers;
};

// One product of the forward pass, as its weight gradient sees it.
template <class T>
struct WeightProduct {
  int first_slot, slots;
  const int* gate;  // of those slots
  T* gradient;      // (gates, units, columns)
  std::int64_t units, columns;
  const T* const* operand;  // `chunk` rows
  std::int64_t right;       // where its packed columns are
};

// One thread's part of a backward call.
template <class T>
class BackwardWorker : Member {
 public:
  BackwardWorker(const Call<T>& call, int thread)
      : Member(call.driver.config, call.driver.kernels.lanes, call.tape.batch, call.driver.workspace, thread),
        config_(call.driver.config),
        plan_(call.driver.plan),
        kernels_(call.driver.kernels),
        tape_(call.tape),
        backward_(call.backward),
        buffers_(call.buffers),
        lanes_(kernels_.lanes),
        hidden_panels_(round_up(config_.hidden_size, lanes_) / lanes_),
        state_panels_(round_up(config_.state_size(), lanes_) / lanes_),
        second_phase_(plan_.phases == 2 || config_.proj_size) {
    const T** next = buffers_.rows + thread * 5 * buffers_.rows_per_thread;
    for (const T*** rows : {&grad_y_rows_, &c_rows_, &h_rows_, &x_rows_, &exchange_rows_}) {
      *rows = std::exchange(next, next + buffers_.rows_per_thread);
    }
    out_rows_ = buffers_.out_rows + thread * 2 * buffers_.rows_per_thread;
    phase_out_rows_ = out_rows_ + buffers_.rows_per_thread;
  }

  void run() {
    if (!unchanged()) return;
    keep_slots();
    pack_weights();
    for (std::int64_t layer = config_.num_layers - 1; layer >= 0; --layer) {
      prepare_output_gradient(layer);
      meet_all();
      for (int d = 0; d < config_.directions(); ++d) {
        if (mine(d)) recur(layer, d);
      }
      meet_all();
      if (layer > 0 || backward_.grad_x) grad_input(layer);
      meet_all();
      for (int d = 0; d < config_.directions(); ++d) grad_weights(layer, d);
    }
  }

 private:
  const Chain<T>& chain(std::int64_t layer, int d) const {
    return tape_.chains[layer * config_.directions() + d];
  }
  T* slots(std::int64_t layer, int d) const {
    const Chain<T>& kept = chain(layer, d);
    if (!buffers_.slots) return kept.slots;
    const std::int64_t index = layer * config_.directions() + d;
    return buffers_.slots + index * tape_.order.total_rows() * tape_.slots_stride;
  }
  std::int64_t kept_row(std::int64_t s) const { return tape_.order.offset[s] + row_group_; }

  T* gradient(int index) const { return backward_.gradients[index]; }

  // With `retain`, the copy that is overwritten instead of the tape.
  void keep_slots() {
    if (!buffers_.slots) return;
    const std::int64_t size = tape_.order.total_rows() * tape_.slots_stride;
    const Range own = part_of(size, threads(), thread_);
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (int d = 0; d < config_.directions(); ++d) {
        std::copy_n(chain(layer, d).slots + own.first, own.count, slots(layer, d) + own.first);
      }
    }
  }

  // Whether the parameters and x are those of the forward call.
  bool unchanged() {
    Checksums& now = *buffers_.checksums;
    now.parameters += checksum_of(config_, kernels_, backward_.parameters, threads(), thread_);
    now.x += checksum_of(kernels_, reinterpret_cast<const T*>(tape_.x.data),
                         tape_.steps * tape_.batch * config_.input_size, threads(), thread_);
    meet_all();
    return now.parameters == tape_.checksums.parameters && now.x == tape_.checksums.x;
  }

  // ---- weights ----------------------------------------------------------------------------------

  std::int64_t depth_of_phase(int phase) const { return hidden_panels_ * plan_.phase[phase].gates * lanes_; }
  // The packed weights of a phase; those of the second lie behind those of the first.
  T* packed_recurrent(std::int64_t layer, int d, int phase) const {
    T* packed = gradient(parameter_indices(config_, layer, d).weight_hh);
    return phase ? packed + state_panels_ * lanes_ * depth_of_phase(0) : packed;
  }

  void pack_weights() const {
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (int d = 0; d < config_.directions(); ++d) {
        const ParameterIndices index = parameter_indices(config_, layer, d);
        if (layer > 0 || backward_.grad_x) {
          pack(index.weight_ih, config_.hidden_size, config_.layer_input_size(layer), plan_.input_gate,
               config_.gates(), gradient(index.weight_ih));
        }
        for (int i = 0; i < plan_.phases; ++i) {
          pack(index.weight_hh, config_.hidden_size, config_.state_size(),
               plan_.recurrent_gate + plan_.first_slot(i), plan_.phase[i].gates,
               packed_recurrent(layer, d, i));
        }
        if (config_.proj_size) {
          pack(index.weight_hr, config_.proj_size, config_.hidden_size, &only_gate, 1,
               gradient(index.weight_hr));
        }
        if (index.weight_peep >= 0) pack_peephole(index.weight_peep, peephole(layer, d));
      }
    }
  }

  void pack(int parameter, std::int64_t units, std::int64_t columns, const int* gate, int gates,
            T* packed) const {
    const Range own = part_of(round_up(columns, lanes_) / lanes_, threads(), thread_);
    kernels_.pack_transposed(
        {backward_.parameters[parameter], units, columns, gate, gates, own.first, own.count, packed});
  }

  T* peephole(std::int64_t layer, int d) const {
    return buffers_.peephole + (layer * config_.directions() + d) * 3 * hidden_panels_ * lanes_;
  }

  void pack_peephole(int parameter, T* packed) const {
    if (thread_ != 0) return;
    for (std::int64_t unit = 0; unit < hidden_panels_ * lanes_; ++unit) {
      for (int row = 0; row < 3; ++row) {
        const std::int64_t from = row * config_.hidden_size + unit;
        packed[(unit / lanes_ * 3 + row) * lanes_ + unit % lanes_] =
            unit < config_.hidden_size ? backward_.parameters[parameter][from] : T(0);
      }
    }
  }

  // ---- gradient of a layer's output ---------------------------------------------------------------

  Rows<const T*> output_gradient(std::int64_t layer) const {
    const std::int64_t width = config_.output_size();
    if (layer + 1 < config_.num_layers) return {buffers_.between, tape_.batch * width, width, false};
    return {backward_.grad_y, backward_.grad_y_step, backward_.grad_y_row, false};
  }

  // That of one direction's h.
  Rows<const T*> hidden_gradient(std::int64_t layer, int d) const {
    Rows<const T*> rows = output_gradient(layer);
    const std::int64_t width = config_.state_size();
    if (merges(config_)) {
      if (rows.base) rows = {buffers_.merged[d], tape_.batch * width, width, false};
    } else if (rows.base) {
      rows.base += d * width;
    }
    return rows;
  }

  // Through dropout and the merge of directions; all threads share the rows.
  void prepare_output_gradient(std::int64_t layer) {
    const bool dropout = dropout_at(config_, tape_.dropout, layer);
    const Rows<const T*> in = output_gradient(layer);
    if (!in.base || !(dropout || merges(config_))) return;
    const std::int64_t width = config_.state_size();
    const Range own = part_of(rows_, slices_ * direction_groups_, place_in_group());
    for (std::int64_t b = own.first; b < own.first + own.count; ++b) {
      for (std::int64_t t = 0; t < lengths_[b]; ++t) {
        const std::int64_t row = t * tape_.batch + ids_[b];
        const T* dy = in.base + t * in.step + ids_[b] * in.row;
        if (dropout) {
          apply_dropout(buffers_.between + row * config_.output_size(), 0, config_.output_size(),
                        tape_.dropout, tape_.seed, layer, t, ids_[b]);
        }
        if (merges(config_)) {
          split_merge(config_.merge, width, dy, chain(layer, 0).h + row * width,
                      chain(layer, 1).h + row * width, buffers_.merged[0] + row * width,
                      buffers_.merged[1] + row * width);
        }
      }
    }
  }

  static void split_merge(Merge merge, std::int64_t width, const T* dy, const T* forward, const T* reverse,
                          T* grad_forward, T* grad_reverse) {
    for (std::int64_t i = 0; i < width; ++i) {
      T to_forward = dy[i], to_reverse = dy[i];
      if (merge == Merge::mean) to_forward = to_reverse = dy[i] / 2;
      if (merge == Merge::mul) {
        to_forward = dy[i] * reverse[i];
        to_reverse = dy[i] * forward[i];
      }
      if (merge == Merge::max) {
        // Where both are the maximum, each gets half, as in torch.
        const T share = forward[i] == reverse[i] ? T(0.5) : forward[i] > reverse[i] ? T(1) : T(0);
        to_forward = share * dy[i];
        to_reverse = (1 - share) * dy[i];
      }
      grad_forward[i] = to_forward;
      grad_reverse[i] = to_reverse;
    }
  }

  // ---- time -------------------------------------------------------------------------------------

  T* dh_row(int d, std::int64_t b) const {
    return buffers_.dh + (d * tape_.batch + first_row_ + b) * buffers_.h_stride;
  }
  T* dc_row(int d, std::int64_t b) const {
    return buffers_.dc + (d * tape_.batch + first_row_ + b) * buffers_.c_stride;
  }
  T* dexchange_row(int d, std::int64_t b) const {
    return buffers_.dexchange + (d * tape_.batch + first_row_ + b) * buffers_.c_stride;
  }

  // Whether a reset lies between steps s-1 and s of a row.
  bool cut_before(std::int64_t s, int d, std::int64_t id, std::int64_t length) const {
    if (tape_.resets.empty() || (d == 1 && s == 0)) return false;
    return tape_.resets[(d == 1 ? length - s : s) * tape_.batch + id];
  }

  // Own units of the gradients of the final state.
  void start(std::int64_t layer, int d) {
    const std::int64_t index = layer * config_.directions() + d;
    for (std::int64_t b = 0; b < rows_; ++b) {
      T* dh = dh_row(d, b);
      std::fill_n(dh + state_.first_unit, state_.panels * lanes_, T(0));
      if (backward_.grad_hn) {
        const T* from = backward_.grad_hn + (index * tape_.batch + ids_[b]) * config_.state_size();
        std::copy_n(from + state_.first_unit, state_.units, dh + state_.first_unit);
      }
      if (!config_.has_cell_state()) continue;
      T* dc = dc_row(d, b);
      std::fill_n(dc + hidden_.first_unit, hidden_.panels * lanes_, T(0));
      if (backward_.grad_cn) {
        const T* from = backward_.grad_cn + (index * tape_.batch + ids_[b]) * config_.hidden_size;
        std::copy_n(from + hidden_.first_unit, hidden_.units, dc + hidden_.first_unit);
      }
    }
  }

  void finish(std::int64_t layer, int d) {
    const std::int64_t index = layer * config_.directions() + d;
    for (std::int64_t b = 0; b < rows_; ++b) {
      T* to = backward_.grad_h0 + (index * tape_.batch + ids_[b]) * config_.state_size();
      std::copy_n(dh_row(d, b) + state_.first_unit, state_.units, to + state_.first_unit);
      if (!config_.has_cell_state()) continue;
      to = backward_.grad_c0 + (index * tape_.batch + ids_[b]) * config_.hidden_size;
      std::copy_n(dc_row(d, b) + hidden_.first_unit, hidden_.units, to + hidden_.first_unit);
    }
  }

  void recur(std::int64_t layer, int d) {
    start(layer, d);
    ProductArguments<T> through_state = state_product(layer, d);
    BackwardArguments<T> first{}, last{};
    ProductArguments<T> through_phase{};
    fill_arguments(layer, d, first, last, through_phase);
    std::int64_t later = 0;  // rows that have a step s+1
    for (std::int64_t s = max_steps_ - 1; s >= 0; --s) {
      if (later > 0) pass_to(d, s + 1, later, through_state);
      const std::int64_t n = active_rows(s);
      gather_step(layer, d, s, n);
      first.rows = last.rows = through_phase.rows = n;
      T* const step_slots = slots(layer, d) + kept_row(s) * tape_.slots_stride;
      T* const own_slots = step_slots + hidden_.first_panel * plan_.slots * lanes_;
      first.slots = last.slots = own_slots;
      if (config_.has_cell_state()) {
        first.c = chain(layer, d).c + kept_row(s) * tape_.c_stride + hidden_.first_unit;
      }
      if (second_phase_) {
        if (config_.proj_size) last.slots = projected_row(d, s) + state_.first_unit;
        run_phase(1, last);
        meet_slices();
        through_phase.a = config_.proj_size ? projected_row(d, s) : step_slots + plan_.first_slot(1) * lanes_;
        kernels_.product(through_phase);
      }
      run_phase(0, first);
      meet_slices();
      through_state.a = step_slots + plan_.first_slot(0) * lanes_;
      later = n;
    }
    if (later > 0) pass_to(d, 0, later, through_state);
    finish(layer, d);
  }

  T* projected_row(int d, std::int64_t s) const {
    return buffers_.projected + (d * tape_.order.total_rows() + kept_row(s)) * buffers_.h_stride;
  }

  // The gradient that step s hands to the state before it, of the first `rows` rows.
  void pass_to(int d, std::int64_t s, std::int64_t rows, ProductArguments<T>& through_state) {
    for (std::int64_t b = 0; b < rows; ++b) out_rows_[b] = dh_row(d, b) + state_.first_unit;
    through_state.rows = rows;
    through_state.descending = s % 2;
    kernels_.product(through_state);
    for (std::int64_t b = 0; b < rows && !tape_.resets.empty(); ++b) {
      if (!cut_before(s, d, ids_[b], lengths_[b])) continue;
      std::fill_n(dh_row(d, b) + state_.first_unit, state_.panels * lanes_, T(0));
      if (config_.has_cell_state()) {
        std::fill_n(dc_row(d, b) + hidden_.first_unit, hidden_.panels * lanes_, T(0));
      }
    }
  }

  // Where the rows of step s have their output gradients and the state before the step.
  void gather_step(std::int64_t layer, int d, std::int64_t s, std::int64_t n) {
    const Rows<const T*> grad_y = hidden_gradient(layer, d);
    const bool reads_h = config_.gates() == 3;
    for (std::int64_t b = 0; b < n; ++b) {
      if (grad_y.base) {
        grad_y_rows_[b] =
            grad_y.base + time(s, b, d == 1) * grad_y.step + ids_[b] * grad_y.row + state_.first_unit;
      }
      if (reads_h) h_rows_[b] = h_before(layer, d, s, ids_[b], lengths_[b]) + hidden_.first_unit;
      if (config_.has_cell_state()) {
        c_rows_[b] = c_before(layer, d, s, row_group_ + b * row_groups_) + hidden_.first_unit;
      }
    }
  }

  // The state that step s of a row started from.
  const T* h_before(std::int64_t layer, int d, std::int64_t s, std::int64_t id, std::int64_t length) const {
    if (cut_before(s, d, id, length)) return tape_.zeros;
    if (s == 0) return chain(layer, d).h0 + id * tape_.h_stride;
    const std::int64_t t = d == 1 ? length - s : s - 1;
    if (const T* h = chain(layer, d).h) return h + (t * tape_.batch + id) * config_.state_size();
    const Rows<T*>& y = tape_.y[layer];
    return y.base + t * y.step + id * y.row + d * config_.state_size();
  }

  const T* c_before(std::int64_t layer, int d, std::int64_t s, std::int64_t place) const {
    const std::int64_t id = tape_.order.ids[place];
    if (cut_before(s, d, id, tape_.order.lengths[place])) return tape_.zeros;
    if (s == 0) return chain(layer, d).c0 + id * tape_.c_stride;
    return chain(layer, d).c + (tape_.order.offset[s - 1] + place) * tape_.c_stride;
  }

  // The product of a step's slots, from one of them on, with weights that one packed panel of own units
  // follows another.
  ProductArguments<T> slots_product(int slots, const T* weight, const Slice& own) const {
    ProductArguments<T> product{};
    const bool whole = slots == plan_.slots;
    product.panels = own.panels;
    product.columns = own.panels * lanes_;
    product.a_stride = row_groups_ * tape_.slots_stride;
    product.runs = whole ? 1 : hidden_panels_;
    product.run = (whole ? hidden_panels_ : 1) * slots * lanes_;
    product.run_stride = plan_.slots * lanes_;
    product.weight = weight + own.first_unit * product.runs * product.run;
    product.out = out_rows_;
    return product;
  }

  ProductArguments<T> state_product(std::int64_t layer, int d) const {
    ProductArguments<T> product = slots_product(plan_.phase[0].gates, packed_recurrent(layer, d, 0), state_);
    product.accumulate = config_.gates() == 3;  // of h_{t-1}, the cell's math has left a part
    return product;
  }

  // What stays the same for all steps.
  void fill_arguments(std::int64_t layer, int d, BackwardArguments<T>& first, BackwardArguments<T>& last,
                      ProductArguments<T>& through_phase) const {
    first.panels = hidden_.panels;
    first.units = hidden_.units;
    first.slots_stride = row_groups_ * tape_.slots_stride;
    first.slots_per_unit = plan_.slots;
    first.dc = config_.has_cell_state() ? dc_row(d, 0) + hidden_.first_unit : nullptr;
    first.dc_stride = buffers_.c_stride;
    first.c_stride = row_groups_ * tape_.c_stride;
    first.c_previous = c_rows_;
    first.h_previous = h_rows_;
    if (buffers_.peephole) first.peephole = peephole(layer, d) + 3 * hidden_.first_unit;
    first.dh = dh_row(d, 0) + state_.first_unit;
    first.dh_stride = buffers_.h_stride;
    last = first;
    last.grad = dh_row(d, 0) + state_.first_unit;
    last.grad_stride = buffers_.h_stride;
    last.grad_y = hidden_gradient(layer, d).base ? grad_y_rows_ : nullptr;
    if (!second_phase_) {
      first = last;
      return;
    }
    first.grad = dexchange_row(d, 0) + hidden_.first_unit;
    first.grad_stride = buffers_.c_stride;
    first.grad_y = nullptr;
    if (config_.proj_size) {
      last.panels = state_.panels;
      last.units = state_.units;
      last.slots_stride = row_groups_ * buffers_.h_stride;
      last.slots_per_unit = 1;
      through_phase.panels = hidden_.panels;
      through_phase.columns = hidden_.panels * lanes_;
      through_phase.a_stride = row_groups_ * buffers_.h_stride;
      through_phase.runs = 1;
      through_phase.run = state_panels_ * lanes_;
      through_phase.weight =
          gradient(parameter_indices(config_, layer, d).weight_hr) + hidden_.first_unit * through_phase.run;
    } else {
      through_phase = slots_product(plan_.phase[1].gates, packed_recurrent(layer, d, 1), hidden_);
    }
    for (std::int64_t b = 0; b < rows_; ++b) phase_out_rows_[b] = dexchange_row(d, b) + hidden_.first_unit;
    through_phase.out = phase_out_rows_;
  }

  void run_phase(int index, const BackwardArguments<T>& arguments) const {
    const StepPhase phase =
        index == 1 && config_.proj_size ? StepPhase::projection : plan_.phase[index].phase;
    kernels_.backward[static_cast<int>(phase)](arguments);
  }

  // ---- gradient of a layer's input ----------------------------------------------------------------

  struct Place {
    std::int64_t s, place, n;  // step, place in the working order, row of the tape
  };
  // The row of the tape after this one.
  void advance(Place& at) const {
    ++at.n;
    if (++at.place == tape_.order.offset[at.s + 1] - tape_.order.offset[at.s]) {
      at.place = 0;
      ++at.s;
    }
  }
  Place place_of(std::int64_t n) const {
    const auto& offset = tape_.order.offset;
    const auto s = std::upper_bound(offset.begin(), offset.end(), n) - offset.begin() - 1;
    return {s, n - offset[s], n};
  }
  std::int64_t time_of(const Place& at, int d) const {
    return d == 1 ? tape_.order.lengths[at.place] - 1 - at.s : at.s;
  }

  // All threads share the columns, or, where there are few, the rows.
  void grad_input(std::int64_t layer) {
    const Rows<T*> out =
        layer == 0
            ? Rows<T*>{backward_.grad_x, backward_.grad_x_step, backward_.grad_x_row, false}
            : Rows<T*>{buffers_.between, tape_.batch * config_.output_size(), config_.output_size(), false};
    const std::int64_t width = config_.layer_input_size(layer);
    const bool residual = start_input_gradient(layer, out, width);
    meet_all();
    const std::int64_t panels = round_up(width, lanes_) / lanes_;
    const bool by_columns = panels >= 3 * threads();
    const Slice own(width, lanes_, by_columns ? threads() : 1, by_columns ? thread_ : 0);
    const Range rows =
        part_of(tape_.order.total_rows(), by_columns ? 1 : threads(), by_columns ? 0 : thread_);
    for (int d = 0; d < config_.directions(); ++d) {
      if (d == 1 && !by_columns) meet_all();
      ProductArguments<T> product =
          slots_product(config_.gates(), gradient(parameter_indices(config_, layer, d).weight_ih), own);
      product.columns = own.units;
      product.a_stride = tape_.slots_stride;
      product.accumulate = d == 1 || residual;
      const std::int64_t end = rows.first + rows.count;
      Place at = place_of(rows.first);
      while (at.n < end) {
        product.a = slots(layer, d) + at.n * tape_.slots_stride;
        product.rows = std::min(gathered_rows(tape_.order.total_rows()), end - at.n);
        for (std::int64_t i = 0; i < product.rows; ++i, advance(at)) {
          out_rows_[i] =
              out.base + time_of(at, d) * out.step + tape_.order.ids[at.place] * out.row + own.first_unit;
        }
        kernels_.product(product);
      }
    }
  }

  // What the product adds to: past a row's length nothing, else the gradient that a residual connection
  // passes. Returns whether it does.
  bool start_input_gradient(std::int64_t layer, const Rows<T*>& out, std::int64_t width) {
    const Rows<const T*> passed = output_gradient(layer);
    const bool residual = residual_at(config_, layer) && passed.base;
    const Range own = part_of(rows_, slices_ * direction_groups_, place_in_group());
    for (std::int64_t b = own.first; b < own.first + own.count; ++b) {
      T* row = out.base + ids_[b] * out.row;
      if (residual && passed.base != out.base) {
        const T* from = passed.base + ids_[b] * passed.row;
        for (std::int64_t t = 0; t < lengths_[b]; ++t) {
          std::copy_n(from + t * passed.step, width, row + t * out.step);
        }
      }
      for (std::int64_t t = lengths_[b]; layer == 0 && t < tape_.steps; ++t) {
        std::fill_n(row + t * out.step, width, T(0));
      }
    }
    return residual;
  }

  // ---- gradients of the weights -------------------------------------------------------------------

  void grad_weights(std::int64_t layer, int d) {
    WeightProduct<T> products[4];
    const int count = weight_products(layer, d, products);
    const Range own = part_of(hidden_panels_ * plan_.slots, threads(), thread_);
    const Range own_projected = part_of(config_.proj_size ? state_panels_ : 0, threads(), thread_);
    const bool peephole = config_.cell == CellKind::lstm_peephole;
    const Range own_panels = part_of(peephole ? hidden_panels_ : 0, threads(), thread_);
    std::fill_n(buffers_.sums + own.first * lanes_, own.count * lanes_, T(0));
    std::fill_n(buffers_.sums_projected + own_projected.first * lanes_, own_projected.count * lanes_, T(0));
    std::fill_n(buffers_.sums_peephole + own_panels.first * 3 * lanes_, own_panels.count * 3 * lanes_, T(0));

    const std::int64_t total = tape_.order.total_rows();
    if (total == 0) clear_gradients(products, count);
    for (std::int64_t n = 0; n < total; n += buffers_.chunk) {
      const std::int64_t rows = std::min(buffers_.chunk, total - n);
      gather_chunk(layer, d, n, rows);
      for (int i = 0; i < count; ++i) pack_operand(products[i], rows);
      if (peephole) sum_peephole(layer, d, n, rows, own_panels);
      meet_all();
      const T* const dh = buffers_.projected + (d * total + n) * buffers_.h_stride;
      multiply_units(products, count - (config_.proj_size ? 1 : 0), plan_.slots,
                     slots(layer, d) + n * tape_.slots_stride, tape_.slots_stride, buffers_.sums, rows, own,
                     n > 0);
      if (config_.proj_size) {
        multiply_units(products + count - 1, 1, 1, dh, buffers_.h_stride, buffers_.sums_projected, rows,
                       own_projected, n > 0);
      }
      meet_all();
    }
    write_sums(layer, d, own, own_panels);
  }

  // The products of the forward pass.
  int weight_products(std::int64_t layer, int d, WeightProduct<T> (&products)[4]) const {
    const ParameterIndices index = parameter_indices(config_, layer, d);
    int count = 0;
    std::int64_t right = 0;
    const auto add = [&](int first_slot, int slots, const int* gate, int parameter, std::int64_t units,
                         std::int64_t columns, const T* const* operand) {
      products[count++] = {first_slot, slots, gate, gradient(parameter), units, columns, operand, right};
      right += round_up(columns, lanes_) * buffers_.chunk;
    };
    add(0, config_.gates(), plan_.input_gate, index.weight_ih, config_.hidden_size,
        config_.layer_input_size(layer), x_rows_);
    for (int i = 0; i < plan_.phases; ++i) {
      const int first_slot = plan_.first_slot(i);
      add(first_slot, plan_.phase[i].gates, plan_.recurrent_gate + first_slot, index.weight_hh,
          config_.hidden_size, config_.state_size(), i ? exchange_rows_ : h_rows_);
    }
    if (config_.proj_size) {
      add(0, 1, &only_gate, index.weight_hr, config_.proj_size, config_.hidden_size, exchange_rows_);
    }
    return count;
  }

  // Without a single row there is nothing to sum, and the packed weights must go.
  void clear_gradients(const WeightProduct<T>* products, int count) const {
    if (thread_ != 0) return;
    for (const WeightProduct<T>* product = products; product < products + count; ++product) {
      for (int i = 0; i < product->slots; ++i) {
        std::fill_n(product->gradient + product->gate[i] * product->units * product->columns,
                    product->units * product->columns, T(0));
      }
    }
  }

  // Where the rows of a chunk have what each product read.
  void gather_chunk(std::int64_t layer, int d, std::int64_t n, std::int64_t rows) {
    Place at = place_of(n);
    for (std::int64_t i = 0; i < rows; ++i, advance(at)) {
      const std::int64_t id = tape_.order.ids[at.place];
      x_rows_[i] = x_row(layer, time_of(at, d), id);
      h_rows_[i] = h_before(layer, d, at.s, id, tape_.order.lengths[at.place]);
      if (second_phase_) exchange_rows_[i] = chain(layer, d).exchange + at.n * tape_.c_stride;
      if (config_.has_cell_state()) c_rows_[i] = c_before(layer, d, at.s, at.place);
    }
  }

  const T* x_row(std::int64_t layer, std::int64_t t, std::int64_t id) const {
    if (layer > 0) return tape_.y[layer - 1].base + t * tape_.y[layer - 1].step + id * tape_.y[layer - 1].row;
    return reinterpret_cast<const T*>(tape_.x.data + t * tape_.x.stride[0] + id * tape_.x.stride[1]);
  }

  void pack_operand(const WeightProduct<T>& product, std::int64_t rows) const {
    const Range own = part_of(round_up(product.columns, lanes_) / lanes_, threads(), thread_);
    kernels_.pack_columns(
        {product.operand, rows, product.columns, own.first, own.count, buffers_.right + product.right});
  }

  // Own vectors of units, some at a time, against everything that was read.
  void multiply_units(const WeightProduct<T>* products, int count, int slots_per_unit, const T* slots,
                      std::int64_t stride, T* sums, std::int64_t rows, const Range& own,
                      bool accumulate) const {
    T* const left = buffers_.left + thread_ * unit_vectors * lanes_ * buffers_.chunk;
    const std::int64_t end = own.first + own.count;
    for (std::int64_t first = own.first; first < end; first += unit_vectors) {
      const std::int64_t vectors = std::min(unit_vectors, end - first);
      kernels_.pack_slots({rows, vectors, slots + first * lanes_, stride, left, sums + first * lanes_});
      for (const WeightProduct<T>* product = products; product < products + count; ++product) {
        T* out[unit_vectors];
        int units[unit_vectors];
        for (std::int64_t i = 0; i < vectors; ++i) {
          const int slot = static_cast<int>((first + i) % slots_per_unit) - product->first_slot;
          const std::int64_t unit = (first + i) / slots_per_unit * lanes_;
          units[i] = static_cast<int>(std::min<std::int64_t>(lanes_, product->units - unit));
          out[i] = slot >= 0 && slot < product->slots
                       ? product->gradient + (product->gate[slot] * product->units + unit) * product->columns
                       : nullptr;
        }
        kernels_.outer(
            {rows, vectors, product->columns, left, buffers_.right + product->right, out, units, accumulate});
      }
    }
  }

  void sum_peephole(std::int64_t layer, int d, std::int64_t n, std::int64_t rows, const Range& own) {
    for (std::int64_t i = 0; i < rows; ++i) c_rows_[i] += own.first * lanes_;
    kernels_.peephole({rows, own.count,
                       slots(layer, d) + n * tape_.slots_stride + own.first * plan_.slots * lanes_,
                       tape_.slots_stride, chain(layer, d).c + n * tape_.c_stride + own.first * lanes_,
                       tape_.c_stride, c_rows_, buffers_.sums_peephole + own.first * 3 * lanes_});
  }

  // Sums over the rows become gradients of biases and peepholes.
  void write_sums(std::int64_t layer, int d, const Range& own, const Range& own_panels) const {
    const ParameterIndices index = parameter_indices(config_, layer, d);
    const std::int64_t hidden = config_.hidden_size;
    for (std::int64_t i = own.first; config_.bias && i < own.first + own.count; ++i) {
      const auto slot = static_cast<int>(i % plan_.slots);
      const std::int64_t unit = i / plan_.slots * lanes_;
      const std::int64_t units = std::min<std::int64_t>(lanes_, hidden - unit);
      const T* sums = buffers_.sums + i * lanes_;
      const int input = plan_.input_gate[slot], recurrent = plan_.recurrent_gate[slot];
      if (input >= 0) std::copy_n(sums, units, gradient(index.bias_ih) + input * hidden + unit);
      if (recurrent >= 0) std::copy_n(sums, units, gradient(index.bias_hh) + recurrent * hidden + unit);
    }
    if (index.weight_peep < 0) return;
    for (std::int64_t panel = own_panels.first; panel < own_panels.first + own_panels.count; ++panel) {
      const std::int64_t unit = panel * lanes_;
      for (int row = 0; row < 3; ++row) {
        std::copy_n(buffers_.sums_peephole + (panel * 3 + row) * lanes_,
                    std::min<std::int64_t>(lanes_, hidden - unit),
                    gradient(index.weight_peep) + row * hidden + unit);
      }
    }
  }

  const Config& config_;
  const CellPlan& plan_;
  const Kernels<T>& kernels_;
  const CpuTape<T>& tape_;
  const Backward<T>& backward_;
  const Buffers<T>& buffers_;
  const std::int64_t lanes_, hidden_panels_, state_panels_;
  const bool second_phase_;
  const T **grad_y_rows_, **c_rows_, **h_rows_, **x_rows_, **exchange_rows_;
  T **out_rows_, **phase_out_rows_;
};

template <class T>
void lay_out(Arena& arena, const Driver<T>& driver, const CpuTape<T>& tape, const Backward<T>& call,
             Buffers<T>& buffers) {
  std::int64_t gradient_bytes = 0;
  for (const std::int64_t room : gradient_rooms(driver.config, driver.kernels.lanes)) {
    gradient_bytes += room * std::int64_t{sizeof(T)};
  }
  const Config& config = driver.config;
  const Partition& partition = driver.workspace.partition;
  const std::int64_t lanes = driver.kernels.lanes;
  const std::int64_t directions = config.directions(), threads = partition.threads();
  const std::int64_t padded = round_up(config.hidden_size, lanes);
  const std::int64_t padded_state = round_up(config.state_size(), lanes);
  const std::int64_t rows = tape.order.total_rows();
  buffers.h_stride = padded_state + lanes;
  buffers.c_stride = padded + lanes;
  if (call.retain) {
    buffers.slots = arena.take<T>(config.num_layers * directions * rows * tape.slots_stride);
  }
  buffers.dh = arena.take<T>(directions * tape.batch * buffers.h_stride);
  if (config.has_cell_state()) buffers.dc = arena.take<T>(directions * tape.batch * buffers.c_stride);
  const bool second_phase = config.proj_size || driver.plan.phases == 2;
  if (second_phase) buffers.dexchange = arena.take<T>(directions * tape.batch * buffers.c_stride);
  if (config.proj_size) buffers.projected = arena.take<T>(directions * rows * buffers.h_stride);
  if (config.num_layers > 1) {
    buffers.between = arena.take<T>(tape.steps * tape.batch * config.output_size());
  }
  if (merges(config)) {
    for (T*& merged : buffers.merged) {
      merged = arena.take<T>(tape.steps * tape.batch * config.state_size());
    }
  }
  if (config.cell == CellKind::lstm_peephole) {
    buffers.peephole = arena.take<T>(config.num_layers * directions * 3 * padded);
    buffers.sums_peephole = arena.take<T>(3 * padded);
  }

  std::int64_t columns =
      round_up(std::max(config.input_size, config.num_layers > 1 ? config.output_size() : 0), lanes) +
      padded_state;
  if (second_phase) columns += padded;
  const auto held = static_cast<std::int64_t>(tape.used) + gradient_bytes;
  buffers.chunk = held / (chunk_share * columns * std::int64_t{sizeof(T)});
  buffers.chunk = std::min(rows, std::clamp(buffers.chunk, least_chunk_rows, most_chunk_rows));
  buffers.right = arena.take<T>(columns * buffers.chunk);
  buffers.left = arena.take<T>(threads * unit_vectors * lanes * buffers.chunk);
  buffers.sums = arena.take<T>(padded * driver.plan.slots);
  if (config.proj_size) {
    buffers.sums_projected = arena.take<T>(padded_state);
  }
  const std::int64_t group_rows = (tape.batch + partition.row_groups - 1) / partition.row_groups;
  buffers.rows_per_thread = std::max({group_rows, buffers.chunk, gathered_rows(rows)});
  buffers.rows = arena.take<const T*>(threads * 5 * buffers.rows_per_thread);
  buffers.out_rows = arena.take<T*>(threads * 2 * buffers.rows_per_thread);
}

}  // namespace

template <class T>
void run_backward(const Driver<T>& driver, CpuTape<T>& tape, const Backward<T>& call) {
  CpuWorkspace& workspace = driver.workspace;
  const std::int64_t steps = tape.order.max_steps();
  constexpr int products_per_forward = 2;
  Partition partition = driver.model.choose(steps, tape.batch, num_threads());
  Team team(partition.threads(), products_per_forward * driver.model.patience(steps, tape.batch));
  if (team.size() < partition.threads()) partition = driver.model.choose(steps, tape.batch, team.size());
  workspace.set_partition(partition);
  workspace.deal(tape.order);

  Buffers<T> buffers{};
  Arena counting;
  lay_out(counting, driver, tape, call, buffers);
  Arena arena(workspace.storage.reserve(counting.used()));
  lay_out(arena, driver, tape, call, buffers);

  Checksums now;
  buffers.checksums = &now;
  const Call<T> whole{driver, tape, call, buffers};
  const int threads = partition.threads();
  team.run([&](int thread) {
    if (thread < threads) BackwardWorker<T>(whole, thread).run();
  });
  const char* const changed = now.parameters != tape.checksums.parameters ? "parameters"
                              : now.x != tape.checksums.x                 ? "x"
                                                                          : nullptr;
  if (changed) {
    throw std::runtime_error(std::string(changed) +
                             ": expected what forward was given, but it has changed since then");
  }
}

template void run_backward(const Driver<float>&, CpuTape<float>&, const Backward<float>&);
template void run_backward(const Driver<double>&, CpuTape<double>&, const Backward<double>&);

}  // namespace fastrnn
