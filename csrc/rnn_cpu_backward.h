// Backward on the CPU: what its two parts share. Internal to rnn_cpu_backward.cpp and rnn_cpu_gradients.cpp.
#pragma once

#include <utility>

#include "regularise.h"
#include "rnn_cpu_tape.h"

namespace fastrnn {

// Pieces of the workspace; the first index in a comment is the outermost.
template <class T>
struct BackwardBuffers {
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
  T* dmasked;         // (D, B, h_stride): gradient of the masked h, where the products read that
  T* masked_h;        // (D, B, h_stride): it, where the cell's math reads it
  T* carry_h;         // (D, B, h_stride): gradient that zoneout passes on
  T* carry_c;         // (D, B, c_stride)
  T* mask;            // (threads, mask_stride): of dropout
  T* dropped;         // (L*D, G*H, R): W_hh with dropped weights
  T* masked_grad;     // (threads, rows per thread, width): gradients of a masked input
  SequenceMasks<T> masks;
  // Layer norm: NormBackwardArguments has the rest. Rows of (D, B) but for means (threads, group rows, 6);
  // those of sums are places in the working order.
  std::vector<NormWeights<T>> norm;  // [layer * D + direction]
  T *gates, *normed, *c_normed, *dc_normed, *norm_sums, *partial, *means;
  std::int64_t gates_stride, normed_stride, norm_sums_stride, partial_stride;
  int gates_per_unit;
  Checksums* checksums;
  const T** rows;  // (threads, 6, rows per thread)
  T** out_rows;    // (threads, 2, rows per thread)
  std::int64_t h_stride, c_stride, mask_stride, masked_grad_stride, chunk, rows_per_thread;
};

// Rows of all steps behind one another, and the packed weights that the steps share.
template <class T>
struct CpuStepGradients : StepGradients<T> {
  Storage packed;  // gradient_rooms()
  bool has_recurrent = false, has_input = false;
  std::vector<T> slots, x, h;  // gate gradients; what the two products read
  std::int64_t rows = 0;
  CpuTape<T> whole;  // as which they are added up; its own memory is not touched

  bool has_packed(bool input) const override { return has_recurrent && (has_input || !input); }
  void append(const CpuTape<T>& tape, std::int64_t inputs);
  void clear();
};

template <class T>
struct BackwardCall {
  const Driver<T>& driver;
  const CpuTape<T>& tape;
  const Backward<T>& backward;
  const BackwardBuffers<T>& buffers;
};

// Vectors of units that the gradients of the weights pack at a time.
constexpr std::int64_t unit_vectors = 4;

constexpr int only_gate = 0;  // of a projection

// Of a unit in the sums of layer norm: gains and shifts of both products and of c, and peepholes i, f, o.
inline int norm_sums_per_unit(const Config& config) { return 4 * config.gates() + 5; }

// One thread's place in a backward call.
template <class T>
class BackwardMember : protected Member {
 protected:
  BackwardMember(const BackwardCall<T>& call, int thread)
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
        second_phase_(plan_.phases == 2 || config_.proj_size),
        masks_{kernels_, tape_.noise, tape_.seed} {
    const T** next = buffers_.rows + thread * 6 * buffers_.rows_per_thread;
    for (const T*** rows : {&grad_y_rows_, &c_rows_, &h_rows_, &x_rows_, &exchange_rows_, &masked_h_rows_}) {
      *rows = std::exchange(next, next + buffers_.rows_per_thread);
    }
    out_rows_ = buffers_.out_rows + thread * 2 * buffers_.rows_per_thread;
    phase_out_rows_ = out_rows_ + buffers_.rows_per_thread;
  }

  // The slots that become gate gradients.
  T* slots(std::int64_t layer, int d) const {
    if (!buffers_.slots) return tape_.chain(layer, d).slots;
    const std::int64_t index = layer * config_.directions() + d;
    return buffers_.slots + index * tape_.rows() * tape_.slots_stride;
  }

  T* gradient(int index) const { return backward_.gradients[index]; }

  Rows<const T*> output_gradient(std::int64_t layer) const {
    const std::int64_t width = config_.output_size();
    if (layer + 1 < config_.num_layers) return {buffers_.between, tape_.batch * width, width, false};
    return {backward_.grad_y, backward_.grad_y_step, backward_.grad_y_row, false};
  }

  // The product of rows of slots, the first `count` of each unit from where `a` points, with transposed
  // weights of `own` columns.
  ProductArguments<T> slots_product(int count, std::int64_t a_stride, const T* weight,
                                    const Slice& own) const {
    ProductArguments<T> product{};
    const bool all = count == plan_.slots;
    product.panels = own.panels;
    product.columns = own.panels * lanes_;
    product.a_stride = a_stride;
    product.runs = all ? 1 : hidden_panels_;
    product.run = (all ? hidden_panels_ : 1) * count * lanes_;
    product.run_stride = plan_.slots * lanes_;
    product.weight = weight + own.first_unit * product.runs * product.run;
    product.out = out_rows_;
    return product;
  }

  const Config& config_;
  const CellPlan& plan_;
  const Kernels<T>& kernels_;
  const CpuTape<T>& tape_;
  const Backward<T>& backward_;
  const BackwardBuffers<T>& buffers_;
  const std::int64_t lanes_, hidden_panels_, state_panels_;
  const bool second_phase_;
  const Masks<T> masks_;
  const T **grad_y_rows_, **c_rows_, **h_rows_, **x_rows_, **exchange_rows_, **masked_h_rows_;
  T **out_rows_, **phase_out_rows_;
};

// What is left when all gate gradients of a layer are known: products over all rows of the tape. All threads
// call each; they meet on the way but not at its end.
template <class T>
void grad_input(const BackwardCall<T>& call, int thread, std::int64_t layer);
template <class T>
void grad_weights(const BackwardCall<T>& call, int thread, std::int64_t layer, int d);

}  // namespace fastrnn
