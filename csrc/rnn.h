// The driver contract: what a recurrent network is, what one forward and one backward call are given, and
// who owns which memory. Shared by the CPU driver (rnn_cpu.cpp) and the CUDA driver.
//
// Letters: T steps, B batch rows, I inputs, H hidden units, P projected units, G gates, L layers,
// D directions; R is the width of h: P with a projection, else H.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "storage.h"

namespace fastrnn {

enum class CellKind : int {
  rnn_tanh,
  rnn_relu,
  rnn_sigmoid,
  lstm,
  lstm_peephole,
  lstm_coupled,
  lstm_coupled_peephole,
  gru,
  gru_reset_before,
  count
};

// How the outputs of the two directions become a layer's output.
enum class Merge : int { concat, sum, mean, max, mul, count };

const char* name_of(CellKind cell);
const char* name_of(Merge merge);

struct Config {
  CellKind cell = CellKind::lstm;
  std::int64_t input_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t num_layers = 1;
  bool bidirectional = false;
  std::int64_t proj_size = 0;  // LSTM only; 0: none
  bool bias = true;
  Merge merge = Merge::concat;
  bool residual = false;    // adds a layer's input to its output where the widths agree
  bool layer_norm = false;  // of both products over a row's gates, and of c_t before the output's tanh
  double clip = std::numeric_limits<double>::infinity();  // bound of |c_t|

  int gates() const;
  bool has_cell_state() const;
  bool has_peephole() const {
    return cell == CellKind::lstm_peephole || cell == CellKind::lstm_coupled_peephole;
  }
  bool coupled() const { return cell == CellKind::lstm_coupled || cell == CellKind::lstm_coupled_peephole; }
  std::int64_t directions() const { return bidirectional ? 2 : 1; }
  std::int64_t state_size() const { return proj_size ? proj_size : hidden_size; }  // R
  std::int64_t output_size() const { return state_size() * (merge == Merge::concat ? directions() : 1); }
  std::int64_t layer_input_size(std::int64_t layer) const { return layer == 0 ? input_size : output_size(); }
};

// torch.nn's parameters in torch.nn's order: per layer, per direction weight_ih, weight_hh, bias_ih,
// bias_hh, weight_hr, then weight_peep (3, H) = i, f, o, of coupled gates (2, H) = i, o, then of layer
// norm norm_ih_weight, norm_ih_bias, norm_hh_weight, norm_hh_bias (G*H,) and, with a cell state,
// norm_c_weight, norm_c_bias (H,).
struct Parameter {
  std::string name;
  std::vector<std::int64_t> shape;
};

std::vector<Parameter> parameters_of(const Config& config);

// Where the parameters of one layer and direction are among those; -1: it has none of that kind.
struct ParameterIndices {
  int weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, weight_peep;
  int norm_ih_weight, norm_ih_bias, norm_hh_weight, norm_hh_bias, norm_c_weight, norm_c_bias;
};

// Probabilities of what is random in training. Zoneout acts outside of it, too: by its expectation.
struct Noise {
  double dropout = 0;            // on the outputs of all layers but the last, per step
  double input_dropout = 0;      // on the inputs of all layers, one mask per sequence (Gal & Ghahramani 2016)
  double recurrent_dropout = 0;  // on the h that W_hh multiplies, one mask per sequence
  double zoneout_h = 0, zoneout_c = 0;  // a unit's state stays as it was (Krueger et al. 2017)
  double weight_drop = 0;               // on W_hh, one mask per call (Merity et al. 2018)
  bool training = false;

  bool is_random() const {
    return training && (dropout > 0 || input_dropout > 0 || recurrent_dropout > 0 || zoneout_h > 0 ||
                        zoneout_c > 0 || weight_drop > 0);
  }
};

ParameterIndices parameter_indices(const Config& config, std::int64_t layer, std::int64_t direction);

// An input that the caller owns and that must not change during the call. Strides in bytes, of any
// sign; elements need not be aligned.
struct View {
  const char* data = nullptr;  // null: absent
  std::int64_t stride[3] = {0, 0, 0};
};

// What BPTT needs of one forward call. Made by the network, filled by `forward`, read by `backward`, which
// overwrites it unless told to retain it. It may be filled again. Besides its own memory it refers to x and
// y of the call, which must stay alive and unchanged.
template <class T>
class Tape {
 public:
  virtual ~Tape() = default;
  virtual std::size_t bytes() const = 0;
};

// What the gradients of the weights are sums of, over steps that are taken one by one: a product of many rows
// at last instead of one of few rows in every step. Filled by backward calls with the same parameters.
template <class T>
class StepGradients {
 public:
  virtual ~StepGradients() = default;
  // Whether the next call, without a guard, needs no parameters: these have been packed. `input`: one with
  // grad_x.
  virtual bool has_packed(bool input) const = 0;
};

// One forward call. Outputs never overlap inputs.
template <class T>
struct Forward {
  std::int64_t steps = 0, batch = 0;      // T, B
  View x;                                 // (T, B, I)
  View h0;                                // (D*L, B, R); absent: zeros
  View c0;                                // (D*L, B, H); absent: zeros; cells with a cell state only
  const std::int64_t* lengths = nullptr;  // (B,), each in 0 .. T; null: all T
  View resets;                            // (T, B) bytes, nonzero: the state does not pass from
                                          // step t-1 to step t of that row, in either direction
  Noise noise;
  std::uint64_t seed = 0;  // of the masks

  T* y = nullptr;  // output row (t, b) at y + t * y_step + b * y_row, output_size() wide
  std::int64_t y_step = 0, y_row = 0;
  T* hn = nullptr;  // (D*L, B, R) contiguous: each direction's state after its last valid step
  T* cn = nullptr;  // (D*L, B, H)
  // The states after every step, zeroed by the caller where no step is taken: (D*L, T, B, R) and
  // (D*L, T, B, H) contiguous; null: not wanted.
  T* h_all = nullptr;
  T* c_all = nullptr;

  // For training: the tape is filled, x is one aligned block without gaps, and the weights are those of
  // `parameters`, if they are given, packed into `scratch` (scratch_bytes(), on a cache line), which is free
  // after the call. weight_drop needs them.
  Tape<T>* tape = nullptr;
  const T* const* parameters = nullptr;
  void* scratch = nullptr;
  bool guard = true;  // have backward raise where x or one of the given parameters has changed
};

// One backward call: dL/d(input, initial state, parameters) from dL/d(output, final state). Outputs overlap
// no inputs.
template <class T>
struct Backward {
  const T* const* parameters = nullptr;  // of parameters_of, as they were in the forward call
  const T* grad_y = nullptr;             // output_size() wide rows as y's; null: zeros
  std::int64_t grad_y_step = 0, grad_y_row = 0;
  const T* grad_hn = nullptr;     // (D*L, B, R) contiguous; null: zeros
  const T* grad_cn = nullptr;     // (D*L, B, H); null: zeros
  const T* grad_h_all = nullptr;  // (D*L, T, B, R); null: zeros
  const T* grad_c_all = nullptr;  // (D*L, T, B, H); null: zeros
  View x;                         // where x lies now, as in the forward call; absent: where it lay
  bool retain = false;            // leave the tape as it is, at the price of a copy of its gates

  T* grad_x = nullptr;  // (T, B, I); null: not wanted
  std::int64_t grad_x_step = 0, grad_x_row = 0;
  T* grad_h0 = nullptr;  // (D*L, B, R)
  T* grad_c0 = nullptr;  // (D*L, B, H)
  // One for each of parameters_of, contiguous from its start, with room for gradient_rooms()[i] elements:
  // the rest is scratch.
  T* const* gradients = nullptr;
  // Takes what those of the weights are sums of, instead: `gradients` is unused, and the tape is of one step
  // and not retained.
  StepGradients<T>* steps = nullptr;
};

// Weights in the layout of the kernels: a copy, independent of the arrays it was made from.
template <class T>
class Weights {
 public:
  virtual ~Weights() = default;
};

// Scratch memory of one call at a time; kept by the caller so that repeated calls allocate nothing.
class Workspace {
 public:
  virtual ~Workspace() = default;
};

// A network on one device. Stateless but for its configuration: any number of threads may call it,
// each with a workspace of its own.
template <class T>
class Network {
 public:
  virtual ~Network() = default;
  // `parameters`: one contiguous array for each of parameters_of(config).
  virtual std::unique_ptr<Weights<T>> pack(const T* const* parameters) const = 0;
  virtual std::unique_ptr<Workspace> make_workspace() const = 0;
  virtual std::unique_ptr<Tape<T>> make_tape() const = 0;
  // `weights`: unused where the call has parameters.
  virtual void forward(const Weights<T>* weights, Workspace& workspace, const Forward<T>& call) const = 0;
  virtual std::size_t scratch_bytes() const = 0;
  virtual void backward(Tape<T>& tape, Workspace& workspace, const Backward<T>& call) const = 0;
  virtual std::vector<std::int64_t> gradient_rooms() const = 0;
  // For one layer and direction of a cell with one phase and no weights but W_ih and W_hh; else throws.
  virtual std::unique_ptr<StepGradients<T>> make_step_gradients() const = 0;
  // The sums, into `gradients` as of Backward. Empties `steps`, which may be filled anew.
  virtual void add_up(StepGradients<T>& steps, Workspace& workspace, T* const* gradients) const = 0;
  // Multiply-adds of a call, for deciding what is worth the trouble of leaving the interpreter lock.
  virtual double multiply_adds(std::int64_t steps, std::int64_t batch) const = 0;
};

template <class T>
std::unique_ptr<Network<T>> make_cpu_network(const Config& config);

}  // namespace fastrnn
