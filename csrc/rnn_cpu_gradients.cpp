// The gradients of a layer's input and weights.
//
// dX is one product over all rows of the tape, of which threads share the columns or, where there are few,
// the rows. The weights' are sums over all rows, of which threads share the gate units. Sums run in the order
// of the tape, and the chunks of rows follow from the shape: no bit depends on the number of threads.
#include "rnn_cpu_backward.h"

namespace fastrnn {
namespace {

// One product of the forward pass, as its weight gradient sees it.
template <class T>
struct WeightProduct {
  int first_slot, slots;
  const int* gate;  // of those slots
  T* gradient;      // (gates, units, columns)
  std::int64_t units, columns;
  const T* const* operand;  // `chunk` rows
  const T* const* mask;     // of the rows, or null
  std::int64_t right;       // where its packed columns are
};

template <class T>
class GradientWorker : BackwardMember<T> {
  using Base = BackwardMember<T>;
  using Base::backward_;
  using Base::buffers_;
  using Base::c_rows_;
  using Base::config_;
  using Base::direction_groups_;
  using Base::exchange_rows_;
  using Base::grad_y_rows_;
  using Base::gradient;
  using Base::h_rows_;
  using Base::hidden_panels_;
  using Base::ids_;
  using Base::kernels_;
  using Base::lanes_;
  using Base::lengths_;
  using Base::masked_h_rows_;
  using Base::meet_all;
  using Base::out_rows_;
  using Base::output_gradient;
  using Base::phase_out_rows_;
  using Base::place_in_group;
  using Base::plan_;
  using Base::rows_;
  using Base::second_phase_;
  using Base::slices_;
  using Base::slots;
  using Base::slots_product;
  using Base::state_panels_;
  using Base::tape_;
  using Base::thread_;
  using Base::threads;
  using Base::time;
  using Base::x_rows_;

 public:
  GradientWorker(const BackwardCall<T>& call, int thread) : Base(call, thread) {}

  // All threads share the columns, or, where there are few, the rows.
  void input(std::int64_t layer) {
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
    const Range rows = part_of(tape_.rows(), by_columns ? 1 : threads(), by_columns ? 0 : thread_);
    for (int d = 0; d < config_.directions(); ++d) {
      if (d == 1 && !by_columns) meet_all();
      ProductArguments<T> product = slots_product(
          config_.gates(), tape_.slots_stride, gradient(parameter_indices(config_, layer, d).weight_ih), own);
      product.columns = own.units;
      product.accumulate = d == 1 || residual;
      const std::int64_t end = rows.first + rows.count;
      Place at = tape_.place_of(rows.first);
      while (at.n < end) {
        product.a = slots(layer, d) + at.n * tape_.slots_stride;
        product.rows = std::min(buffers_.rows_per_thread, end - at.n);
        const Place first = at;
        for (std::int64_t i = 0; i < product.rows; ++i, tape_.advance(at)) {
          out_rows_[i] = out.base + tape_.time_of(at, d) * out.step + tape_.order.ids[at.place] * out.row +
                         own.first_unit;
        }
        if (buffers_.masks.input) {
          multiply_masked(layer, first, product, own);
        } else {
          kernels_.product(product);
        }
      }
    }
  }

  void weights(std::int64_t layer, int d) {
    WeightProduct<T> products[4];
    const int count = weight_products(layer, d, products);
    const Range own = part_of(hidden_panels_ * plan_.slots, threads(), thread_);
    const Range own_projected = part_of(config_.proj_size ? state_panels_ : 0, threads(), thread_);
    const bool peephole = config_.has_peephole() && !config_.layer_norm;
    const Range own_panels = part_of(peephole ? hidden_panels_ : 0, threads(), thread_);
    std::fill_n(buffers_.sums + own.first * lanes_, own.count * lanes_, T(0));
    for (std::int64_t i = 0; i < own_projected.count * lanes_; ++i) {
      buffers_.sums_projected[own_projected.first * lanes_ + i] = T(0);
    }
    for (std::int64_t i = 0; i < own_panels.count * 3 * lanes_; ++i) {
      buffers_.sums_peephole[own_panels.first * 3 * lanes_ + i] = T(0);
    }

    const std::int64_t total = tape_.rows();
    if (total == 0) clear_gradients(products, count);
    for (std::int64_t n = 0; n < total; n += buffers_.chunk) {
      const std::int64_t rows = std::min(buffers_.chunk, total - n);
      gather_chunk(layer, d, n, rows);
      for (int i = 0; i < count; ++i) pack_operand(products[i], rows);
      if (peephole) sum_peephole(layer, d, n, rows, own_panels);
      meet_all();
      multiply_units(products, count - (config_.proj_size ? 1 : 0), plan_.slots,
                     slots(layer, d) + n * tape_.slots_stride, tape_.slots_stride, buffers_.sums, rows, own,
                     n > 0);
      if (config_.proj_size) {
        const T* const dh = buffers_.projected + (d * total + n) * buffers_.h_stride;
        multiply_units(products + count - 1, 1, 1, dh, buffers_.h_stride, buffers_.sums_projected, rows,
                       own_projected, n > 0);
      }
      meet_all();
    }
    if (config_.layer_norm) {
      write_norm_sums(layer, d, part_of(hidden_panels_, threads(), thread_));
    } else {
      write_sums(layer, d, own, own_panels);
    }
  }

 private:
  // The product of some rows by way of the gradient of the masked input.
  void multiply_masked(std::int64_t layer, Place at, ProductArguments<T> product, const Slice& own) {
    const std::int64_t stride = buffers_.masked_grad_stride;
    T* const masked = buffers_.masked_grad + thread_ * buffers_.rows_per_thread * stride;
    const bool accumulate = std::exchange(product.accumulate, false);
    for (std::int64_t i = 0; i < product.rows; ++i, tape_.advance(at)) {
      T* const sum = std::exchange(out_rows_[i], masked + i * stride);
      x_rows_[i] = buffers_.masks.input_row(layer, tape_.order.ids[at.place]) + own.first_unit;
      phase_out_rows_[i] = sum;
    }
    kernels_.product(product);
    for (std::int64_t i = 0; i < product.rows; ++i) {
      T* const sum = phase_out_rows_[i];
      for (std::int64_t u = 0; u < own.units; ++u) {
        const T value = x_rows_[i][u] * out_rows_[i][u];
        sum[u] = accumulate ? sum[u] + value : value;
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

  // The products of the forward pass.
  int weight_products(std::int64_t layer, int d, WeightProduct<T> (&products)[4]) const {
    const ParameterIndices index = parameter_indices(config_, layer, d);
    int count = 0;
    std::int64_t right = 0;
    const auto add = [&](int first_slot, int slots, const int* gate, int parameter, std::int64_t units,
                         std::int64_t columns, const T* const* operand, const T* const* mask) {
      products[count++] = {first_slot, slots, gate, gradient(parameter), units, columns,
                           operand,    mask,  right};
      right += round_up(columns, lanes_) * buffers_.chunk;
    };
    add(0, config_.gates(), plan_.input_gate, index.weight_ih, config_.hidden_size,
        config_.layer_input_size(layer), x_rows_, buffers_.masks.input ? grad_y_rows_ : nullptr);
    for (int i = 0; i < plan_.phases; ++i) {
      const int first_slot = plan_.first_slot(i);
      add(first_slot, plan_.phase[i].gates, plan_.recurrent_gate + first_slot, index.weight_hh,
          config_.hidden_size, config_.state_size(), i ? exchange_rows_ : h_rows_,
          i == 0 && buffers_.masks.recurrent ? masked_h_rows_ : nullptr);
    }
    if (config_.proj_size) {
      add(0, 1, &only_gate, index.weight_hr, config_.proj_size, config_.hidden_size, exchange_rows_, nullptr);
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
    Place at = tape_.place_of(n);
    for (std::int64_t i = 0; i < rows; ++i, tape_.advance(at)) {
      const std::int64_t id = tape_.order.ids[at.place];
      x_rows_[i] = tape_.input(layer, tape_.time_of(at, d), id);
      h_rows_[i] = tape_.h_before(layer, d, at.s, at.place);
      if (second_phase_) exchange_rows_[i] = tape_.chain(layer, d).exchange + at.n * tape_.c_stride;
      if (config_.has_cell_state()) c_rows_[i] = tape_.c_before(layer, d, at.s, at.place);
      if (buffers_.masks.input) grad_y_rows_[i] = buffers_.masks.input_row(layer, id);
      if (buffers_.masks.recurrent) masked_h_rows_[i] = buffers_.masks.recurrent_row(layer, d, id);
    }
  }

  void pack_operand(const WeightProduct<T>& product, std::int64_t rows) const {
    const Range own = part_of(round_up(product.columns, lanes_) / lanes_, threads(), thread_);
    kernels_.pack_columns({product.operand, product.mask, rows, product.columns, own.first, own.count,
                           buffers_.right + product.right});
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
    const Chain<T>& kept = tape_.chain(layer, d);
    const T* const c = kept.candidate ? kept.candidate : kept.c;  // as o saw it
    kernels_.peephole({rows, own.count, plan_.slots,
                       slots(layer, d) + n * tape_.slots_stride + own.first * plan_.slots * lanes_,
                       tape_.slots_stride, c + n * tape_.c_stride + own.first * lanes_, tape_.c_stride,
                       c_rows_, buffers_.sums_peephole + own.first * 3 * lanes_});
  }

  // With layer norm: what each row has summed over the steps becomes gradients, rows in their order.
  void write_norm_sums(std::int64_t layer, int d, const Range& own) const {
    const ParameterIndices index = parameter_indices(config_, layer, d);
    const std::int64_t hidden = config_.hidden_size, each = norm_sums_per_unit(config_);
    const int gates = config_.gates();
    for (std::int64_t panel = own.first; panel < own.first + own.count; ++panel) {
      const std::int64_t unit = panel * lanes_, units = std::min<std::int64_t>(lanes_, hidden - unit);
      const auto write = [&](int parameter, std::int64_t row, int vector) {
        if (parameter < 0 || row < 0) return;
        T* const out = gradient(parameter) + row * hidden + unit;
        const T* sums = buffers_.norm_sums + d * tape_.batch * buffers_.norm_sums_stride + unit * each;
        std::fill_n(out, units, T(0));
        for (std::int64_t place = 0; place < tape_.batch; ++place, sums += buffers_.norm_sums_stride) {
          add_to(sums + vector * lanes_, out, units);
        }
      };
      for (int gate = 0; gate < gates; ++gate) {
        write(index.norm_ih_weight, gate, gate);
        write(index.norm_ih_bias, gate, gates + gate);
        write(index.bias_ih, gate, gates + gate);
        write(index.norm_hh_weight, gate, 2 * gates + gate);
        write(index.norm_hh_bias, gate, 3 * gates + gate);
        write(index.bias_hh, gate, 3 * gates + gate);
      }
      write(index.norm_c_weight, 0, 4 * gates);
      write(index.norm_c_bias, 0, 4 * gates + 1);
      for (int row = 0; row < 3; ++row) {
        write(index.weight_peep, peephole_row(config_, row), 4 * gates + 2 + row);
      }
    }
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
        const int to = peephole_row(config_, row);
        if (to < 0) continue;
        std::copy_n(buffers_.sums_peephole + (panel * 3 + row) * lanes_,
                    std::min<std::int64_t>(lanes_, hidden - unit),
                    gradient(index.weight_peep) + to * hidden + unit);
      }
    }
  }
};

}  // namespace

template <class T>
void grad_input(const BackwardCall<T>& call, int thread, std::int64_t layer) {
  GradientWorker<T>(call, thread).input(layer);
}

template <class T>
void grad_weights(const BackwardCall<T>& call, int thread, std::int64_t layer, int d) {
  GradientWorker<T>(call, thread).weights(layer, d);
}

template void grad_input(const BackwardCall<float>&, int, std::int64_t);
template void grad_input(const BackwardCall<double>&, int, std::int64_t);
template void grad_weights(const BackwardCall<float>&, int, std::int64_t, int);
template void grad_weights(const BackwardCall<double>&, int, std::int64_t, int);

}  // namespace fastrnn
