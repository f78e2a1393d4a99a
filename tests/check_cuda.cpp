// The CUDA driver without a GPU: its network on an emulated device against the CPU network, on the same
// random inputs. All cells and options, forward and backward; and the device's random numbers bit for bit
// against the CPU's masks. Inputs past a row's length are NaN, so that whatever reads them is seen.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>

#include "device_emulated.h"
#include "dispatch.h"
#include "network.h"
#include "parallel.h"
#include "philox.h"
#include "planner.h"
#include "runtime.h"
#include "steps.h"

using namespace fastrnn;
using emulated::Settings;

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
  Array grad_y, grad_hn, grad_cn, grad_h_all, grad_c_all;
  bool has_state = true, has_grad_y = true, has_grad_state = true, has_all = false, has_grad_x = true;

  std::int64_t chains() const { return config.num_layers * config.directions(); }
  std::int64_t length(std::int64_t b) const { return lengths.empty() ? steps : lengths[b]; }
};

// By name.
struct Result {
  std::string name;
  Array values;
};
using Results = std::vector<Result>;

std::mt19937 generator(9);
std::int64_t below(std::int64_t n) {
  return static_cast<std::int64_t>(generator() % static_cast<std::uint64_t>(n));
}

Array random_array(std::int64_t n) {
  std::uniform_real_distribution<double> uniform(-0.7, 0.7);
  Array values(static_cast<std::size_t>(n));
  // Exact in float32, so that both precisions are given the same problem.
  for (double& value : values) value = static_cast<float>(uniform(generator));
  return values;
}

// Rows (t, b) past the lengths become NaN.
void spoil_padding(const Case& c, Array& rows) {
  if (c.steps == 0 || c.batch == 0) return;
  const std::int64_t each = static_cast<std::int64_t>(rows.size()) / (c.steps * c.batch);
  for (std::int64_t row = 0; row < c.steps * c.batch; ++row) {
    if (row / c.batch < c.length(row % c.batch)) continue;
    std::fill_n(rows.begin() + row * each, each, std::nan(""));
  }
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
  const std::int64_t rows = c.chains() * batch, R = config.state_size(), H = config.hidden_size;
  for (std::int64_t b = 0; lengths && b < batch; ++b) c.lengths.push_back(below(steps + 1));
  for (std::int64_t i = 0; resets && i < steps * batch; ++i) c.resets.push_back(below(4) == 0);
  c.x = random_array(steps * batch * config.input_size);
  c.h0 = random_array(rows * R);
  c.c0 = random_array(config.has_cell_state() ? rows * H : 0);
  c.grad_y = random_array(steps * batch * config.output_size());
  c.grad_hn = random_array(rows * R);
  c.grad_cn = random_array(static_cast<std::int64_t>(c.c0.size()));
  c.grad_h_all = random_array(rows * steps * R);
  c.grad_c_all = random_array(static_cast<std::int64_t>(c.c0.size()) * steps);
  spoil_padding(c, c.x);
  spoil_padding(c, c.grad_y);
  for (std::int64_t row = 0; row < rows; ++row) {  // a state that no step takes
    if (c.length(row % batch) > 0) continue;
    std::fill_n(c.h0.begin() + row * R, R, std::nan(""));
    if (config.has_cell_state()) std::fill_n(c.c0.begin() + row * H, H, std::nan(""));
  }
  return c;
}

template <class T>
std::vector<T> as(const Array& values) {
  std::vector<T> rounded;
  rounded.reserve(values.size());
  for (const double value : values) rounded.push_back(static_cast<T>(static_cast<MathOf<T>>(value)));
  return rounded;
}
template <class T>
Array as_double(const std::vector<T>& values) {
  Array wide;
  wide.reserve(values.size());
  for (const T& value : values) wide.push_back(static_cast<double>(static_cast<MathOf<T>>(value)));
  return wide;
}
template <class T>
View view(const std::vector<T>& data, std::int64_t middle, std::int64_t last) {
  constexpr std::int64_t size = sizeof(T);
  return {reinterpret_cast<const char*>(data.data()), {middle * last * size, last * size, size}};
}

// Memory that a caller lends, full of NaN.
class Lent {
 public:
  Lent() = default;
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;
  ~Lent() { release(); }
  void resize(std::size_t bytes) {
    release();
    bytes_ = bytes;
    data_ = bytes ? ::operator new(bytes, alignment) : nullptr;
    if (bytes) std::memset(data_, 0xFF, bytes);
  }
  DeviceBlock block() const { return {data_, bytes_}; }

 private:
  static constexpr std::align_val_t alignment{256};
  void release() { ::operator delete(data_, alignment); }
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// One network on one case: forward without a tape and with one, backward with the tape retained and not.
template <class T>
class Run {
 public:
  Run(const Network<T>& network, const Case& c, bool lends)
      : network_(network), case_(c), config_(c.config), lends_(lends) {
    for (const Array& parameter : c.parameters) {
      parameters_.push_back(as<T>(parameter));
      pointers_.push_back(parameters_.back().data());
    }
    x_ = as<T>(c.x);
    h0_ = as<T>(c.h0);
    c0_ = as<T>(c.c0);
    workspace_ = network.make_workspace();
  }

  Results forward(Tape<T>* tape) {
    const std::int64_t R = config_.state_size(), H = config_.hidden_size, B = case_.batch;
    const std::int64_t width = config_.output_size(), rows = case_.chains() * B;
    const std::int64_t cell = config_.has_cell_state() ? rows * H : 0;
    const T unset(std::nanf(""));
    y_.assign(case_.steps * B * width, unset);
    std::vector<T> hn(rows * R, unset), cn(cell, unset), h_all, c_all;
    Forward<T> call;
    call.steps = case_.steps;
    call.batch = B;
    call.x = view(x_, B, config_.input_size);
    if (case_.has_state) {
      call.h0 = view(h0_, B, R);
      if (config_.has_cell_state()) call.c0 = view(c0_, B, H);
    }
    call.lengths = case_.lengths.empty() ? nullptr : case_.lengths.data();
    if (!case_.resets.empty()) call.resets = {case_.resets.data(), {B, 1, 0}};
    call.noise = case_.noise;
    call.seed = 0x123456789ABCDEFu;
    call.y = y_.data();
    call.y_step = B * width;
    call.y_row = width;
    call.hn = hn.data();
    call.cn = cn.data();
    if (case_.has_all) {
      h_all.assign(rows * case_.steps * R, T(0));
      c_all.assign(cell * case_.steps, T(0));
      call.h_all = h_all.data();
      if (config_.has_cell_state()) call.c_all = c_all.data();
    }
    Storage scratch;
    scratch.reserve(network_.scratch_bytes() + 1);
    call.parameters = pointers_.data();
    call.scratch = scratch.data();
    call.tape = tape;
    std::unique_ptr<Weights<T>> weights;
    if (const auto* const cuda = dynamic_cast<const CudaNetwork<T>*>(&network_)) {
      lend(*cuda, cuda->workspace_bytes(call, tape != nullptr));
      if (tape) lend(*cuda, *tape, cuda->tape_bytes(call));
    } else if (!tape && case_.noise.weight_drop == 0) {
      weights = network_.pack(pointers_.data());
      call.parameters = nullptr;
    }
    network_.forward(weights.get(), *workspace_, call);
    return {{"y", as_double(y_)},
            {"h_n", as_double(hn)},
            {"c_n", as_double(cn)},
            {"h_all", as_double(h_all)},
            {"c_all", as_double(c_all)}};
  }

  // After forward with the tape.
  Results backward(Tape<T>& tape, bool retain) {
    const std::int64_t R = config_.state_size(), H = config_.hidden_size, B = case_.batch;
    const std::int64_t width = config_.output_size(), rows = case_.chains() * B;
    const T unset(std::nanf(""));
    std::vector<T> grad_x(case_.has_grad_x ? x_.size() : 0, unset), grad_h0(rows * R, unset);
    std::vector<T> grad_c0(config_.has_cell_state() ? rows * H : 0, unset);
    const auto grad_y = as<T>(case_.grad_y), grad_hn = as<T>(case_.grad_hn), grad_cn = as<T>(case_.grad_cn);
    const auto grad_h_all = as<T>(case_.grad_h_all), grad_c_all = as<T>(case_.grad_c_all);
    std::vector<std::vector<T>> gradients;
    std::vector<T*> pointers;
    for (const std::int64_t room : network_.gradient_rooms()) gradients.emplace_back(room, unset);
    for (std::vector<T>& gradient : gradients) pointers.push_back(gradient.data());
    Backward<T> call;
    call.parameters = pointers_.data();
    if (case_.has_grad_y) call.grad_y = grad_y.data();
    call.grad_y_step = B * width;
    call.grad_y_row = width;
    if (case_.has_grad_state) {
      call.grad_hn = grad_hn.data();
      if (config_.has_cell_state()) call.grad_cn = grad_cn.data();
    }
    if (case_.has_all) {
      call.grad_h_all = grad_h_all.data();
      if (config_.has_cell_state()) call.grad_c_all = grad_c_all.data();
    }
    if (case_.has_grad_x) call.grad_x = grad_x.data();
    call.grad_x_step = B * config_.input_size;
    call.grad_x_row = config_.input_size;
    call.grad_h0 = grad_h0.data();
    if (config_.has_cell_state()) call.grad_c0 = grad_c0.data();
    call.gradients = pointers.data();
    call.retain = retain;
    if (const auto* const cuda = dynamic_cast<const CudaNetwork<T>*>(&network_)) {
      lend(*cuda, cuda->workspace_bytes(tape, call));
    }
    network_.backward(tape, *workspace_, call);
    Results results{
        {"grad_x", as_double(grad_x)}, {"grad_h0", as_double(grad_h0)}, {"grad_c0", as_double(grad_c0)}};
    const std::vector<Parameter> names = parameters_of(config_);
    for (std::size_t i = 0; i < names.size(); ++i) {
      gradients[i].resize(case_.parameters[i].size());
      results.push_back({names[i].name, as_double(gradients[i])});
    }
    return results;
  }

 private:
  // Of exactly the size, so that a sanitizer sees what goes beyond it; or none, and the call takes its own.
  void lend(const CudaNetwork<T>& network, std::size_t bytes) {
    if (!lends_) return;
    lent_.resize(bytes);
    network.prepare(*workspace_, {}, lent_.block());
  }
  void lend(const CudaNetwork<T>& network, Tape<T>& tape, std::size_t bytes) {
    if (!lends_) return;
    lent_to_tape_.resize(bytes);
    network.prepare(tape, lent_to_tape_.block());
  }

  const Network<T>& network_;
  const Case& case_;
  const Config& config_;
  const bool lends_;
  Lent lent_, lent_to_tape_;
  std::vector<std::vector<T>> parameters_;
  std::vector<const T*> pointers_;
  std::vector<T> x_, h0_, c0_, y_;
  std::unique_ptr<Workspace> workspace_;
};

int failures = 0, checks = 0;
double largest_error[static_cast<int>(StorageKind::count)] = {};  // in units of the tolerance

void report(const Case& c, StorageKind kind, Policy policy, const char* what, const std::string& name,
            std::size_t i, double got, double expected) {
  const Config& config = c.config;
  const auto number = [](std::int64_t n) { return static_cast<long long>(n); };
  std::printf(
      "FAILED %s by %s, %s %s of %s: I %lld H %lld P %lld L %lld D %lld T %lld B %lld bias %d merge %s "
      "residual %d "
      "norm %d "
      "clip %g lengths %d resets %d noise %g %g %g %g %g %g training %d: [%zu] %.9g, not %.9g\n",
      name_of(kind), name_of(policy), what, name.c_str(), name_of(config.cell), number(config.input_size),
      number(config.hidden_size), number(config.proj_size), number(config.num_layers),
      number(config.directions()), number(c.steps), number(c.batch), config.bias, name_of(config.merge),
      config.residual, config.layer_norm, config.clip, !c.lengths.empty(), !c.resets.empty(), c.noise.dropout,
      c.noise.input_dropout, c.noise.recurrent_dropout, c.noise.zoneout_h, c.noise.zoneout_c,
      c.noise.weight_drop, c.noise.training, i, got, expected);
  ++failures;
}

// Errors relative to the largest value of an array, or 1. Tolerance 0: the same bits.
void compare(const Case& c, StorageKind kind, Policy policy, const char* what, const Results& got,
             const Results& expected, double tolerance) {
  for (std::size_t n = 0; n < expected.size(); ++n) {
    const Array &a = got[n].values, &b = expected[n].values;
    // What a row without steps passes on may be NaN.
    const bool is_state = got[n].name == "h_n" || got[n].name == "c_n";
    double scale = 1;
    for (const double value : b) scale = std::max(scale, std::abs(value));
    for (std::size_t i = 0; i < b.size(); ++i) {
      const double error = std::abs(a[i] - b[i]);
      const bool is_nan = b[i] != b[i];
      const bool same = is_nan ? is_state && a[i] != a[i] : std::memcmp(&a[i], &b[i], sizeof(double)) == 0;
      if (tolerance > 0 && error <= tolerance * scale) {
        double& largest = largest_error[static_cast<int>(kind)];
        largest = std::max(largest, error / (tolerance * scale));
      } else if (!same) {
        report(c, kind, policy, what, got[n].name, i, a[i], b[i]);
        break;
      }
    }
    ++checks;
  }
}

// All numbers of a case as T has them.
template <class T>
Case rounded(Case c) {
  const auto round = [](Array& values) { values = as_double(as<T>(values)); };
  for (Array& parameter : c.parameters) round(parameter);
  for (Array* values :
       {&c.x, &c.h0, &c.c0, &c.grad_y, &c.grad_hn, &c.grad_cn, &c.grad_h_all, &c.grad_c_all}) {
    round(*values);
  }
  return c;
}

// Of a kind's rounding, relative to the number: what is stored, or of tf32 what is multiplied.
double unit_of(StorageKind kind) {
  switch (kind) {
    case StorageKind::bf16:
      return 0x1p-8;
    case StorageKind::fp16:
    case StorageKind::tf32:
      return 0x1p-11;
    case StorageKind::float32:
      return 0x1p-24;
    default:
      return 0x1p-53;
  }
}

struct Tolerance {
  double forward, backward;
};

// In units of the rounding u, for values of about 1. A layer rounds a value three times on its way to the
// output: as the product with x, as h and as the output. Steps contract, W having rows of norm 0.4, so that
// errors of earlier steps fade; those of earlier layers pass: 3 u a layer.
// Backward the gates and their gradients are rounded in the same way, and sums over all rows have errors that
// grow as the root of their number.
Tolerance tolerance_of(const Case& c, StorageKind kind) {
  // A norm of few units magnifies rounding without bound: 1 / sqrt(variance + 1e-5) is up to 316.
  const double magnified = c.config.layer_norm ? 4 : 1;
  const double terms = static_cast<double>(c.steps * c.batch * c.config.gates());
  const double unit = unit_of(kind) * magnified;
  if (kind == StorageKind::float32) return {168 * unit, 17 * unit * (1 + std::sqrt(terms))};
  if (kind == StorageKind::float64) return {900 * unit, 90 * unit * (1 + std::sqrt(terms))};
  const double layers = static_cast<double>(c.config.num_layers);
  return {3 * layers * unit, 3 * layers * unit * (1 + std::sqrt(terms))};
}

// Where a gradient jumps, rounding decides on which side.
bool has_jumps(const Config& config) {
  return config.cell == CellKind::rnn_relu || config.clip < 1e9 ||
         (config.bidirectional && config.merge == Merge::max);
}

// What a CPU network of as much precision or more makes of a case.
struct Expected {
  Results outputs, gradients;
};

template <class T>
Expected expected_of(const Case& c) {
  set_num_threads(1);
  const auto network = make_cpu_network<T>(c.config);
  const auto tape = network->make_tape();
  Run<T> run(*network, c, false);
  Expected expected;
  expected.outputs = run.forward(nullptr);
  run.forward(tape.get());
  expected.gradients = run.backward(*tape, false);
  return expected;
}

// How a network runs a case.
template <class T>
Policy policy_of(const CudaNetwork<T>& network, const Case& c) {
  Forward<T> call;
  call.steps = c.steps;
  call.batch = c.batch;
  call.noise = c.noise;
  const std::vector<std::string> plans = network.plans(0, call, false);
  for (int policy = 0; policy < static_cast<int>(Policy::count); ++policy) {
    const std::string name = name_of(static_cast<Policy>(policy));
    if (plans.at(0).substr(0, name.size()) == name) return static_cast<Policy>(policy);
  }
  throw std::logic_error("plans: expected the name of a policy, got " + plans[0]);
}

int taken[static_cast<int>(Policy::count)] = {};  // cases by policy

template <class T>
void check_policy(const Case& c, StorageKind kind, const Expected& expected, int team_threads,
                  PolicyChoice choice) {
  const emulated::StepsNetwork<EmulatedDevice, T> network(c.config, kind == StorageKind::tf32,
                                                          EmulatedDevice(team_threads), choice);
  const Policy policy = policy_of(network, c);
  if (choice == PolicyChoice::automatic && policy == Policy::steps) return;
  ++taken[static_cast<int>(policy)];
  const Tolerance tolerance = tolerance_of(c, kind);
  Run<T> got(network, c, below(2));
  const Results outputs = got.forward(nullptr);
  compare(c, kind, policy, "inference", outputs, expected.outputs, tolerance.forward);
  compare(c, kind, policy, "inference again", got.forward(nullptr), outputs, 0);
  const auto tape = network.make_tape();
  compare(c, kind, policy, "forward", got.forward(tape.get()), outputs, 0);
  const Results gradients = got.backward(*tape, true);
  const bool is_short = kind != StorageKind::float32 && kind != StorageKind::float64;
  if (!(is_short && has_jumps(c.config))) {
    compare(c, kind, policy, "backward", gradients, expected.gradients, tolerance.backward);
  }
  compare(c, kind, policy, "backward again", got.backward(*tape, false), gradients, 0);
}

// On the same numbers.
template <class T>
void check(const Case& exact, StorageKind kind, int team_threads) {
  const Case c = rounded<T>(exact);
  const Expected expected = expected_of<std::conditional_t<std::is_same_v<T, float>, float, double>>(c);
  check_policy<T>(c, kind, expected, team_threads, PolicyChoice::steps);
  check_policy<T>(c, kind, expected, team_threads, PolicyChoice::automatic);
}

// In double and single precision, and in one of the shorter kinds, each in its turn.
void check_kinds(const Case& c, int team_threads = 1) {
  static int turn = 0;
  check<double>(c, StorageKind::float64, team_threads);
  check<float>(c, StorageKind::float32, team_threads);
  if (++turn % 3 == 0) check<Bfloat16>(c, StorageKind::bf16, team_threads);
  if (turn % 3 == 1) check<Half>(c, StorageKind::fp16, team_threads);
  if (turn % 3 == 2) check<float>(c, StorageKind::tf32, team_threads);
}

Case persistent_case(CellKind cell, std::int64_t hidden, int i) {
  Config config;
  config.cell = cell;
  config.hidden_size = hidden;
  config.input_size = 1 + below(20);
  config.num_layers = 1 + i % 2;
  config.bidirectional = i / 2 % 2;
  config.bias = below(4) != 0;
  if (config.has_cell_state() && i == 1) config.clip = 0.25;
  const std::int64_t steps = i == 4 ? 1 : 2 + below(8);
  Case c = random_case(config, steps, 1 + below(20), i % 3 == 0, i % 3 == 2);
  c.has_state = below(3) != 0;
  c.has_grad_y = below(4) != 0;
  c.has_grad_state = below(3) != 0;
  c.has_all = below(2);
  if (i == 5) {  // what acts outside of the steps
    c.noise.training = true;
    c.noise.dropout = c.noise.input_dropout = c.noise.weight_drop = 0.2;
  }
  return c;
}

// What persistent kernels take: in one block, and on devices with so little memory that it takes several.
int check_persistent(CellKind cell, bool quick) {
  Config config;
  config.cell = cell;
  const DeviceProperties usual = EmulatedDevice::properties(0);
  int cases = 0;
  const auto check_on = [&](const DeviceProperties& device, std::int64_t hidden) {
    EmulatedDevice::properties(0) = device;
    for (int i = 0; i < (quick ? 2 : 6); ++i, ++cases) check_kinds(persistent_case(cell, hidden, i));
    EmulatedDevice::properties(0) = usual;
  };
  for (const std::int64_t hidden : {1, 20, 64}) check_on(usual, hidden);
  for (const int largest_cluster : {8, 1}) {
    for (const std::int64_t shared : {12, 16}) {
      DeviceProperties small = usual;
      small.largest_cluster = largest_cluster;
      small.multiprocessors = 12;
      small.shared_per_block = (config.gates() == 1 ? 6 : shared) * 1024;
      check_on(small, shared == 12 ? 40 : 64);
    }
  }
  return cases;
}

// ---- masks ------------------------------------------------------------------------------------------------

template <class T>
void check_mask(std::uint64_t seed, MaskKind kind, std::int64_t layer, std::int64_t d, double probability) {
  constexpr std::int64_t first = 5, count = 203;
  const std::uint32_t row = 1 + static_cast<std::uint32_t>(below(70)),
                      step = static_cast<std::uint32_t>(below(900));
  std::vector<T> drawn(count);
  MaskArguments<T> mask{};
  mask.out = drawn.data();
  mask.first = first;
  mask.count = count;
  mask.seed = seed;
  mask.row = row;
  mask.step = step;
  mask.stream = stream_of(kind, layer, d);
  mask.probability = probability;
  mask.hit = T(0);
  mask.miss = probability < 1 ? static_cast<T>(1 / (1 - probability)) : T(0);
  kernel_table().of<T>().mask(mask);
  const emulated::Draw draw = emulated::draw_of(seed, kind, probability, layer, d);
  for (std::int64_t i = 0; i < count; ++i) {
    const T factor = draw.factor<T>(step, row, first + i);
    if (std::memcmp(&factor, &drawn[static_cast<std::size_t>(i)], sizeof(T)) == 0) continue;
    std::printf("FAILED mask of %s, probability %g: unit %lld\n", name_of(kind), probability,
                static_cast<long long>(first + i));
    ++failures;
    return;
  }
  ++checks;
}

// ---- what must be refused ---------------------------------------------------------------------------------

template <class Call>
void expect_error(const char* what, const char* said, const Call& call) {
  ++checks;
  try {
    call();
  } catch (const std::exception& error) {
    if (std::strstr(error.what(), said)) return;
    std::printf("FAILED %s: says %s\n", what, error.what());
    ++failures;
    return;
  }
  std::printf("FAILED %s: nothing is thrown\n", what);
  ++failures;
}

void check_lent_memory(const CudaNetwork<float>& network, Workspace& workspace, Forward<float> call) {
  Lent memory;
  const std::size_t bytes = network.workspace_bytes(call, false);
  memory.resize(bytes + 64);
  const auto forward = [&](std::size_t offset, std::size_t lent) {
    network.prepare(workspace, {}, {static_cast<char*>(memory.block().data) + offset, lent});
    network.forward(nullptr, workspace, call);
  };
  expect_error("a small workspace", "workspace: expected", [&] { forward(0, bytes - 1); });
  expect_error("an odd workspace", "workspace: expected memory aligned", [&] { forward(64, bytes); });
  expect_error("a device that is not there", "device: expected 0",
               [&] { network.prepare(workspace, {1, nullptr}, {}); });
  const auto tape = network.make_tape();
  call.tape = tape.get();
  network.prepare(*tape, {memory.block().data, network.tape_bytes(call) - 1});
  expect_error("a small tape", "tape: expected", [&] { network.forward(nullptr, workspace, call); });
  // An error must not leave anything behind.
  network.forward(nullptr, workspace, call);
  ++checks;
}

void check_errors() {
  Config config;
  config.input_size = 3;
  config.hidden_size = 4;
  const emulated::StepsNetwork<EmulatedDevice, float> network(config, false, EmulatedDevice{},
                                                              PolicyChoice::automatic);
  if (cuda_build() == CudaBuild::none) {
    expect_error("a build without CUDA", "FASTRNN_CUDA=ON", [&] { make_cuda_network<float>(config, false); });
    expect_error("a build without CUDA", "FASTRNN_CUDA=ON", [] { cuda_device_count(); });
  }
  expect_error("gradients of steps", "step by step", [&] { network.make_step_gradients(); });
  const auto workspace = network.make_workspace();
  std::vector<float> x(2 * 5 * 3), y(2 * 5 * 4), state(5 * 4);
  Forward<float> call;
  call.steps = 2;
  call.batch = 5;
  call.x = view(x, 5, 3);
  call.y = y.data();
  call.y_step = 5 * 4;
  call.y_row = 4;
  call.hn = call.cn = state.data();
  expect_error("no parameters", "parameters: expected", [&] { network.forward(nullptr, *workspace, call); });
  expect_error("packed weights", "parameters: expected", [&] { network.pack(nullptr); });
  std::vector<std::vector<float>> parameters;
  std::vector<const float*> pointers;
  for (const std::int64_t size : network.gradient_rooms()) parameters.emplace_back(size);
  for (const std::vector<float>& parameter : parameters) pointers.push_back(parameter.data());
  call.parameters = pointers.data();
  check_lent_memory(network, *workspace, call);
  Forward<float> wrong = call;
  wrong.x.stride[1] += 4;
  expect_error("x with gaps", "x: expected a contiguous",
               [&] { network.forward(nullptr, *workspace, wrong); });
  wrong = call;
  std::swap(wrong.y_step, wrong.y_row);
  expect_error("y by rows", "y: expected a contiguous", [&] { network.forward(nullptr, *workspace, wrong); });
}

// ---- plans ------------------------------------------------------------------------------------------------

// A device with less room than the planner expects of it.
class CrampedDevice : public EmulatedDevice {
 public:
  class Turn : public EmulatedDevice::Turn {
   public:
    Turn(int largest_cluster, bool has_grid)
        : EmulatedDevice::Turn(EmulatedDevice()), largest_cluster_(largest_cluster), has_grid_(has_grid) {}
    template <class T, class... Others>
    bool fits(const Plan& plan, const Others&...) {
      ++asked;
      return plan.policy == Policy::cluster ? plan.shape.ranks <= largest_cluster_ : has_grid_;
    }
    int asked = 0;

   private:
    const int largest_cluster_;
    const bool has_grid_;
  };
};

void check_plans() {
  Settings settings;
  settings.config.cell = CellKind::lstm;
  settings.config.hidden_size = 256;
  constexpr std::int64_t steps = 10, batch = 8;
  const auto expect_pass = [&](int largest_cluster, bool has_grid, Policy policy, PolicyChoice choice,
                               bool backward) {
    emulated::Plans<CrampedDevice, Bfloat16> plans(settings, choice);
    CrampedDevice::Turn device(largest_cluster, has_grid);
    const auto plan = plans.plan(device, steps, batch, {}, backward);
    const int asked = device.asked;
    const bool once = plans.plan(device, steps, batch, {}, backward) == plan && device.asked == asked;
    const bool enough = plans.exchange_bytes(steps, batch, {}, backward) >= exchange_bytes(*plan, 1);
    const bool small = plan->policy != Policy::cluster || plan->shape.ranks <= largest_cluster;
    const std::string name = name_of(policy);
    const bool says = plan->why.substr(0, name.size()) == name;
    ++checks;
    if (plan->policy == policy && once && enough && small && says) return;
    std::printf("FAILED plans: clusters of %d, grid %d: %s\n", largest_cluster, has_grid, plan->why.c_str());
    ++failures;
  };
  const auto expect = [&](int largest_cluster, bool has_grid, Policy policy, PolicyChoice choice) {
    for (const bool backward : {false, true})
      expect_pass(largest_cluster, has_grid, policy, choice, backward);
  };
  expect(16, true, Policy::cluster, PolicyChoice::automatic);
  expect(6, true, Policy::cluster, PolicyChoice::automatic);
  expect(0, true, Policy::grid, PolicyChoice::automatic);
  expect(0, false, Policy::steps, PolicyChoice::automatic);
  expect(16, true, Policy::steps, PolicyChoice::steps);
}

// ---- cases ------------------------------------------------------------------------------------------------

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

struct Option {
  const char* name;
  std::function<void(Config&, Noise&)> apply;
};

// One by one, each on its own.
std::vector<Option> options() {
  const auto with_noise = [](auto member) {
    return [member](Config&, Noise& noise) {
      noise.*member = 0.4;
      noise.training = true;
    };
  };
  return {
      {"plain", [](Config&, Noise&) {}},
      {"layers", [](Config& c, Noise&) { c.num_layers = 3; }},
      {"no bias", [](Config& c, Noise&) { c.bias = false; }},
      {"bidirectional", [](Config& c, Noise&) { c.bidirectional = true; }},
      {"projection", [](Config& c, Noise&) { c.proj_size = c.has_cell_state() ? 1 + c.hidden_size / 2 : 0; }},
      {"clip", [](Config& c, Noise&) { c.clip = 0.2; }},
      {"layer norm", [](Config& c, Noise&) { c.layer_norm = true; }},
      {"residual", [](Config& c, Noise&) { c.residual = true; }},
      {"dropout", with_noise(&Noise::dropout)},
      {"input dropout", with_noise(&Noise::input_dropout)},
      {"recurrent dropout", with_noise(&Noise::recurrent_dropout)},
      {"zoneout of h", with_noise(&Noise::zoneout_h)},
      {"zoneout of c", with_noise(&Noise::zoneout_c)},
      {"weight drop", with_noise(&Noise::weight_drop)},
      {"expected zoneout", [](Config&, Noise& noise) { noise.zoneout_h = noise.zoneout_c = 0.3; }},
      {"all noise", [](Config& c, Noise& noise) { noise = all_noise(c); }},
  };
}

void settle(Config& config, Noise& noise) {
  if (config.residual) config.input_size = config.output_size();
  if (!config.has_cell_state()) {
    noise.zoneout_c = 0;
    config.proj_size = 0;
    config.clip = std::numeric_limits<double>::infinity();
  }
}

// Any combination.
Case any_case(CellKind cell, std::int64_t hidden) {
  Config config;
  config.cell = cell;
  config.hidden_size = hidden;
  config.input_size = 1 + below(20);
  config.num_layers = 1 + below(3);
  config.bidirectional = below(2);
  config.bias = below(4) != 0;
  config.merge = static_cast<Merge>(below(static_cast<std::int64_t>(Merge::count)));
  config.residual = below(3) == 0;
  config.layer_norm = below(3) == 0 && hidden > 4;
  if (below(3) == 0) config.proj_size = 1 + below(hidden);
  if (below(3) == 0) config.clip = 0.25;
  Noise noise;
  noise.training = below(2);
  const auto maybe = [&](double p) { return below(3) == 0 ? p : 0; };
  noise.zoneout_h = maybe(0.3);
  noise.zoneout_c = maybe(0.4);
  if (noise.training) {
    noise.dropout = maybe(0.2);
    noise.input_dropout = maybe(0.3);
    noise.recurrent_dropout = maybe(0.25);
    noise.weight_drop = maybe(0.2);
  }
  settle(config, noise);
  const std::int64_t steps = below(12) == 0 ? 0 : 1 + below(9), batch = below(12) == 0 ? 0 : 1 + below(12);
  Case c = random_case(config, steps, batch, below(2), below(2));
  c.noise = noise;
  c.has_state = below(3) != 0;
  c.has_grad_y = below(4) != 0;
  c.has_grad_state = below(3) != 0;
  c.has_grad_x = below(4) != 0;
  c.has_all = below(2);
  return c;
}

}  // namespace

int main() {
  const bool quick = std::getenv("FASTRNN_CHECK_QUICK") != nullptr;  // a sanitizer takes its time
  for (const double probability : {0.0, 1e-9, 0.1, 0.5, 0.999, 1.0}) {
    for (int kind = 0; kind < static_cast<int>(MaskKind::count); ++kind) {
      const std::uint64_t seed = (std::uint64_t{generator()} << 32) | generator();
      check_mask<float>(seed, static_cast<MaskKind>(kind), below(5), below(2), probability);
      check_mask<double>(seed, static_cast<MaskKind>(kind), below(5), below(2), probability);
    }
  }
  check_errors();
  check_plans();
  int cases = 0;
#if defined(__SANITIZE_THREAD__)  // only teams have threads, and its checks are slow
  constexpr bool alone = false;
#else
  constexpr bool alone = true;
#endif
  for (int cell = 0; cell < static_cast<int>(CellKind::count); ++cell) {
    const auto kind = static_cast<CellKind>(cell);
    for (const Option& option : alone ? options() : std::vector<Option>()) {
      for (int merge = 0; merge < static_cast<int>(Merge::count); ++merge) {
        Config config;
        Noise noise;
        config.cell = kind;
        config.input_size = 5;
        config.hidden_size = 7;
        config.num_layers = 2;
        config.bidirectional = merge > 0;  // concat: of one direction, but for the option
        config.merge = static_cast<Merge>(merge);
        option.apply(config, noise);
        settle(config, noise);
        Case c = random_case(config, 4, 3, merge % 2, merge / 2 % 2);
        c.noise = noise;
        c.has_all = true;
        check_kinds(c);
        ++cases;
      }
    }
    for (const std::int64_t hidden : {1, 2, 15, 17, 33, 70}) {
      for (int i = 0; alone && i < 24; ++i, ++cases) check_kinds(any_case(kind, hidden));
    }
    cases += check_persistent(kind, quick);
    for (int i = 0; i < 6; ++i, ++cases) {  // rows shared by threads
      Case c = any_case(kind, 11);
      Config config = c.config;
      config.layer_norm = true;
      Case normed = random_case(config, 3, 2, i % 2, i % 3 == 0);
      normed.noise = c.noise;
      check_kinds(normed, 2 + i % 3);
    }
  }
  for (const StorageKind kind : {StorageKind::bf16, StorageKind::fp16, StorageKind::tf32}) {
    // Less than this, and nothing was rounded.
    if (!alone || largest_error[static_cast<int>(kind)] > 0.1) continue;
    std::printf("FAILED %s: as exact as float32\n", name_of(kind));
    ++failures;
  }
  for (int policy = 0; policy < static_cast<int>(Policy::count); ++policy) {
    std::printf("%s%s %d", policy ? ", " : "networks by policy: ", name_of(static_cast<Policy>(policy)),
                taken[policy]);
    if (taken[policy] >= (quick ? 5 : 50)) continue;
    std::printf("\nFAILED %s: hardly any case\n", name_of(static_cast<Policy>(policy)));
    ++failures;
  }
  std::printf("\n%d cases, %d checks, %d failures; largest errors, in units of the tolerance:", cases, checks,
              failures);
  for (int kind = 0; kind < static_cast<int>(StorageKind::count); ++kind) {
    std::printf(" %s %.3f", name_of(static_cast<StorageKind>(kind)), largest_error[kind]);
  }
  std::printf("\n");
  return failures ? 1 : 0;
}
