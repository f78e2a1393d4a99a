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
#include "rnn_cpu_backward.h"

#include <stdexcept>

namespace fastrnn {
namespace {

// Rows that the gradients of the weights pack at a time: as many as stay in L1 beside a tile, so that sums
// rarely move between registers and memory, but their copy is not to be more than this part of what a call
// holds anyway. Never by the number of threads: the bits depend on it.
constexpr std::int64_t most_chunk_rows = 256, least_chunk_rows = 32, chunk_share = 32;

// One thread's part of a backward call.
template <class T>
class BackwardWorker : BackwardMember<T> {
  using Base = BackwardMember<T>;
  using Base::active_rows;
  using Base::backward_;
  using Base::buffers_;
  using Base::c_rows_;
  using Base::config_;
  using Base::direction_groups_;
  using Base::first_row_;
  using Base::grad_y_rows_;
  using Base::gradient;
  using Base::h_rows_;
  using Base::hidden_;
  using Base::hidden_panels_;
  using Base::ids_;
  using Base::kernels_;
  using Base::lanes_;
  using Base::lengths_;
  using Base::masked_h_rows_;
  using Base::masks_;
  using Base::max_steps_;
  using Base::meet_all;
  using Base::meet_slices;
  using Base::mine;
  using Base::out_rows_;
  using Base::output_gradient;
  using Base::phase_out_rows_;
  using Base::place_in_group;
  using Base::plan_;
  using Base::row_group_;
  using Base::row_groups_;
  using Base::rows_;
  using Base::second_phase_;
  using Base::slices_;
  using Base::slots;
  using Base::slots_product;
  using Base::state_;
  using Base::state_panels_;
  using Base::tape_;
  using Base::thread_;
  using Base::threads;
  using Base::time;

 public:
  BackwardWorker(const BackwardCall<T>& call, int thread) : Base(call, thread), call_(call) {}

  void run() {
    if (!unchanged()) return;
    keep_slots();
    draw_masks();
    pack_weights();
    for (std::int64_t layer = config_.num_layers - 1; layer >= 0; --layer) {
      prepare_output_gradient(layer);
      meet_all();
      for (int d = 0; d < config_.directions(); ++d) {
        if (mine(d)) recur(layer, d);
      }
      meet_all();
      if (layer > 0 || backward_.grad_x) grad_input(call_, thread_, layer);
      if (backward_.steps) return;
      meet_all();
      for (int d = 0; d < config_.directions(); ++d) grad_weights(call_, thread_, layer, d);
      if (buffers_.dropped) drop_gradients(layer);
    }
  }

 private:
  // Among the sorted rows.
  std::int64_t place(std::int64_t b) const { return row_group_ + b * row_groups_; }
  std::int64_t kept_row(std::int64_t s) const { return tape_.order.offset[s] + row_group_; }

  // With `retain`, the copy that is overwritten instead of the tape.
  void keep_slots() {
    if (!buffers_.slots) return;
    const std::int64_t size = tape_.rows() * tape_.slots_stride;
    const Range own = part_of(size, threads(), thread_);
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (int d = 0; d < config_.directions(); ++d) {
        std::copy_n(tape_.chain(layer, d).slots + own.first, own.count, slots(layer, d) + own.first);
      }
    }
  }

  // Masks of whole sequences, and what weights the forward pass dropped.
  void draw_masks() {
    const Range own = part_of(tape_.batch, threads(), thread_);
    for (std::int64_t id = own.first; id < own.first + own.count; ++id) {
      buffers_.masks.draw(config_, masks_, id);
    }
    if (!buffers_.dropped) return;
    const std::int64_t rows = config_.gates() * config_.hidden_size;
    const Range share = part_of(rows, threads(), thread_);
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (int d = 0; d < config_.directions(); ++d) {
        masks_.drop_weights(layer, d, backward_.parameters[parameter_indices(config_, layer, d).weight_hh],
                            config_.state_size(), share.first, share.count, dropped(layer, d));
      }
    }
    meet_all();
  }

  T* dropped(std::int64_t layer, int d) const {
    const std::int64_t size = config_.gates() * config_.hidden_size * config_.state_size();
    return buffers_.dropped + (layer * config_.directions() + d) * size;
  }

  void drop_gradients(std::int64_t layer) {
    meet_all();
    const std::int64_t columns = config_.state_size();
    const Range share = part_of(config_.gates() * config_.hidden_size, threads(), thread_);
    for (int d = 0; d < config_.directions(); ++d) {
      T* const g = gradient(parameter_indices(config_, layer, d).weight_hh);
      masks_.drop_weights(layer, d, g, columns, share.first, share.count, dropped(layer, d));
      std::copy_n(dropped(layer, d) + share.first * columns, share.count * columns,
                  g + share.first * columns);
    }
  }

  // Whether the parameters and x are those of the forward call.
  bool unchanged() {
    if (!tape_.guarded) return true;
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
    const auto* const steps = static_cast<const CpuStepGradients<T>*>(backward_.steps);
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (int d = 0; d < config_.directions(); ++d) {
        const ParameterIndices index = parameter_indices(config_, layer, d);
        if ((layer > 0 || backward_.grad_x) && !(steps && steps->has_input)) {
          pack(backward_.parameters[index.weight_ih], config_.hidden_size, config_.layer_input_size(layer),
               plan_.input_gate, config_.gates(), gradient(index.weight_ih));
        }
        for (int i = 0; i < plan_.phases && !(steps && steps->has_recurrent); ++i) {
          const T* const weight =
              buffers_.dropped ? dropped(layer, d) : backward_.parameters[index.weight_hh];
          pack(weight, config_.hidden_size, config_.state_size(), plan_.recurrent_gate + plan_.first_slot(i),
               plan_.phase[i].gates, packed_recurrent(layer, d, i));
        }
        if (config_.proj_size) {
          pack(backward_.parameters[index.weight_hr], config_.proj_size, config_.hidden_size, &only_gate, 1,
               gradient(index.weight_hr));
        }
        if (index.weight_peep >= 0) pack_peephole(index.weight_peep, peephole(layer, d));
        if (config_.layer_norm) {
          pack_norm(config_, static_cast<int>(lanes_), backward_.parameters, index, norm(layer, d),
                    part_of(hidden_panels_, threads(), thread_));
        }
      }
    }
  }

  void pack(const T* weight, std::int64_t units, std::int64_t columns, const int* gate, int gates,
            T* packed) const {
    const Range own = part_of(round_up(columns, lanes_) / lanes_, threads(), thread_);
    kernels_.pack_transposed({weight, units, columns, gate, gates, own.first, own.count, packed});
  }

  const NormWeights<T>& norm(std::int64_t layer, int d) const {
    return buffers_.norm[static_cast<std::size_t>(layer * config_.directions() + d)];
  }

  T* peephole(std::int64_t layer, int d) const {
    return buffers_.peephole + (layer * config_.directions() + d) * 3 * hidden_panels_ * lanes_;
  }

  void pack_peephole(int parameter, T* packed) const {
    if (thread_ != 0) return;
    for (std::int64_t unit = 0; unit < hidden_panels_ * lanes_; ++unit) {
      for (int row = 0; row < 3; ++row) {
        const int from = peephole_row(config_, row);
        packed[(unit / lanes_ * 3 + row) * lanes_ + unit % lanes_] =
            unit < config_.hidden_size && from >= 0
                ? backward_.parameters[parameter][from * config_.hidden_size + unit]
                : T(0);
      }
    }
  }

  // ---- gradient of a layer's output ---------------------------------------------------------------

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
    const bool dropout = dropout_at(config_, tape_.noise.dropout, layer);
    const Rows<const T*> in = output_gradient(layer);
    if (!in.base || !(dropout || merges(config_))) return;
    const std::int64_t width = config_.state_size();
    const Range own = part_of(rows_, slices_ * direction_groups_, place_in_group());
    for (std::int64_t b = own.first; b < own.first + own.count; ++b) {
      for (std::int64_t t = 0; t < lengths_[b]; ++t) {
        const std::int64_t row = t * tape_.batch + ids_[b];
        const T* dy = in.base + t * in.step + ids_[b] * in.row;
        if (dropout) {
          masks_.dropout(MaskKind::dropout, tape_.noise.dropout, layer, 0, t, ids_[b], 0,
                         config_.output_size(), mask_row());
          multiply_by(mask_row(), buffers_.between + row * config_.output_size(), config_.output_size());
        }
        if (merges(config_)) {
          split_merge(config_.merge, width, dy, tape_.chain(layer, 0).h + row * width,
                      tape_.chain(layer, 1).h + row * width, buffers_.merged[0] + row * width,
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
  T* mask_row() const { return buffers_.mask + thread_ * buffers_.mask_stride; }
  T* row_of(T* buffer, int d, std::int64_t b) const {
    return buffer + (d * tape_.batch + first_row_ + b) * buffers_.h_stride;
  }
  T* carry_c_row(int d, std::int64_t b) const {
    return buffers_.carry_c + (d * tape_.batch + first_row_ + b) * buffers_.c_stride;
  }
  T* dexchange_row(int d, std::int64_t b) const {
    return buffers_.dexchange + (d * tape_.batch + first_row_ + b) * buffers_.c_stride;
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
    if (config_.layer_norm) clear_norm_sums(d);
    ProductArguments<T> through_state = state_product(layer, d);
    BackwardArguments<T> first{}, last{};
    ProductArguments<T> through_phase{};
    fill_arguments(layer, d, first, last, through_phase);
    std::int64_t later = 0;  // rows that have a step s+1
    for (std::int64_t s = max_steps_ - 1; s >= 0; --s) {
      if (later > 0) pass_to(layer, d, s + 1, later, through_state);
      const std::int64_t n = active_rows(s);
      gather_step(layer, d, s, n);
      if (backward_.grad_h_all || backward_.grad_c_all) add_state_gradients(layer, d, s, n);
      if (tape_.noise.zoneout_h > 0 || tape_.noise.zoneout_c > 0) zone_step(layer, d, s, n);
      first.rows = last.rows = through_phase.rows = n;
      T* const step_slots = slots(layer, d) + kept_row(s) * tape_.slots_stride;
      T* const own_slots = step_slots + hidden_.first_panel * plan_.slots * lanes_;
      first.slots = last.slots = own_slots;
      if (second_phase_) {
        if (config_.proj_size) last.slots = projected_row(d, s) + state_.first_unit;
        run_phase(layer, d, s, 1, last);
        meet_slices();
        through_phase.a = config_.proj_size ? projected_row(d, s) : step_slots + plan_.first_slot(1) * lanes_;
        kernels_.product(through_phase);
      }
      if (buffers_.masked_h) {
        for (std::int64_t b = 0; b < n; ++b) {
          std::fill_n(row_of(buffers_.dmasked, d, b) + state_.first_unit, state_.panels * lanes_, T(0));
        }
      }
      run_phase(layer, d, s, 0, first);
      for (std::int64_t b = 0; b < n && tape_.noise.zoneout_c > 0; ++b) {
        add_to(carry_c_row(d, b) + hidden_.first_unit, dc_row(d, b) + hidden_.first_unit, hidden_.units);
      }
      meet_slices();
      through_state.a = step_slots + plan_.first_slot(0) * lanes_;
      later = n;
    }
    if (later > 0) pass_to(layer, d, 0, later, through_state);
    finish(layer, d);
  }

  T* projected_row(int d, std::int64_t s) const {
    return buffers_.projected + (d * tape_.rows() + kept_row(s)) * buffers_.h_stride;
  }

  // The gradient that step s hands to the state before it, of the first `rows` rows.
  void pass_to(std::int64_t layer, int d, std::int64_t s, std::int64_t rows,
               ProductArguments<T>& through_state) {
    const bool masked = buffers_.masks.recurrent;
    for (std::int64_t b = 0; b < rows; ++b) {
      out_rows_[b] = (masked ? row_of(buffers_.dmasked, d, b) : dh_row(d, b)) + state_.first_unit;
    }
    through_state.rows = rows;
    through_state.descending = s % 2;
    kernels_.product(through_state);
    for (std::int64_t b = 0; b < rows && masked; ++b) {
      const T* const mask = buffers_.masks.recurrent_row(layer, d, ids_[b]) + state_.first_unit;
      T* const dh = dh_row(d, b) + state_.first_unit;
      if (!plan_.passes_h) std::fill_n(dh, state_.units, T(0));
      for (std::int64_t u = 0; u < state_.units; ++u) dh[u] += mask[u] * out_rows_[b][u];
    }
    for (std::int64_t b = 0; b < rows && tape_.noise.zoneout_h > 0; ++b) {
      add_to(row_of(buffers_.carry_h, d, b) + state_.first_unit, dh_row(d, b) + state_.first_unit,
             state_.units);
    }
    for (std::int64_t b = 0; b < rows && !tape_.resets.empty(); ++b) {
      if (!tape_.cut_before(d, s, place(b))) continue;
      std::fill_n(dh_row(d, b) + state_.first_unit, state_.panels * lanes_, T(0));
      if (config_.has_cell_state()) {
        std::fill_n(dc_row(d, b) + hidden_.first_unit, hidden_.panels * lanes_, T(0));
      }
    }
  }

  // Those of the states of step s that the caller was given.
  void add_state_gradients(std::int64_t layer, int d, std::int64_t s, std::int64_t n) const {
    const std::int64_t chain = layer * config_.directions() + d;
    for (std::int64_t b = 0; b < n; ++b) {
      const std::int64_t row = (chain * tape_.steps + time(s, b, d == 1)) * tape_.batch + ids_[b];
      if (backward_.grad_h_all) {
        add_to(backward_.grad_h_all + row * config_.state_size() + state_.first_unit,
               dh_row(d, b) + state_.first_unit, state_.units);
      }
      if (backward_.grad_c_all) {
        add_to(backward_.grad_c_all + row * config_.hidden_size + hidden_.first_unit,
               dc_row(d, b) + hidden_.first_unit, hidden_.units);
      }
    }
  }

  // Leaves in dh and dc what is due to the state that the cell computed.
  void zone_step(std::int64_t layer, int d, std::int64_t s, std::int64_t n) const {
    const Noise& noise = tape_.noise;
    const bool has_grad_y = hidden_gradient(layer, d).base;
    for (std::int64_t b = 0; b < n; ++b) {
      const std::int64_t t = time(s, b, d == 1);
      if (noise.zoneout_h > 0) {
        ZoneArguments<T> zone = masks_.zoneout(MaskKind::zoneout_h, noise.zoneout_h, layer, d, t, ids_[b],
                                               state_.first_unit, state_.units);
        zone.grad_more = has_grad_y ? grad_y_rows_[b] : nullptr;
        zone.grad = dh_row(d, b) + state_.first_unit;
        zone.carry = row_of(buffers_.carry_h, d, b) + state_.first_unit;
        kernels_.zone_backward(zone);
      }
      if (noise.zoneout_c > 0) {
        ZoneArguments<T> zone = masks_.zoneout(MaskKind::zoneout_c, noise.zoneout_c, layer, d, t, ids_[b],
                                               hidden_.first_unit, hidden_.units);
        zone.grad = dc_row(d, b) + hidden_.first_unit;
        zone.carry = carry_c_row(d, b) + hidden_.first_unit;
        kernels_.zone_backward(zone);
      }
    }
  }

  // Where the rows of step s have their output gradients and the state before the step.
  void gather_step(std::int64_t layer, int d, std::int64_t s, std::int64_t n) {
    const Rows<const T*> grad_y = hidden_gradient(layer, d);
    for (std::int64_t b = 0; b < n; ++b) {
      if (grad_y.base) {
        grad_y_rows_[b] =
            grad_y.base + time(s, b, d == 1) * grad_y.step + ids_[b] * grad_y.row + state_.first_unit;
      }
      if (plan_.passes_h) h_rows_[b] = tape_.h_before(layer, d, s, place(b)) + hidden_.first_unit;
      if (buffers_.masked_h) {
        T* const masked = row_of(buffers_.masked_h, d, b) + hidden_.first_unit;
        std::copy_n(h_rows_[b], hidden_.units, masked);
        multiply_by(buffers_.masks.recurrent_row(layer, d, ids_[b]) + hidden_.first_unit, masked,
                    hidden_.units);
        masked_h_rows_[b] = masked;
      }
      if (config_.has_cell_state()) c_rows_[b] = tape_.c_before(layer, d, s, place(b)) + hidden_.first_unit;
    }
  }

  ProductArguments<T> state_product(std::int64_t layer, int d) const {
    ProductArguments<T> product = slots_product(plan_.phase[0].gates, row_groups_ * tape_.slots_stride,
                                                packed_recurrent(layer, d, 0), state_);
    // Of the h_{t-1} that the product reads, the cell's math has left a part.
    product.accumulate = buffers_.masks.recurrent ? buffers_.masked_h != nullptr : plan_.passes_h;
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
    first.clip = static_cast<T>(config_.clip);
    first.c_previous = c_rows_;
    first.h_previous = h_rows_;
    if (buffers_.peephole) first.peephole = peephole(layer, d) + 3 * hidden_.first_unit;
    first.dh = dh_row(d, 0) + state_.first_unit;
    first.dh_stride = buffers_.h_stride;
    last = first;
    last.grad = dh_row(d, 0) + state_.first_unit;
    last.grad_stride = buffers_.h_stride;
    const bool zoned = tape_.noise.zoneout_h > 0;  // dh has it already
    last.grad_y = hidden_gradient(layer, d).base && !zoned ? grad_y_rows_ : nullptr;
    if (!second_phase_) {
      first = last;
      return;
    }
    first.grad = dexchange_row(d, 0) + hidden_.first_unit;
    first.grad_stride = buffers_.c_stride;
    first.grad_y = nullptr;
    if (buffers_.masked_h) {
      first.h_previous = masked_h_rows_;
      first.dh = row_of(buffers_.dmasked, d, 0) + state_.first_unit;
    }
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
      through_phase = slots_product(plan_.phase[1].gates, row_groups_ * tape_.slots_stride,
                                    packed_recurrent(layer, d, 1), hidden_);
    }
    for (std::int64_t b = 0; b < rows_; ++b) phase_out_rows_[b] = dexchange_row(d, b) + hidden_.first_unit;
    through_phase.out = phase_out_rows_;
  }

  void run_phase(std::int64_t layer, int d, std::int64_t s, int index,
                 const BackwardArguments<T>& arguments) {
    if (index == 1 && config_.proj_size) {
      kernels_.backward[static_cast<int>(StepPhase::projection)](arguments);
    } else if (config_.layer_norm) {
      run_normed_phase(layer, d, s, index, arguments);
    } else {
      kernels_.backward[static_cast<int>(plan_.phase[index].phase)](arguments);
    }
  }

  void clear_norm_sums(int d) const {
    const std::int64_t each = norm_sums_per_unit(config_);
    for (std::int64_t b = 0; b < rows_; ++b) {
      T* const sums = buffers_.norm_sums + (d * tape_.batch + place(b)) * buffers_.norm_sums_stride;
      std::fill_n(sums + hidden_.first_unit * each, hidden_.panels * lanes_ * each, T(0));
    }
  }

  void run_normed_phase(std::int64_t layer, int d, std::int64_t s, int index,
                        const BackwardArguments<T>& phase) {
    const std::int64_t gates = config_.gates(), row = d * tape_.batch + first_row_;
    NormBackwardArguments<T> a{};
    a.rows = phase.rows;
    a.panels = phase.panels;
    a.units = phase.units;
    a.slots = phase.slots;
    a.slots_stride = phase.slots_stride;
    a.gates = buffers_.gates + row * buffers_.gates_stride + hidden_.first_unit * buffers_.gates_per_unit;
    a.gates_stride = buffers_.gates_stride;
    a.gates_per_unit = buffers_.gates_per_unit;
    a.normed = buffers_.normed + row * buffers_.normed_stride + hidden_.first_unit * 2 * gates;
    a.normed_stride = buffers_.normed_stride;
    a.grad = phase.grad;
    a.grad_stride = phase.grad_stride;
    a.grad_y = phase.grad_y;
    a.dh = phase.dh;
    a.dh_stride = phase.dh_stride;
    a.dc = phase.dc;
    a.dc_stride = buffers_.c_stride;
    a.c_previous = phase.c_previous;
    a.h_previous = phase.h_previous;
    a.peephole = phase.peephole;
    a.clip = phase.clip;
    a.weights = from_unit(norm(layer, d), gates, hidden_.first_unit);
    a.c_normed = buffers_.c_normed + row * buffers_.c_stride + hidden_.first_unit;
    a.dc_normed = buffers_.dc_normed + row * buffers_.c_stride + hidden_.first_unit;
    a.moments = tape_.chain(layer, d).moments + kept_row(s) * NormBackwardArguments<T>::moment_count;
    a.moments_stride = row_groups_ * NormBackwardArguments<T>::moment_count;
    a.sums = buffers_.norm_sums + (d * tape_.batch + row_group_) * buffers_.norm_sums_stride +
             hidden_.first_unit * norm_sums_per_unit(config_);
    a.sums_stride = row_groups_ * buffers_.norm_sums_stride;
    a.all_partial = buffers_.partial + row * buffers_.partial_stride;
    a.partial = a.all_partial + hidden_.first_unit * NormBackwardArguments<T>::mean_count;
    a.partial_stride = buffers_.partial_stride;
    const std::int64_t group_rows = (tape_.batch + row_groups_ - 1) / row_groups_;
    a.means = buffers_.means + thread_ * group_rows * NormBackwardArguments<T>::mean_count;

    const auto values = static_cast<T>(config_.hidden_size);
    const int cell = static_cast<int>(plan_.phase[index].phase);
    kernels_.norm_recompute[cell](a);
    if (config_.has_cell_state()) {
      meet_slices();
      kernels_.norm_means(a, 0, 2, hidden_panels_, values);
    }
    kernels_.norm_gates[cell](a);
    meet_slices();
    kernels_.norm_means(a, 2, 2, hidden_panels_, values * static_cast<T>(plan_.phase[index].gates));
    if (index == 0) kernels_.norm_means(a, 4, 2, hidden_panels_, values * static_cast<T>(gates));
    kernels_.norm_products[cell](a);
  }

  const BackwardCall<T>& call_;
};

template <class T>
void lay_out(Arena& arena, const Driver<T>& driver, const CpuTape<T>& tape, const Backward<T>& call,
             BackwardBuffers<T>& buffers) {
  std::int64_t gradient_bytes = 0;
  for (const std::int64_t room : driver.rooms) {
    gradient_bytes += room * std::int64_t{sizeof(T)};
  }
  const Config& config = driver.config;
  const Partition& partition = driver.workspace.partition;
  const std::int64_t lanes = driver.kernels.lanes;
  const std::int64_t directions = config.directions(), threads = partition.threads();
  const std::int64_t padded = round_up(config.hidden_size, lanes);
  const std::int64_t padded_state = round_up(config.state_size(), lanes);
  const std::int64_t rows = tape.rows();
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
  if (config.layer_norm) {
    buffers.norm.resize(static_cast<std::size_t>(config.num_layers * directions));
    for (NormWeights<T>& norm : buffers.norm) lay_out_norm(arena, config, static_cast<int>(lanes), norm);
    const std::int64_t gates = config.gates(), batch = directions * tape.batch;
    buffers.gates_per_unit = config.cell == CellKind::gru ? 4 : config.gates();
    buffers.gates_stride = padded * buffers.gates_per_unit + lanes;
    buffers.normed_stride = padded * 2 * gates + lanes;
    buffers.norm_sums_stride = padded * norm_sums_per_unit(config) + lanes;
    buffers.partial_stride = padded * NormBackwardArguments<T>::mean_count;
    buffers.gates = arena.take<T>(batch * buffers.gates_stride);
    buffers.normed = arena.take<T>(batch * buffers.normed_stride);
    for (T** piece : {&buffers.c_normed, &buffers.dc_normed})
      *piece = arena.take<T>(batch * buffers.c_stride);
    buffers.norm_sums = arena.take<T>(batch * buffers.norm_sums_stride);
    buffers.partial = arena.take<T>(batch * buffers.partial_stride);
    const std::int64_t most_rows = (tape.batch + partition.row_groups - 1) / partition.row_groups;
    buffers.means = arena.take<T>(threads * most_rows * NormBackwardArguments<T>::mean_count);
  }
  const Noise& noise = tape.noise;
  buffers.masks.lay_out(arena, config, noise, tape.batch);
  if (noise.recurrent_dropout > 0) {
    buffers.dmasked = arena.take<T>(directions * tape.batch * buffers.h_stride);
    if (driver.plan.phases == 2) {
      buffers.masked_h = arena.take<T>(directions * tape.batch * buffers.h_stride);
    }
  }
  if (noise.zoneout_h > 0) buffers.carry_h = arena.take<T>(directions * tape.batch * buffers.h_stride);
  if (noise.zoneout_c > 0) buffers.carry_c = arena.take<T>(directions * tape.batch * buffers.c_stride);
  buffers.mask_stride = round_up(std::max(config.hidden_size, config.output_size()), lanes);
  buffers.mask = arena.take<T>(threads * buffers.mask_stride);
  if (noise.weight_drop > 0) {
    buffers.dropped = arena.take<T>(config.num_layers * directions * config.gates() * config.hidden_size *
                                    config.state_size());
  }
  if (config.has_peephole()) {
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
  buffers.rows_per_thread = std::max({group_rows, buffers.chunk, std::min<std::int64_t>(rows, 64)});
  buffers.rows = arena.take<const T*>(threads * 6 * buffers.rows_per_thread);
  if (noise.input_dropout > 0) {
    buffers.masked_grad_stride = round_up(buffers.masks.input_stride, lanes);
    buffers.masked_grad = arena.take<T>(threads * buffers.rows_per_thread * buffers.masked_grad_stride);
  }
  buffers.out_rows = arena.take<T*>(threads * 2 * buffers.rows_per_thread);
}

// Runs work(call, thread) on a team.
template <class T, class Work>
void run_on_team(const Driver<T>& driver, const CpuTape<T>& tape, const Backward<T>& call,
                 double products_per_forward, Checksums& checksums, const Work& work) {
  CpuWorkspace& workspace = driver.workspace;
  const std::int64_t steps = tape.order.max_steps();
  Partition partition = driver.model.choose(steps, tape.batch, num_threads(), barrier_slowness());
  Team team(partition.threads(), products_per_forward * driver.model.seconds_alone(steps, tape.batch));
  if (team.size() < partition.threads()) partition = driver.model.choose(steps, tape.batch, team.size(), 1);
  workspace.set_partition(partition);
  workspace.deal(tape.order);
  workspace.order.equal_steps = -1;

  BackwardBuffers<T> buffers{};
  Arena counting;
  lay_out(counting, driver, tape, call, buffers);
  Arena arena(workspace.storage.reserve(counting.used()));
  lay_out(arena, driver, tape, call, buffers);

  buffers.checksums = &checksums;
  const BackwardCall<T> whole{driver, tape, call, buffers};
  const int threads = partition.threads();
  team.run([&](int thread) {
    if (thread < threads) work(whole, thread);
  });
}

template <class T>
std::vector<T*> pieces(Storage& storage, const std::vector<std::int64_t>& sizes) {
  Arena counting;
  for (const std::int64_t size : sizes) counting.take<T>(size);
  Arena arena(storage.reserve(counting.used()));
  std::vector<T*> pieces;
  for (const std::int64_t size : sizes) pieces.push_back(arena.take<T>(size));
  return pieces;
}

}  // namespace

template <class T>
void run_backward(const Driver<T>& driver, CpuTape<T>& tape, const Backward<T>& given) {
  if (given.x.data) tape.x = given.x;
  Backward<T> call = given;
  auto* const steps = static_cast<CpuStepGradients<T>*>(call.steps);
  std::vector<T*> packed;
  if (steps) {
    packed = pieces<T>(steps->packed, driver.rooms);
    call.gradients = packed.data();
  }
  Checksums now;
  constexpr double products_per_forward = 2;
  run_on_team(driver, tape, call, products_per_forward, now,
              [](const BackwardCall<T>& whole, int thread) { BackwardWorker<T>(whole, thread).run(); });
  const char* const changed = now.parameters != tape.checksums.parameters ? "parameters"
                              : now.x != tape.checksums.x                 ? "x"
                                                                          : nullptr;
  if (changed) {
    throw std::runtime_error(std::string(changed) +
                             ": expected what forward was given, but it has changed since then");
  }
  if (steps) {
    steps->has_recurrent = true;
    steps->has_input = steps->has_input || call.grad_x;
    steps->append(tape, driver.config.input_size);
  }
}

// ---- steps taken one by one -----------------------------------------------------------------------------

template <class T>
void CpuStepGradients<T>::append(const CpuTape<T>& tape, std::int64_t inputs) {
  const Chain<T>& kept = tape.chain(0, 0);
  slots.insert(slots.end(), kept.slots, kept.slots + tape.batch * tape.slots_stride);
  h.insert(h.end(), kept.h0, kept.h0 + tape.batch * tape.h_stride);
  for (std::int64_t b = 0; b < tape.batch; ++b) {
    const T* const row = tape.input(0, 0, b);
    x.insert(x.end(), row, row + inputs);
  }
  rows += tape.batch;
}

template <class T>
void CpuStepGradients<T>::clear() {
  slots.clear();
  x.clear();
  h.clear();
  rows = 0;
  has_recurrent = has_input = false;
}

template <class T>
std::unique_ptr<StepGradients<T>> make_step_gradients() {
  return std::make_unique<CpuStepGradients<T>>();
}

// All rows are taken for those of one step.
template <class T>
void add_up(const Driver<T>& driver, StepGradients<T>& given, T* const* gradients) {
  auto& steps = static_cast<CpuStepGradients<T>&>(given);
  Forward<T> step;
  step.steps = 1;
  step.batch = steps.rows;
  step.guard = false;
  step.x.data = reinterpret_cast<const char*>(steps.x.data());
  step.x.stride[1] = driver.config.input_size * std::int64_t{sizeof(T)};
  CpuTape<T>& tape = steps.whole;
  tape.begin(driver.config, driver.plan, driver.kernels.lanes, step);
  tape.chains[0].slots = steps.slots.data();
  tape.chains[0].h0 = steps.h.data();
  Backward<T> call;
  call.gradients = gradients;
  Checksums none;
  run_on_team(driver, tape, call, 1, none,
              [](const BackwardCall<T>& whole, int thread) { grad_weights(whole, thread, 0, 0); });
  steps.clear();
}

template void run_backward(const Driver<float>&, CpuTape<float>&, const Backward<float>&);
template void run_backward(const Driver<double>&, CpuTape<double>&, const Backward<double>&);
template std::unique_ptr<StepGradients<float>> make_step_gradients();
template std::unique_ptr<StepGradients<double>> make_step_gradients();
template void add_up(const Driver<float>&, StepGradients<float>&, float* const*);
template void add_up(const Driver<double>&, StepGradients<double>&, double* const*);

}  // namespace fastrnn
