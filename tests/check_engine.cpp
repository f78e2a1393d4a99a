// Drives the engine without Python, for the sanitizers: every cell, option, odd size and thread count
// against a naive double-precision network, which runs the scalar lane of the same equations; gradients
// against its central differences along a random direction. Buffers have exactly the size that the
// contract names, so that AddressSanitizer sees one element too many.
// One process per instruction set: FASTRNN_ISA chooses, as ctest does.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "affine.h"
#include "cells.h"
#include "dispatch.h"
#include "parallel.h"
#include "rnn.h"
#include "update.h"

using namespace fastrnn;

namespace {

using Array = std::vector<double>;

struct Case {
  Config config;
  std::int64_t steps = 0, batch = 0;
  std::vector<Array> parameters;
  Array x, h0, c0;
  std::vector<std::int64_t> lengths;  // empty: all T
  std::vector<char> resets;           // empty: none
  Noise noise;

  std::int64_t chains() const { return config.num_layers * config.directions(); }
};

struct Result {
  Array y, hn, cn;
};

// A linear function of all results, as gradients of them; and a direction in which all inputs move.
struct Probe {
  Result weights;
  std::vector<Array> parameters;
  Array x, h0, c0;
};

// ---- the naive network ------------------------------------------------------------------------------

double dot(const double* a, const double* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t k = 0; k < n; ++k) sum += a[k] * b[k];
  return sum;
}

template <class Cell, int slots = Cell::slots>
generic::State<double> cell(double (&slot)[slots], double h, double c, const Array* peep, std::int64_t unit,
                            std::int64_t hidden, double clip) {
  generic::State<double> state{h, c};
  generic::LaneWeights<double> weights{};
  if constexpr (Cell::has_cell_state) {
    if (peep) {
      const auto row = [&](std::int64_t i) { return (*peep)[i * hidden + unit]; };
      weights.i = row(0);
      weights.f = Cell::slots == 4 ? row(1) : 0;
      weights.o = row(Cell::slots - 2);
    }
    weights.clip = clip;
  }
  Cell::forward(slot, state, weights);
  return state;
}

// One step of one row; h has R values, c has H.
void naive_step(const Config& config, const Array* parameter, const double* x, std::int64_t inputs, Array& h,
                Array& c) {
  using namespace generic;
  const std::int64_t H = config.hidden_size, R = config.state_size();
  const Array& w_ih = parameter[0];
  const Array& w_hh = parameter[1];
  int next = 2;
  const Array* b_ih = config.bias ? &parameter[next++] : nullptr;
  const Array* b_hh = config.bias ? &parameter[next++] : nullptr;
  const Array* w_hr = config.proj_size ? &parameter[next++] : nullptr;
  const Array* peep = config.has_peephole() ? &parameter[next++] : nullptr;
  const auto from_x = [&](std::int64_t gate, std::int64_t u) {
    const std::int64_t row = gate * H + u;
    return dot(&w_ih[row * inputs], x, inputs) + (b_ih ? (*b_ih)[row] : 0);
  };
  const auto from_h = [&](std::int64_t gate, std::int64_t u, const Array& operand) {
    const std::int64_t row = gate * H + u;
    return dot(&w_hh[row * R], operand.data(), R) + (b_hh ? (*b_hh)[row] : 0);
  };
  Array m(H), z(H), gated(H);
  for (std::int64_t u = 0; u < H; ++u) {
    if (config.gates() == 1) {
      double slot[1] = {from_x(0, u) + from_h(0, u, h)};
      const auto run = config.cell == CellKind::rnn_tanh   ? cell<Rnn<Nonlinearity::tanh>>
                       : config.cell == CellKind::rnn_relu ? cell<Rnn<Nonlinearity::relu>>
                                                           : cell<Rnn<Nonlinearity::sigmoid>>;
      m[u] = run(slot, 0, 0, nullptr, u, H, 0).h;
    } else if (config.has_cell_state()) {
      double slot[4], three[3];
      for (int g = 0; g < config.gates(); ++g) slot[g] = from_x(g, u) + from_h(g, u, h);
      std::copy_n(slot, 3, three);
      const auto run = peep ? cell<Lstm<true>> : cell<Lstm<false>>;
      const auto run_coupled = peep ? cell<Lstm<true, true>> : cell<Lstm<false, true>>;
      const State<double> state = config.coupled() ? run_coupled(three, 0, c[u], peep, u, H, config.clip)
                                                   : run(slot, 0, c[u], peep, u, H, config.clip);
      m[u] = state.h;
      c[u] = state.c;
    } else if (config.cell == CellKind::gru) {
      double slot[4] = {from_x(0, u) + from_h(0, u, h), from_x(1, u) + from_h(1, u, h), from_x(2, u),
                        from_h(2, u, h)};
      m[u] = cell<Gru>(slot, h[u], 0, nullptr, u, H, 0).h;
    } else {
      double slot[2] = {from_x(0, u) + from_h(0, u, h), from_x(1, u) + from_h(1, u, h)};
      gated[u] = cell<GruResetBeforeGates>(slot, h[u], 0, nullptr, u, H, 0).h;
      z[u] = slot[1];
    }
  }
  if (config.cell == CellKind::gru_reset_before) {
    for (std::int64_t u = 0; u < H; ++u) {
      double slot[2] = {z[u], from_x(2, u) + from_h(2, u, gated)};
      m[u] = cell<GruResetBeforeCandidate>(slot, h[u], 0, nullptr, u, H, 0).h;
    }
  }
  if (!w_hr) {
    h = m;
    return;
  }
  for (std::int64_t p = 0; p < R; ++p) h[p] = dot(&(*w_hr)[p * H], m.data(), H);
}

double join(Merge merge, double a, double b) {
  switch (merge) {
    case Merge::sum:
      return a + b;
    case Merge::mean:
      return (a + b) / 2;
    case Merge::max:
      return std::max(a, b);
    default:
      return a * b;
  }
}

Result naive(const Case& c) {
  const Config& config = c.config;
  const std::int64_t T = c.steps, B = c.batch, D = config.directions();
  const std::int64_t R = config.state_size(), H = config.hidden_size;
  Result result{{}, Array(c.chains() * B * R), Array(c.chains() * B * H)};
  const std::size_t each = parameters_of(config).size() / static_cast<std::size_t>(c.chains());
  Array input = c.x;
  std::int64_t inputs = config.input_size;
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::int64_t width = config.output_size();
    Array output(T * B * width);
    for (std::int64_t d = 0; d < D; ++d) {
      const std::int64_t chain = layer * D + d;
      for (std::int64_t b = 0; b < B; ++b) {
        const std::int64_t length = c.lengths.empty() ? T : c.lengths[b];
        const std::int64_t row = chain * B + b;
        Array h(c.h0.begin() + row * R, c.h0.begin() + (row + 1) * R);
        Array cs(c.c0.begin() + row * H, c.c0.begin() + (row + 1) * H);
        for (std::int64_t s = 0; s < length; ++s) {
          const std::int64_t t = d ? length - 1 - s : s;
          const std::int64_t cut = d ? t + 1 : t;
          if (!c.resets.empty() && cut < length && c.resets[cut * B + b]) {
            h.assign(R, 0);
            cs.assign(H, 0);
          }
          naive_step(config, &c.parameters[chain * each], &input[(t * B + b) * inputs], inputs, h, cs);
          double* y = &output[(t * B + b) * width];
          for (std::int64_t i = 0; i < R; ++i) {
            if (config.merge == Merge::concat) {
              y[d * R + i] = h[i];
            } else {
              y[i] = d ? join(config.merge, y[i], h[i]) : h[i];
            }
          }
        }
        std::copy(h.begin(), h.end(), result.hn.begin() + row * R);
        std::copy(cs.begin(), cs.end(), result.cn.begin() + row * H);
      }
    }
    if (config.residual && inputs == width) {
      for (std::int64_t t = 0; t < T; ++t) {
        for (std::int64_t b = 0; b < B; ++b) {
          if (t >= (c.lengths.empty() ? T : c.lengths[b])) continue;
          for (std::int64_t i = 0; i < width; ++i)
            output[(t * B + b) * width + i] += input[(t * B + b) * width + i];
        }
      }
    }
    input = std::move(output);
    inputs = width;
  }
  result.y = std::move(input);
  return result;
}

// ---- the engine -------------------------------------------------------------------------------------

// Elements `gap` apart, the last one at the very end of the buffer.
template <class T>
std::vector<T> spread(const Array& values, std::int64_t gap) {
  std::vector<T> out(values.empty() ? 0 : (values.size() - 1) * gap + 1);
  for (std::size_t i = 0; i < values.size(); ++i) out[i * gap] = static_cast<T>(values[i]);
  return out;
}

template <class T>
View view(const std::vector<T>& data, std::int64_t gap, std::int64_t middle, std::int64_t last) {
  const std::int64_t size = gap * sizeof(T);
  return {reinterpret_cast<const char*>(data.data()), {middle * last * size, last * size, size}};
}

template <class T>
Result run(const Case& c, std::int64_t gap) {
  const Config& config = c.config;
  const auto network = make_cpu_network<T>(config);
  std::vector<std::vector<T>> parameters;
  std::vector<const T*> pointers;
  for (const Array& parameter : c.parameters) {
    parameters.push_back(spread<T>(parameter, 1));
    pointers.push_back(parameters.back().data());
  }
  const auto weights = network->pack(pointers.data());
  const auto workspace = network->make_workspace();
  const std::int64_t R = config.state_size(), H = config.hidden_size, width = config.output_size();
  const auto x = spread<T>(c.x, gap), h0 = spread<T>(c.h0, gap), c0 = spread<T>(c.c0, gap);
  std::vector<T> y(c.steps * c.batch * width), hn(c.chains() * c.batch * R), cn(c.chains() * c.batch * H);
  Forward<T> call;
  call.steps = c.steps;
  call.batch = c.batch;
  call.x = view(x, gap, c.batch, config.input_size);
  call.h0 = view(h0, gap, c.batch, R);
  call.c0 = view(c0, gap, c.batch, H);
  call.lengths = c.lengths.empty() ? nullptr : c.lengths.data();
  if (!c.resets.empty()) call.resets = {c.resets.data(), {c.batch, 1, 0}};
  call.y = y.data();
  call.y_step = c.batch * width;
  call.y_row = width;
  call.hn = hn.data();
  call.cn = cn.data();
  call.noise = c.noise;
  Storage scratch;
  if (c.noise.weight_drop > 0) {
    call.parameters = pointers.data();
    call.scratch = scratch.reserve(network->scratch_bytes());
  }
  for (int again = 0; again < 2; ++again) network->forward(weights.get(), *workspace, call);
  if (!config.has_cell_state()) cn.assign(cn.size(), T(0));
  return {{y.begin(), y.end()}, {hn.begin(), hn.end()}, {cn.begin(), cn.end()}};
}

bool takes_single_steps(const Case& c) {
  const Config& config = c.config;
  return c.steps == 1 && !config.layer_norm && !c.noise.is_random() && c.lengths.empty() &&
         c.resets.empty() && c.chains() == 1 && !config.proj_size && !config.residual &&
         !config.has_peephole() && config.cell != CellKind::gru_reset_before;
}

template <class T>
double dot(const std::vector<T>& gradient, const Array& direction) {
  double sum = 0;
  for (std::size_t i = 0; i < direction.size(); ++i) sum += static_cast<double>(gradient[i]) * direction[i];
  return sum;
}

// The derivative of the probe along its direction by backward, with a retained tape and then without; of a
// single step also with gradients of weights that are added up over two calls, halved.
template <class T>
std::vector<double> run_backward(const Case& c, const Probe& probe, Result& result) {
  const Config& config = c.config;
  const auto network = make_cpu_network<T>(config);
  std::vector<std::vector<T>> parameters, gradients;
  std::vector<const T*> pointers;
  std::vector<T*> gradient_pointers;
  const std::vector<std::int64_t> rooms = network->gradient_rooms();
  for (std::size_t i = 0; i < c.parameters.size(); ++i) {
    parameters.push_back(spread<T>(c.parameters[i], 1));
    pointers.push_back(parameters.back().data());
    gradients.emplace_back(rooms[i]);
    gradient_pointers.push_back(gradients.back().data());
  }
  const auto workspace = network->make_workspace();
  const auto tape = network->make_tape();
  const std::int64_t R = config.state_size(), H = config.hidden_size, width = config.output_size();
  const auto x = spread<T>(c.x, 1), h0 = spread<T>(c.h0, 1), c0 = spread<T>(c.c0, 1);
  std::vector<T> y(c.steps * c.batch * width), hn(c.chains() * c.batch * R), cn(c.chains() * c.batch * H);
  Storage scratch;
  scratch.reserve(network->scratch_bytes());
  Forward<T> call;
  call.steps = c.steps;
  call.batch = c.batch;
  call.x = view(x, 1, c.batch, config.input_size);
  call.h0 = view(h0, 1, c.batch, R);
  call.c0 = view(c0, 1, c.batch, H);
  call.lengths = c.lengths.empty() ? nullptr : c.lengths.data();
  if (!c.resets.empty()) call.resets = {c.resets.data(), {c.batch, 1, 0}};
  call.y = y.data();
  call.y_step = c.batch * width;
  call.y_row = width;
  call.hn = hn.data();
  call.cn = cn.data();
  call.tape = tape.get();
  call.parameters = pointers.data();
  call.scratch = scratch.data();
  call.noise = c.noise;
  network->forward(nullptr, *workspace, call);
  if (!config.has_cell_state()) cn.assign(cn.size(), T(0));
  result = {{y.begin(), y.end()}, {hn.begin(), hn.end()}, {cn.begin(), cn.end()}};

  const auto grad_y = spread<T>(probe.weights.y, 1);
  const auto grad_hn = spread<T>(probe.weights.hn, 1), grad_cn = spread<T>(probe.weights.cn, 1);
  std::vector<T> grad_x(x.size()), grad_h0(h0.size()), grad_c0(c0.size());
  Backward<T> backward;
  backward.parameters = pointers.data();
  backward.grad_y = grad_y.data();
  backward.grad_y_step = c.batch * width;
  backward.grad_y_row = width;
  backward.grad_hn = grad_hn.data();
  backward.grad_cn = grad_cn.data();
  backward.grad_x = grad_x.data();
  backward.grad_x_step = c.batch * config.input_size;
  backward.grad_x_row = config.input_size;
  backward.grad_h0 = grad_h0.data();
  backward.grad_c0 = grad_c0.data();
  backward.gradients = gradient_pointers.data();
  std::vector<double> derivatives;
  for (const bool retain : {true, false}) {
    backward.retain = retain;
    network->backward(*tape, *workspace, backward);
    double derivative = dot(grad_x, probe.x) + dot(grad_h0, probe.h0) + dot(grad_c0, probe.c0);
    for (std::size_t i = 0; i < gradients.size(); ++i) derivative += dot(gradients[i], probe.parameters[i]);
    derivatives.push_back(derivative);
  }
  if (!takes_single_steps(c)) return derivatives;
  const auto steps = network->make_step_gradients();
  call.guard = false;
  backward.steps = steps.get();
  backward.gradients = nullptr;
  for (int again = 0; again < 2; ++again) {
    network->forward(nullptr, *workspace, call);
    network->backward(*tape, *workspace, backward);
    backward.parameters = nullptr;  // packed by the first
  }
  network->add_up(*steps, *workspace, gradient_pointers.data());
  double derivative = dot(grad_x, probe.x) + dot(grad_h0, probe.h0) + dot(grad_c0, probe.c0);
  for (std::size_t i = 0; i < gradients.size(); ++i) derivative += dot(gradients[i], probe.parameters[i]) / 2;
  derivatives.push_back(derivative);
  return derivatives;
}

std::mt19937 generator(20);

Array random_array(std::int64_t n) {
  std::uniform_real_distribution<double> uniform(-0.7, 0.7);
  Array values(n);
  // Exact in float32, so that both precisions are given the same problem.
  for (double& value : values) value = static_cast<float>(uniform(generator));
  return values;
}

Case random_case(const Config& config, std::int64_t steps, std::int64_t batch, bool lengths, bool resets) {
  Case c;
  c.config = config;
  c.steps = steps;
  c.batch = batch;
  for (const Parameter& parameter : parameters_of(config)) {
    std::int64_t size = 1;
    for (const std::int64_t axis : parameter.shape) size *= axis;
    c.parameters.push_back(random_array(size));
    // Larger recurrent weights make a chaotic network, which no tolerance fits.
    const float scale = 1 / std::sqrt(static_cast<float>(parameter.shape.back()));
    if (parameter.shape.size() != 2) continue;
    for (double& weight : c.parameters.back()) weight = static_cast<float>(weight) * scale;
  }
  c.x = random_array(steps * batch * config.input_size);
  c.h0 = random_array(c.chains() * batch * config.state_size());
  c.c0 = random_array(c.chains() * batch * config.hidden_size);
  if (!config.has_cell_state()) c.c0.assign(c.c0.size(), 0);
  for (std::int64_t b = 0; lengths && b < batch; ++b) c.lengths.push_back(generator() % (steps + 1));
  for (std::int64_t i = 0; resets && i < steps * batch; ++i) c.resets.push_back(generator() % 4 == 0);
  return c;
}

Probe random_probe(const Case& c) {
  const auto like = [](const Array& array) { return random_array(static_cast<std::int64_t>(array.size())); };
  Probe probe;
  const std::int64_t rows = c.chains() * c.batch;
  probe.weights.y = random_array(c.steps * c.batch * c.config.output_size());
  probe.weights.hn = random_array(rows * c.config.state_size());
  probe.weights.cn = random_array(rows * c.config.hidden_size);
  if (!c.config.has_cell_state()) probe.weights.cn.assign(probe.weights.cn.size(), 0);
  for (const Array& parameter : c.parameters) probe.parameters.push_back(like(parameter));
  probe.x = like(c.x);
  probe.h0 = like(c.h0);
  probe.c0 = like(c.c0);
  if (!c.config.has_cell_state()) probe.c0.assign(probe.c0.size(), 0);
  return probe;
}

// By central differences of what `evaluate` makes of a case.
template <class Evaluate>
double difference(const Case& c, const Probe& probe, const Evaluate& evaluate) {
  // With a layer norm of few units, third derivatives are large.
  const double step = c.config.layer_norm ? 1e-7 : 1e-6;
  const auto value_at = [&](double distance) {
    Case moved = c;
    const auto move = [&](Array& array, const Array& direction) {
      for (std::size_t i = 0; i < array.size(); ++i) array[i] += distance * direction[i];
    };
    for (std::size_t i = 0; i < c.parameters.size(); ++i) move(moved.parameters[i], probe.parameters[i]);
    move(moved.x, probe.x);
    move(moved.h0, probe.h0);
    move(moved.c0, probe.c0);
    const Result result = evaluate(moved);
    return dot(result.y, probe.weights.y) + dot(result.hn, probe.weights.hn) +
           dot(result.cn, probe.weights.cn);
  };
  return (value_at(step) - value_at(-step)) / (2 * step);
}

double naive_derivative(const Case& c, const Probe& probe) { return difference(c, probe, naive); }

int failures = 0;

void compare(const Case& c, const char* what, const Array& got, const Array& expected, double tolerance) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (std::abs(got[i] - expected[i]) <= tolerance * std::max(1.0, std::abs(expected[i]))) continue;
    std::printf("FAILED %s %s: H %lld P %lld L %lld D %lld T %lld B %lld threads %d: [%zu] %g, not %g\n",
                name_of(c.config.cell), what, static_cast<long long>(c.config.hidden_size),
                static_cast<long long>(c.config.proj_size), static_cast<long long>(c.config.num_layers),
                static_cast<long long>(c.config.directions()), static_cast<long long>(c.steps),
                static_cast<long long>(c.batch), num_threads(), i, got[i], expected[i]);
    ++failures;
    return;
  }
}

template <class T>
void check(const Case& c, const Result& expected, std::int64_t gap) {
  const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-13;
  const Result got = run<T>(c, gap);
  compare(c, "y", got.y, expected.y, tolerance);
  compare(c, "h_n", got.hn, expected.hn, tolerance);
  compare(c, "c_n", got.cn, expected.cn, tolerance);
}

// Relative to the number of terms in the sums, of which each is below 1.
template <class T>
void check_backward(const Case& c, const Probe& probe, const Result& expected, double derivative) {
  Result result;
  const std::vector<double> got = run_backward<T>(c, probe, result);
  compare(c, "y with a tape", result.y, expected.y, sizeof(T) == 4 ? 1e-5 : 1e-13);
  const double terms = static_cast<double>((c.steps * c.config.gates() + c.chains()) * c.batch) *
                       static_cast<double>(c.config.hidden_size);
  const double scale = 1 + std::sqrt(terms);
  const double tolerance = scale * (sizeof(T) == 4 ? 2e-6 : 1e-8);
  compare(c, "derivative", {got[0]}, {derivative}, tolerance);
  compare(c, "derivative after a retained tape", {got[1]}, {got[0]}, 0);
  if (got.size() > 2) compare(c, "derivative of steps added up", {got[2]}, {derivative}, tolerance);
}

// Regularised cells, which the naive network does not have: backward against differences of the engine
// itself, and the same results with a tape and without.
void check_regularised(const Case& c) {
  const Probe probe = random_probe(c);
  set_num_threads(1);
  const Result expected = run<double>(c, 1);
  const double derivative = difference(c, probe, [](const Case& moved) { return run<double>(moved, 1); });
  for (const int threads : {1, 2, 5}) {
    set_num_threads(threads);
    Result result, result_float;
    const std::vector<double> got = run_backward<double>(c, probe, result);
    const double tolerance =
        1e-6 * (1 + std::sqrt(static_cast<double>(c.steps * c.batch * c.config.hidden_size)));
    compare(c, "regularised derivative", {got[0]}, {derivative}, tolerance);
    compare(c, "regularised derivative after a retained tape", {got[1]}, {got[0]}, 0);
    compare(c, "regularised y", result.y, expected.y, 0);
    run_backward<float>(c, probe, result_float);
    compare(c, "regularised y of float", result_float.y, run<float>(c, 1).y, 0);
    compare(c, "regularised y of float and double", result_float.y, expected.y, 1e-3);
  }
}

Noise all_noise(const Config& config) {
  Noise noise;
  noise.dropout = 0.2;
  noise.input_dropout = 0.3;
  noise.recurrent_dropout = 0.25;
  noise.zoneout_h = 0.3;
  noise.zoneout_c = config.has_cell_state() ? 0.4 : 0;
  noise.weight_drop = 0.2;
  noise.training = true;
  return noise;
}

// Sums over k of a[i][k] b[j][k], for matrices whose rows or columns are i and k.
template <class T, class A, class B>
void compare_product(const char* what, const AffineShape& shape, const std::vector<T>& got, std::int64_t rows,
                     std::int64_t columns, std::int64_t terms, const A& a, const B& b) {
  const double tolerance = (sizeof(T) == 4 ? 1e-5 : 1e-14) * static_cast<double>(terms + 1);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      double expected = 0;
      for (std::int64_t k = 0; k < terms; ++k) expected += double(a(i, k)) * double(b(j, k));
      if (std::abs(double(got[static_cast<std::size_t>(i * columns + j)]) - expected) <= tolerance) continue;
      std::printf("affine %s, rows %lld columns %lld units %lld: wrong at %lld, %lld\n", what,
                  static_cast<long long>(shape.rows), static_cast<long long>(shape.columns),
                  static_cast<long long>(shape.units), static_cast<long long>(i), static_cast<long long>(j));
      ++failures;
      return;
    }
  }
}

template <class T>
void check_affine(const AffineShape& shape) {
  const auto draw = [](std::int64_t size) {
    std::uniform_real_distribution<double> uniform(-1, 1);
    std::vector<T> values(static_cast<std::size_t>(size));
    for (T& value : values) value = static_cast<T>(uniform(generator));
    return values;
  };
  const auto [rows, columns, units] = shape;
  const std::vector<T> x = draw(rows * columns), weight = draw(units * columns), grad = draw(rows * units);
  const auto at = [](const std::vector<T>& matrix, std::int64_t width) {
    return [&matrix, width](std::int64_t i, std::int64_t k) {
      return matrix[static_cast<std::size_t>(i * width + k)];
    };
  };
  const auto across = [](const std::vector<T>& matrix, std::int64_t width) {
    return [&matrix, width](std::int64_t i, std::int64_t k) {
      return matrix[static_cast<std::size_t>(k * width + i)];
    };
  };
  std::vector<T> y = draw(rows * units), grad_x = draw(rows * columns), grad_weight = draw(units * columns),
                 grad_bias = draw(units);
  affine<T>(shape, x.data(), weight.data(), nullptr, y.data());
  compare_product("y", shape, y, rows, units, columns, at(x, columns), at(weight, columns));
  affine_backward<T>(shape, x.data(), weight.data(), grad.data(), grad_x.data(), grad_weight.data(),
                     grad_bias.data());
  compare_product("grad_x", shape, grad_x, rows, columns, units, at(grad, units), across(weight, columns));
  compare_product("grad_weight", shape, grad_weight, units, columns, rows, across(grad, units),
                  across(x, columns));
  const auto one = [](std::int64_t, std::int64_t) { return T(1); };
  compare_product("grad_bias", shape, grad_bias, units, 1, rows, across(grad, units), one);
  const std::vector<T> bias = draw(units);
  affine<T>(shape, x.data(), weight.data(), bias.data(), y.data());
  for (std::size_t i = 0; i < y.size(); ++i) y[i] -= bias[i % static_cast<std::size_t>(units)];
  compare_product("y with bias", shape, y, rows, units, columns, at(x, columns), at(weight, columns));
}

// Optimizers element by element, in double precision with the rounding of float in between.
template <class T>
void check_updates(std::int64_t n) {
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::vector<std::vector<T>> arrays(5, std::vector<T>(static_cast<std::size_t>(n)));
  for (std::vector<T>& array : arrays) {
    for (T& value : array) value = static_cast<T>(uniform(generator));
  }
  for (T& value : arrays[3]) value = std::abs(value);  // averages of squares
  for (T& value : arrays[4]) value = std::abs(value);
  const double tolerance = sizeof(T) == 4 ? 2e-5 : 1e-13;
  const auto gradient = [](double p, double g) {
    g = std::clamp(0.7 * g, -0.5, 0.5);
    return g + 0.1 * ((p > 0) - (p < 0)) + 0.2 * p;
  };
  const auto compare_each = [&](const char* what, const std::vector<T>& got, const auto& expected) {
    for (std::size_t i = 0; i < got.size(); ++i) {
      if (std::abs(double(got[i]) - expected(i)) <= tolerance) continue;
      std::printf("update %s of %lld elements: wrong at %zu\n", what, static_cast<long long>(n), i);
      ++failures;
      return;
    }
  };
  const auto run = [&](const char* what, const auto& update, const auto& expected) {
    std::vector<std::vector<T>> now = arrays;
    update(Update<T>{n, now[0].data(), now[1].data(), 0.7, 0.5, 0.1, 0.2, 0.01}, now);
    compare_each(what, now[0], [&](std::size_t i) {
      const double p = arrays[0][i];
      return expected(p, gradient(p, arrays[1][i]), double(arrays[2][i]), double(arrays[3][i]),
                      double(arrays[4][i]));
    });
  };
  run(
      "sgd", [](const Update<T>& u, auto&) { sgd<T>(u, nullptr, 0, false); },
      [](double p, double g, double, double, double) { return p - 0.01 * g; });
  run(
      "sgd, Nesterov", [](const Update<T>& u, auto& a) { sgd<T>(u, a[2].data(), 0.9, true); },
      [](double p, double g, double v, double, double) { return p - 0.01 * (g + 0.9 * (0.9 * v + g)); });
  run(
      "rmsprop",
      [](const Update<T>& u, auto& a) { rmsprop<T>(u, a[3].data(), nullptr, a[2].data(), 0.9, 0.1, 0.5); },
      [](double p, double g, double v, double s, double) {
        return p - 0.01 * (0.5 * v + g / (std::sqrt(0.9 * s + 0.1 * g * g) + 0.1));
      });
  run(
      "adam",
      [](const Update<T>& u, auto& a) {
        adam<T>(u, a[2].data(), a[3].data(), a[4].data(), 0.99, 0.9, 0.8, 0.1, 0.5, 0.25);
      },
      [](double p, double g, double m, double s, double most) {
        most = std::max(most, 0.8 * s + 0.2 * g * g);
        return 0.99 * p - 0.02 * (0.9 * m + 0.1 * g) / (std::sqrt(most) / 0.5 + 0.1);
      });
  double squares = 0;
  for (const T value : arrays[0]) squares += double(value) * double(value);
  if (std::abs(sum_of_squares<T>(n, arrays[0].data()) - squares) > 1e-9 * (squares + 1)) {
    std::printf("sum of squares of %lld elements: wrong\n", static_cast<long long>(n));
    ++failures;
  }
}

}  // namespace

int main() {
  int cases = 0;
  for (const AffineShape& shape : {AffineShape{1, 1, 1},
                                   {5, 3, 7},
                                   {65, 17, 33},
                                   {130, 40, 95},
                                   {700, 20, 150},
                                   {3, 0, 4},
                                   {0, 5, 4},
                                   {4, 5, 0},
                                   {9, 1100, 3}}) {
    for (const int threads : {1, 2, 3, 5}) {
      set_num_threads(threads);
      check_affine<float>(shape);
      check_affine<double>(shape);
    }
    ++cases;
  }
  for (const std::int64_t n : {0, 1, 7, 1024, 1025, 20000, 100003}) {
    for (const int threads : {1, 3}) {
      set_num_threads(threads);
      check_updates<float>(n);
      check_updates<double>(n);
    }
    ++cases;
  }
  std::vector<Case> kept;
  for (int cell = 0; cell < static_cast<int>(CellKind::count); ++cell) {
    for (const std::int64_t hidden : {1, 15, 17, 70}) {
      for (int variant = 0; variant < 12; ++variant) {
        Config config;
        config.cell = static_cast<CellKind>(cell);
        config.hidden_size = hidden;
        config.input_size = 1 + static_cast<std::int64_t>(generator() % 20);
        config.num_layers = 1 + variant % 3;
        config.bidirectional = variant % 2;
        config.bias = variant % 5 != 0;
        config.merge = static_cast<Merge>(variant % static_cast<int>(Merge::count));
        config.residual = variant % 3 == 1;
        if (config.has_cell_state() && variant % 4 >= 2 && hidden > 1) config.proj_size = 1 + hidden / 2;
        if (config.has_cell_state() && variant % 3 == 0) config.clip = 0.25;
        if (config.residual) config.input_size = config.output_size();
        const std::int64_t steps = variant % 6 == 5 ? 0 : 1 + static_cast<std::int64_t>(generator() % 9);
        const std::int64_t batch = variant % 7 == 6 ? 0 : 1 + static_cast<std::int64_t>(generator() % 14);
        const Case c = random_case(config, steps, batch, variant % 4 == 1, variant % 3 == 2);
        const Result expected = naive(c);
        const Probe probe = random_probe(c);
        const double derivative = naive_derivative(c, probe);
        for (const int threads : {1, 2, 3, 5}) {
          set_num_threads(threads);
          check_backward<float>(c, probe, expected, derivative);
          check_backward<double>(c, probe, expected, derivative);
          check<float>(c, expected, 1);
          check<double>(c, expected, 1 + variant % 3);
        }
        ++cases;
      }
    }
    for (const std::int64_t batch : {1, 9}) {
      Config single;
      single.cell = static_cast<CellKind>(cell);
      single.input_size = 21;
      single.hidden_size = 75;
      const Case c = random_case(single, 1, batch, false, false);
      const Result expected = naive(c);
      const Probe probe = random_probe(c);
      const double derivative = naive_derivative(c, probe);
      for (const int threads : {1, 3}) {
        set_num_threads(threads);
        check_backward<float>(c, probe, expected, derivative);
        check_backward<double>(c, probe, expected, derivative);
      }
      ++cases;
    }
    // Large enough that several threads take part.
    Config config;
    config.cell = static_cast<CellKind>(cell);
    config.input_size = config.hidden_size = 160;
    config.bidirectional = cell % 2;
    kept.push_back(random_case(config, 12, 5, true, true));
  }
  std::vector<Result> expected;
  std::vector<Probe> probes;
  std::vector<double> derivatives;
  for (const Case& c : kept) {
    expected.push_back(naive(c));
    probes.push_back(random_probe(c));
    derivatives.push_back(naive_derivative(c, probes.back()));
  }
  for (const int threads : {2, 4}) {
    set_num_threads(threads);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      check<float>(kept[i], expected[i], 1);
      check_backward<float>(kept[i], probes[i], expected[i], derivatives[i]);
    }
  }
  // Calls from several threads at once: one gets the workers, the others run alone.
  std::vector<std::thread> callers;
  std::vector<Result> results(4);
  std::vector<double> concurrent(4);
  for (std::size_t i = 0; i < results.size(); ++i) {
    callers.emplace_back([&, i] {
      results[i] = run<float>(kept[i], 1);
      Result ignored;
      concurrent[i] = run_backward<float>(kept[i], probes[i], ignored)[0];
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (std::size_t i = 0; i < results.size(); ++i) {
    compare(kept[i], "y of concurrent calls", results[i].y, expected[i].y, 2e-4);
    compare(kept[i], "derivative of concurrent calls", {concurrent[i]}, {derivatives[i]}, 1e-3);
  }
  for (int cell = 0; cell < static_cast<int>(CellKind::count); ++cell) {
    for (int variant = 0; variant < 8; ++variant) {
      Config config;
      config.cell = static_cast<CellKind>(cell);
      config.hidden_size = variant % 2 ? 33 : 7;
      config.input_size = 5;
      config.num_layers = 1 + variant % 3;
      config.bidirectional = variant % 4 >= 2;
      config.layer_norm = variant != 3;
      config.merge = variant % 3 ? Merge::concat : Merge::mul;
      if (config.has_cell_state() && variant % 4 == 1) config.proj_size = 4;
      config.residual = variant % 3 == 2;
      Case c = random_case(config, 1 + variant % 5, 1 + 5 * (variant % 2), variant >= 4, variant % 4 == 1);
      if (variant > 1) c.noise = all_noise(config);
      check_regularised(c);
      ++cases;
    }
  }
  std::printf("%s: %d passed, %d failed\n", kernel_table().isa, cases - failures, failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
